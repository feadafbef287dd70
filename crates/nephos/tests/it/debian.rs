//! A full Debian, built as its users build it, through what a cloud's image is for: it becomes who the cloud says, and
//! answers from inside.
//!
//! Under emulation on a busy machine it boots for minutes, so there is one boot of it in all the tests.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use nephos_cli::client::Client;
use nephos_ops::{
    Started,
    compute::{CommandResult, CreateFlavor, ExecuteCommand, ServerState, ShowGuest, SnapshotServer, StopServer},
    image::{Image, ImageStatus, ShowImage},
};
use nephos_testkit::{CloudProcess, Settings, until_within};
use serde_json::json;

use crate::{
    NEPHOS,
    help::{delete_server, request, server, succeeded_within},
    shell::Key,
};

/// For a boot, and for whatever else waits for the guest: forty times what it takes on a machine with hardware for it.
const PATIENCE: Duration = Duration::from_secs(25 * 60);
const USER_DATA: &str = "\
#cloud-config
write_files:
  - path: /etc/made-by-user-data
    content: first
runcmd:
  - [sh, -c, 'echo \"$(hostname) of $(id -un)\" >> /etc/made-by-user-data']
";

/// Where the user's built images are; the cloud under test has a cache folder of its own.
fn cache() -> PathBuf {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").unwrap_or_else(|| set("HOME").expect("there is a home").join(".cache"))
}

/// `nephos image build debian`, into (or out of) the user's cache of images.
fn build(cloud: &CloudProcess, scratch: &Path) {
    let images = cache().join("nephos/images");
    std::fs::create_dir_all(&images).unwrap();
    let own = scratch.join("nephos");
    std::fs::create_dir_all(&own).unwrap();
    std::os::unix::fs::symlink(images, own.join("images")).unwrap();
    let built = cloud
        .command(&["image", "build", "debian", "--name", "debian"])
        .env("XDG_CACHE_HOME", scratch)
        .output()
        .expect("the nephos binary starts");
    let said = String::from_utf8_lossy(&built.stderr).into_owned();
    assert!(built.status.success(), "{}: {said}", built.status);
    assert!(said.contains("image debian is active"), "{said}");
}

/// Runs a program inside, as soon as that can be asked for; a busy guest's agent may be late.
async fn run(client: &Client, command: &[&str]) -> CommandResult {
    until_within(PATIENCE, &format!("{command:?} to run"), || async {
        let execute: ExecuteCommand = request(json!({ "server": "web", "command": command, "limit_seconds": 600 }));
        match client.call(execute).await {
            Ok(result) if result.timed_out => None,
            Ok(result) => Some(result),
            Err(error) if matches!(error.code.as_ref(), "guest_agent_missing" | "no_answer") => {
                tokio::time::sleep(Duration::from_secs(1)).await;
                None
            }
            Err(error) => panic!("{command:?}: {error:?}"),
        }
    })
    .await
}

