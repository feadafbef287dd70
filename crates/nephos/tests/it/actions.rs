//! What people do to servers, as it shows inside real guests: what was there before is there afterwards, or is not where
//! it should not be.

use nephos_cli::client::Client;
use nephos_ops::{
    Operation, Started,
    compute::{
        ConfirmResize, CreateServer, DeleteServer, LockServer, PauseServer, RebootServer, RebuildServer, RescueServer,
        ResizeServer, RestoreServer, ResumeServer, RevertResize, ServerState, ShelveServer, SnapshotServer,
        StartServer, StopServer, SuspendServer, UnlockServer, UnpauseServer, UnrescueServer, UnshelveServer,
        UpdateServer,
    },
    identity::{CreateAssignment, CreateUser},
    image::Image,
};
use nephos_testkit::{CloudProcess, Settings};
use serde_json::{Value, json};

use crate::{
    NEPHOS,
    help::{blank_image, delete_server, request, server, succeeded, upload_image},
    shell::Key,
};

/// Asks for something and waits until it has been done.
async fn act<O: Operation<Output = Started<nephos_ops::compute::Server>>>(client: &Client, mut input: Value) {
    input["server"] = input.get("server").cloned().unwrap_or_else(|| "one".into());
    let started = client.call(request::<O>(input)).await.unwrap_or_else(|error| panic!("{}: {error:?}", O::SPEC.name));
    succeeded(client, started.workflow).await;
}

async fn state(client: &Client) -> ServerState {
    server(client, "one").await.expect("the server is there").state
}

/// A cloud with the micro image, three sizes, and a server called `one` whose port 22 is forwarded.
async fn cloud_with_one() -> (CloudProcess, Client, Key) {
    let image = crate::help::micro().await;
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    upload_image(&demo, "micro", "qcow2", &image.disk).await;
    for (name, vcpus, memory_mib, disk_gib) in [("s", 1, 192, 1), ("disk", 1, 192, 2), ("all", 2, 320, 3)] {
        let flavor = json!({ "name": name, "vcpus": vcpus, "memory_mib": memory_mib, "disk_gib": disk_gib });
        admin.call(request::<nephos_ops::compute::CreateFlavor>(flavor)).await.unwrap();
    }
    let key = Key::new(&demo, "me").await;
    let create = json!({ "name": "one", "image": "micro", "flavor": "s", "keypair": "me", "forward": [22] });
    succeeded(&demo, demo.call(request::<CreateServer>(create)).await.unwrap().workflow).await;
    (cloud, demo, key)
}

/// Starts something that goes on counting.
const COUNT: &str = "[ -s /run/count ] || { (n=0; while :; do n=$((n+1)); echo $n > /run/new; mv /run/new /run/count; \
    sleep 0.1; done) > /dev/null 2>&1 < /dev/null & }; until [ -s /run/count ]; do sleep 0.1; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_has_outlives_its_rests() {
    let (mut cloud, demo, key) = cloud_with_one().await;
    let shell = key.shell(&demo, "one").await;
    shell.run("echo mine > /root/file && sync").await;
    shell.run(COUNT).await;
    let boot = shell.boot().await;
    let count = || async { shell.run("cat /run/count").await.parse::<u64>().unwrap() };

    // Standing still in memory, and on the disk of the node: what ran goes on.
    let before = count().await;
    act::<PauseServer>(&demo, json!({})).await;
    assert_eq!((state(&demo).await, cloud.guests().len()), (ServerState::Paused, 1));
    act::<UnpauseServer>(&demo, json!({})).await;
    assert_eq!(shell.boot().await, boot, "it was not started anew");
    assert!(count().await >= before);
    let before = count().await;
    act::<SuspendServer>(&demo, json!({})).await;
    assert_eq!((state(&demo).await, cloud.guests().len()), (ServerState::Suspended, 0));
    act::<ResumeServer>(&demo, json!({})).await;
    assert_eq!(state(&demo).await, ServerState::Active);
    assert_eq!(shell.boot().await, boot, "it was not started anew");
    let after = count().await;
    assert!(after >= before);
    nephos_testkit::until("the counter to go on", || async { (count().await > after).then_some(()) }).await;

    // Started anew: what is on the disk is there, what ran is not.
    act::<RebootServer>(&demo, json!({})).await;
    assert_eq!(shell.run("cat /root/file; ls /run/count 2>/dev/null | wc -l").await, "mine\n0");
    let second = shell.boot().await;
    assert_ne!(second, boot);
    shell.run("echo again > /root/unsaved").await;
    act::<StopServer>(&demo, json!({})).await;
    assert_eq!((state(&demo).await, cloud.guests().len()), (ServerState::Stopped, 0));
    act::<StartServer>(&demo, json!({})).await;
    assert_eq!(shell.run("cat /root/file /root/unsaved").await, "mine\nagain", "it was asked to shut down");
    assert_ne!(shell.boot().await, second);

    // In the trash it does not run, and comes back as it was.
    act::<DeleteServer>(&demo, json!({ "keep_hours": 1 })).await;
    assert_eq!((state(&demo).await, cloud.guests().len()), (ServerState::Trashed, 0));
    act::<RestoreServer>(&demo, json!({})).await;
    assert_eq!(state(&demo).await, ServerState::Active);
    assert_eq!(shell.run("cat /root/file").await, "mine");

    // On a new disk there is nothing of it.
    act::<RebuildServer>(&demo, json!({})).await;
    assert_eq!(state(&demo).await, ServerState::Active);
    assert_eq!(shell.run("ls /root/file 2>/dev/null | wc -l; hostname").await, "0\none");
    delete_server(&demo, "one").await;
    assert!(cloud.guests().is_empty());
    assert!(cloud.stop().await.success());
}

