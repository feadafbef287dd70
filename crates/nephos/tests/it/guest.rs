//! One real guest through its whole life, with everything that must be left of it: nothing.

use std::{fs, net::TcpStream, path::Path, time::Duration};

use nephos_ops::compute::{OpenConsole, RebootServer, ServerState, ShowQuota, StartServer, StopServer};
use nephos_testkit::{CloudProcess, Settings, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    NEPHOS,
    help::{console_log, delete_server, server, succeeded, upload_image},
};

/// Reads a console until it shows some text.
pub(crate) async fn read_until(console: &mut (impl AsyncReadExt + Unpin), text: &str) -> String {
    let mut seen = String::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !seen.contains(text) {
            let count = console.read(&mut buffer).await.expect("the console is open");
            assert!(count > 0, "the console closed before `{text}`; it showed:\n{seen}");
            seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    };
    if tokio::time::timeout(nephos_testkit::LIMIT, reading).await.is_err() {
        panic!("the console never showed `{text}`; it showed:\n{seen}");
    }
    seen
}

/// Files of a data folder that belong to guests.
pub(crate) fn guest_files(data: &Path) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            }
            found.push(entry.path().display().to_string());
        }
    }
    let mut found = vec![];
    walk(data, &mut found);
    found.retain(|path| path.contains("srv-"));
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_lives_from_creation_to_nothing_left() {
    let image = tokio::task::spawn_blocking(|| nephos_image_build::micro(&Default::default(), &mut |_| {}))
        .await
        .unwrap()
        .expect("the micro image is built");
    let mut cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    upload_image(&demo, "micro", "qcow2", &image.disk).await;

    // Created, it boots to a login prompt, and one can log in.
    let create =
        serde_json::from_value(json!({ "name": "one", "image": "micro", "flavor": "tiny", "forward": [22] })).unwrap();
    let started = demo.call::<nephos_ops::compute::CreateServer>(create).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let one = server(&demo, "one").await.unwrap();
    assert_eq!(one.state, ServerState::Active);
    assert_eq!(cloud.guests().len(), 1);
    let mut console = demo.tunnel(OpenConsole { server: "one".parse().unwrap() }).await.unwrap().0;
    console.write_all(b"\r").await.unwrap();
    read_until(&mut console, "login:").await;
    console.write_all(b"root\r").await.unwrap();
    read_until(&mut console, "assword:").await;
    console.write_all(b"nephos\r").await.unwrap();
    read_until(&mut console, "# ").await;
    console.write_all(b"uname -a; hostname\r").await.unwrap();
    let said = read_until(&mut console, "GNU/Linux").await;
    assert!(said.contains("Linux"), "{said}");
    read_until(&mut console, "one").await;
    drop(console);

    // Its SSH server answers on the forwarded port.
    let port = one.forwards[0].node_port;
    until("the forwarded port to answer with an SSH banner", || async {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut banner = [0; 4];
        tokio::time::timeout(Duration::from_secs(5), stream.read_exact(&mut banner)).await.ok()?.ok()?;
        (&banner == b"SSH-").then_some(())
    })
    .await;

    // The control plane goes and comes; the guest does not notice.
    let before = cloud.guests();
    cloud.kill();
    assert_eq!(cloud.guests(), before, "guests outlive the control plane");
    cloud.start_again().await;
    let demo = cloud.demo().await;
    until("the server to be seen running again", || async {
        (server(&demo, "one").await?.state == ServerState::Active).then_some(())
    })
    .await;
    assert_eq!(cloud.guests(), before, "the guest was adopted, not started again");

    // Stopped and started, rebooted hard.
    let stop = StopServer { server: "one".parse().unwrap(), hard: false, grace_seconds: None };
    let started = demo.call(stop).await.unwrap();
    succeeded(&demo, started.workflow).await;
    assert_eq!(server(&demo, "one").await.unwrap().state, ServerState::Stopped);
    assert!(cloud.guests().is_empty());
    let started = demo.call(StartServer { server: "one".parse().unwrap() }).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let started = demo.call(RebootServer { server: "one".parse().unwrap(), hard: true }).await.unwrap();
    succeeded(&demo, started.workflow).await;
    until("the console log to show a login prompt", || async {
        console_log(&demo, "one").await?.contains("login:").then_some(())
    })
    .await;

    // A crashed guest is started again.
    let crashed = cloud.guests()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(crashed as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the crashed guest to run again", || async {
        let server = server(&demo, "one").await?;
        (server.restarts == 1 && server.state == ServerState::Active).then_some(())
    })
    .await;
    assert_ne!(cloud.guests()[0], crashed);

    // Deleted, nothing is left: no process, no file, no port, no claim.
    delete_server(&demo, "one").await;
    assert!(cloud.guests().is_empty());
    assert_eq!(guest_files(&cloud.data()), Vec::<String>::new());
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let quota = demo.call(ShowQuota::default()).await.unwrap();
    assert_eq!((quota.servers.used, quota.vcpus.used, quota.memory_mib.used), (0, 0, 0));
    assert!(cloud.stop().await.success());
}