async fn said(client: &Client, command: &[&str]) -> String {
    let result = run(client, command).await;
    assert_eq!(result.exit_code, Some(0), "{command:?}: {result:?}");
    result.stdout.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_debian_becomes_who_the_cloud_says() {
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let scratch = tempfile::tempdir().unwrap();
    tokio::task::block_in_place(|| build(&cloud, scratch.path()));
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    // Two processors, for the parts of a boot that can be done at once.
    let flavor = json!({ "name": "two", "vcpus": 2, "memory_mib": 1024, "disk_gib": 5 });
    admin.call(request::<CreateFlavor>(flavor)).await.unwrap();
    let key = Key::new(&demo, "me").await;
    let user_data = scratch.path().join("user-data");
    std::fs::write(&user_data, USER_DATA).unwrap();
    cloud.nephos(&[
        "server",
        "create",
        "web",
        "--image",
        "debian",
        "--flavor",
        "two",
        "--keypair",
        "me",
        "--forward",
        "22",
        "--metadata",
        "role=front",
        "--file",
        "path=/etc/given,content=by the cloud",
        "--user-data",
        &format!("@{}", user_data.display()),
    ]);

    // It boots, and has done all that it was told to: this file is the last thing that cloud-init makes.
    let finished = ["test", "-e", "/var/lib/cloud/instance/boot-finished"];
    until_within(PATIENCE, "cloud-init to be done", || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        (run(&demo, &finished).await.exit_code == Some(0)).then_some(())
    })
    .await;
    assert!(said(&demo, &["cloud-init", "status", "--long"]).await.contains("status: done"));
    eprintln!("{}", said(&demo, &["sh", "-c", "systemd-analyze time; cloud-init analyze blame | head -12"]).await);

    // Who it is, as it says itself.
    let guest = demo.call(ShowGuest { server: "web".parse().unwrap() }).await.unwrap();
    assert_eq!(guest.host_name.as_deref(), Some("web"));
    assert!(guest.system.as_deref().is_some_and(|system| system.starts_with("Debian GNU/Linux")), "{guest:?}");
    assert!(guest.agent.is_some() && guest.kernel.is_some() && !guest.addresses.is_empty(), "{guest:?}");
    let root = guest.file_systems.iter().find(|system| system.mount == "/").expect("there is a root");
    assert!(root.size.is_some_and(|size| size.0 > 4 << 30), "it has grown with its disk: {root:?}");

    // What the cloud and its owner wanted of it.
    assert_eq!(said(&demo, &["cat", "/etc/made-by-user-data"]).await, "firstweb of root");
    // Beside the files in user data.
    assert_eq!(said(&demo, &["cat", "/etc/given"]).await, "by the cloud");
    assert!(said(&demo, &["cloud-init", "query", "ds.meta_data.meta.role"]).await.contains("front"));
    let keys = said(&demo, &["cat", "/home/debian/.ssh/authorized_keys"]).await;
    assert_eq!(keys.lines().count(), 1, "{keys}");
    let shell = key.shell(&demo, "web").await.of("debian");
    assert_eq!(shell.run("sudo id -un; hostname").await, "root\nweb");
    assert_eq!(said(&demo, &["systemctl", "is-system-running", "--wait"]).await, "running");

    // A new password and another key, by way of the agent.
    let before = said(&demo, &["getent", "shadow", "debian"]).await;
    cloud.nephos(&["server", "reset-password", "web", "--user", "debian", "--password", "another one"]);
    assert_ne!(said(&demo, &["getent", "shadow", "debian"]).await, before);
    cloud.nephos(&["keypair", "create", "other", "--public-key", crate::bad_input::KEY]);
    cloud.nephos(&["server", "reset-keys", "web", "--user", "debian", "--keypair", "other"]);
    let keys = said(&demo, &["cat", "/home/debian/.ssh/authorized_keys"]).await;
    assert!(keys.contains(crate::bad_input::KEY.split(' ').nth(1).unwrap()) && keys.lines().count() == 1, "{keys}");

    // An image of it, taken while its file systems were held still.
    let snapshot = json!({ "server": "web", "name": "copy" });
    let started: Started<Image> = demo.call(request::<SnapshotServer>(snapshot)).await.unwrap();
    succeeded_within(PATIENCE, &demo, started.workflow).await;
    let copy = demo.call(request::<ShowImage>(json!({ "image": "copy" }))).await.unwrap();
    assert_eq!((copy.status, copy.frozen), (ImageStatus::Active, Some(true)));
    assert_eq!(said(&demo, &["sh", "-c", "echo thawed > /root/thawed; cat /root/thawed"]).await, "thawed");

    // It switches itself off when it is asked to.
    let started = demo.call(request::<StopServer>(json!({ "server": "web", "grace_seconds": 600 }))).await.unwrap();
    succeeded_within(PATIENCE, &demo, started.workflow).await;
    assert_eq!(server(&demo, "web").await.unwrap().state, ServerState::Stopped);
    let log = crate::help::console_log(&demo, "web").await.unwrap();
    assert!(log.contains("Power down") || log.contains("System Power Off"), "it did that itself: {log}");
    delete_server(&demo, "web").await;
    assert!(cloud.guests().is_empty());
}