/// What a guest sees of its size: processors, whether it has the larger memory, and its root disk and file system in GiB.
const SIZE: &str = "grep -c ^processor /proc/cpuinfo; awk '/MemTotal/ { print ($2 > 220000) }' /proc/meminfo; \
    echo $(($(cat /sys/block/vda/size) / 2097152))";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_has_goes_where_its_disk_goes() {
    let (mut cloud, demo, key) = cloud_with_one().await;
    let shell = key.shell(&demo, "one").await;
    shell.run("echo mine > /root/file && sync").await;
    assert_eq!(shell.run(SIZE).await, "1\n0\n1");

    // Only its disk grows: it goes on meanwhile.
    let boot = shell.boot().await;
    act::<ResizeServer>(&demo, json!({ "flavor": "disk" })).await;
    assert_eq!(shell.run(SIZE).await, "1\n0\n2");
    assert_eq!(shell.boot().await, boot, "it was not started anew");
    let confirmed = demo.call(request::<ConfirmResize>(json!({ "server": "one" }))).await.unwrap();
    assert_eq!((confirmed.flavor_name.as_str(), confirmed.resize), ("disk", None));

    // Everything grows, and all but the disk goes back.
    act::<ResizeServer>(&demo, json!({ "flavor": "all" })).await;
    assert_eq!(shell.run(SIZE).await, "2\n1\n3");
    assert_eq!(shell.run("cat /root/file").await, "mine");
    shell.until("df -m / | awk 'END { print ($2 > 2500) }'", "1").await;
    act::<RevertResize>(&demo, json!({})).await;
    let reverted = server(&demo, "one").await.unwrap();
    assert_eq!((reverted.flavor_name.as_str(), reverted.vcpus, reverted.resize), ("disk", 1, None));
    assert_eq!(shell.run(SIZE).await, "1\n0\n3");
    assert_eq!(shell.run("cat /root/file").await, "mine");

    // A copy has what was written before it, also what the guest had not yet brought to its disk.
    shell.until("pidof qemu-ga > /dev/null && echo yes || echo no", "yes").await;
    shell.run("echo late > /root/late").await;
    let snapshot = json!({ "server": "one", "name": "copy" });
    let started: Started<Image> = demo.call(request::<SnapshotServer>(snapshot)).await.unwrap();
    succeeded(&demo, started.workflow).await;
    shell.run("echo changed > /root/late && echo after > /root/after").await;
    let create = json!({ "name": "two", "image": "copy", "flavor": "all", "keypair": "me", "forward": [22] });
    succeeded(&demo, demo.call(request::<CreateServer>(create)).await.unwrap().workflow).await;
    let copied = key.shell(&demo, "two").await;
    assert_eq!(copied.run("cat /root/file /root/late; ls /root/after 2>/dev/null | wc -l").await, "mine\nlate\n0");
    assert_eq!(copied.run("hostname").await, "two");
    delete_server(&demo, "two").await;

    // From the rescue system its own disk can be repaired.
    act::<RescueServer>(&demo, json!({ "image": "micro" })).await;
    assert_eq!(state(&demo).await, ServerState::Rescued);
    let repair = "mount /dev/vdb /mnt && cat /mnt/root/file && echo repaired > /mnt/root/repaired && umount /mnt";
    assert_eq!(shell.run(&format!("ls /root/file 2>/dev/null | wc -l; {repair}")).await, "0\nmine");
    act::<UnrescueServer>(&demo, json!({})).await;
    assert_eq!(state(&demo).await, ServerState::Active);
    assert_eq!(shell.run("cat /root/file /root/repaired; ls /dev/vdc 2>/dev/null | wc -l").await, "mine\nrepaired\n0");

    // Put away, nothing of it is left on the node.
    act::<ShelveServer>(&demo, json!({})).await;
    let shelved = server(&demo, "one").await.unwrap();
    assert_eq!((shelved.state, shelved.node), (ServerState::Shelved, None));
    assert!(cloud.guests().is_empty());
    let left: Vec<String> = crate::guest::guest_files(&cloud.data())
        .into_iter()
        .filter(|path| path.contains(&shelved.id.to_string()))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    act::<UnshelveServer>(&demo, json!({})).await;
    assert_eq!(state(&demo).await, ServerState::Active);
    let shell = key.shell(&demo, "one").await;
    assert_eq!(shell.run("cat /root/file /root/repaired /root/after").await, "mine\nrepaired\nafter");
    delete_server(&demo, "one").await;
    assert!(cloud.guests().is_empty());
    assert!(cloud.stop().await.success());
}

/// The code of a refusal.
fn code<T: std::fmt::Debug>(answer: nephos_types::Result<T>) -> String {
    answer.expect_err("it is refused").code.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_and_protection_hold_and_notes_are_kept() {
    let mut cloud = CloudProcess::start(NEPHOS, Settings { simulated_nodes: 1, ..Settings::default() }).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    let ada = json!({ "name": "ada", "password": "analytical engine no. 1" });
    admin.call(request::<CreateUser>(ada)).await.unwrap();
    let member = json!({ "role": "member", "user": "ada", "project": "demo" });
    admin.call(request::<CreateAssignment>(member)).await.unwrap();
    let ada = cloud.client("ada", "analytical engine no. 1", Some("demo")).await.unwrap();
    let create = json!({ "name": "one", "image": "blank", "flavor": "tiny", "metadata": { "owner": "ada" }, "tags": ["a", "b"] });
    succeeded(&ada, ada.call(request::<CreateServer>(create)).await.unwrap().workflow).await;
    let one = || json!({ "server": "one" });

    // What its owner has locked, nobody else changes in any way but an administrator.
    let locked = ada.call(request::<LockServer>(json!({ "server": "one", "reason": "audit" }))).await.unwrap();
    assert_eq!((locked.locked, locked.locked_reason.as_deref()), (true, Some("audit")));
    assert_eq!(code(ada.call(request::<StopServer>(one())).await), "server_locked");
    assert_eq!(code(ada.call(request::<RebuildServer>(one())).await), "server_locked");
    assert_eq!(code(ada.call(request::<DeleteServer>(one())).await), "server_locked");
    let rename = || json!({ "server": "one", "name": "other" });
    assert_eq!(code(ada.call(request::<UpdateServer>(rename())).await), "server_locked");
    act::<StopServer>(&demo, one()).await;
    act::<StartServer>(&demo, one()).await;
    assert!(!ada.call(request::<UnlockServer>(one())).await.unwrap().locked);
    demo.call(request::<LockServer>(one())).await.unwrap();
    assert_eq!(code(ada.call(request::<UnlockServer>(one())).await), "locked_by_admin");
    assert_eq!(code(ada.call(request::<LockServer>(one())).await), "server_locked");
    demo.call(request::<UnlockServer>(one())).await.unwrap();

    // What is protected is not deleted, by nobody, in no way.
    ada.call(request::<UpdateServer>(json!({ "server": "one", "protected": true }))).await.unwrap();
    for delete in [one(), json!({ "server": "one", "now": true }), json!({ "server": "one", "keep_hours": 1 })] {
        assert_eq!(code(ada.call(request::<DeleteServer>(delete.clone())).await), "server_protected");
        assert_eq!(code(demo.call(request::<DeleteServer>(delete)).await), "server_protected");
    }
    ada.call(request::<UpdateServer>(json!({ "server": "one", "protected": false }))).await.unwrap();

    // Names, notes and tags.
    let seen = server(&ada, "one").await.unwrap();
    assert_eq!(seen.metadata.0, [("owner".to_owned(), "ada".to_owned())].into());
    assert_eq!(seen.tags, ["a", "b"].map(str::to_owned).into());
    let change = json!({ "server": "one", "name": "other", "metadata": { "stage": "test" }, "tags": ["c"] });
    let changed = ada.call(request::<UpdateServer>(change)).await.unwrap();
    assert_eq!((changed.id, changed.name.as_str()), (seen.id, "other"));
    assert_eq!(changed.metadata.0, [("stage".to_owned(), "test".to_owned())].into());
    assert_eq!(changed.tags, ["c"].map(str::to_owned).into());
    assert!(server(&ada, "one").await.is_none());
    let again = json!({ "name": "other", "image": "blank", "flavor": "tiny" });
    let taken = ada.call(request::<CreateServer>(again)).await.expect_err("the name is taken");
    assert_eq!(taken.kind, nephos_types::ErrorKind::Conflict);
    succeeded(&ada, ada.call(crate::help::create_server("one", "blank")).await.unwrap().workflow).await;
    assert_eq!(
        ada.call(request::<UpdateServer>(json!({ "server": "one", "name": "other" }))).await.unwrap_err().kind,
        nephos_types::ErrorKind::Conflict
    );
    for name in ["one", "other"] {
        delete_server(&ada, name).await;
    }
    assert!(cloud.stop().await.success());
}
