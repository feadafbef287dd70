//! Two machines: one joins, dies, is missed, and comes back to guests that never noticed.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use nephos_cli::client::Client;
use nephos_ops::{
    compute::{
        CreateFlavor, CreateServer, DeleteServer, OpenConsole, ResizeServer, RevertResize, ServerState, StartServer,
        StopServer,
    },
    node::{ListNodes, Node, NodeState, ShowNode, UpdateNode, UpgradeNode},
    placement::AssignNode,
};
use nephos_testkit::{CloudProcess, Machine, Settings, until};
use nephos_types::{ErrorKind, NodeId, Timestamp};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    NEPHOS,
    guest::{guest_files, read_until},
    help::{blank_image, console_log, create_server, delete_server, request, server, succeeded, upload_image},
};

/// A dead node is shown as such within this time.
const NOTICED_WITHIN_SECONDS: f64 = 15.0;

async fn node(admin: &Client, node: NodeId) -> Node {
    admin.call(ShowNode { node: node.to_string().parse().unwrap() }).await.unwrap()
}

async fn wait_for_node(admin: &Client, id: NodeId, state: NodeState) -> Node {
    until(&format!("the node to be {state:?}"), || async {
        let node = node(admin, id).await;
        (node.state == state).then_some(node)
    })
    .await
}

pub(crate) async fn set_enabled(admin: &Client, node: NodeId, enabled: bool) {
    let update: UpdateNode = serde_json::from_value(json!({ "node": node, "enabled": enabled })).unwrap();
    admin.call(update).await.unwrap();
}

/// Creates a server, waits until it is active, and says where it is.
async fn create(client: &Client, name: &str, image: &str) -> NodeId {
    let started = client.call(create_server(name, image)).await.unwrap();
    succeeded(client, started.workflow).await;
    let server = server(client, name).await.unwrap();
    assert_eq!(server.state, ServerState::Active, "{server:#?}");
    server.node.expect("an active server is on a node")
}

/// The command that the control plane prints for a machine that is to join, as its arguments.
pub(crate) fn join_command(cloud: &CloudProcess) -> Vec<String> {
    let printed = cloud.nephos(&["node", "join-token"]);
    let (_, command) = printed.split_once("nephos agent ").unwrap_or_else(|| panic!("no command in: {printed}"));
    let words: Vec<String> = command.split_whitespace().take(4).map(str::to_owned).collect();
    assert_eq!((words[0].as_str(), words[2].as_str()), ("--join", "--token"), "{printed}");
    words
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_dies_is_missed_and_comes_back() {
    let Some(mut machine) = Machine::new(NEPHOS) else { return };
    let micro = tokio::task::spawn_blocking(|| nephos_image_build::micro(&Default::default(), &mut |_| {}))
        .await
        .unwrap()
        .expect("the micro image is built");
    let settings = Settings { node_listen: Some(machine.near_address().into()), ..Settings::default() };
    let mut cloud = CloudProcess::start(NEPHOS, settings).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    upload_image(&demo, "micro", "qcow2", &micro.disk).await;
    let here = admin.call(ListNodes::default()).await.unwrap().items[0].id;

    // The machine joins by the printed command; the token is good once.
    let command = join_command(&cloud);
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    machine.start_agent(&arguments);
    let there = until("the machine to join", || async {
        let nodes = admin.call(ListNodes::default()).await.unwrap().items;
        nodes.into_iter().find(|node| node.id != here && node.state == NodeState::Up)
    })
    .await;
    assert!(there.certificate_expires_at.is_some_and(|expiry| expiry > Timestamp::now()), "{there:#?}");
    assert!(there.address.as_deref().is_some_and(|address| address.starts_with("198.1")), "{there:#?}");
    let there = there.id;
    let Some(mut stranger) = Machine::new(NEPHOS) else { return };
    stranger.start_agent(&arguments);
    assert!(!stranger.agent_ended().await.success(), "a used token lets nobody in");
    assert_eq!(admin.call(ListNodes::default()).await.unwrap().items.len(), 2);
    drop(stranger);

    // Servers spread over both.
    let mut places = [create(&demo, "first", "blank").await, create(&demo, "second", "blank").await];
    let on_there = if places[0] == there { "first" } else { "second" };
    let on_here = if places[0] == there { "second" } else { "first" };
    let mut expected = [here, there];
    places.sort_unstable();
    expected.sort_unstable();
    assert_eq!(places, expected);
    assert_eq!((cloud.guests().len(), machine.guests().len()), (1, 1));

    // Its console is reached through it.
    set_enabled(&admin, here, false).await;
    assert_eq!(create(&demo, "talker", "micro").await, there);
    set_enabled(&admin, here, true).await;
    let mut console = demo.tunnel(OpenConsole { server: "talker".parse().unwrap() }).await.unwrap().0;
    console.write_all(b"\r").await.unwrap();
    read_until(&mut console, "login:").await;
    drop(console);
    until("the console log to show the login prompt", || async {
        console_log(&demo, "talker").await.is_some_and(|log| log.contains("login:")).then_some(())
    })
    .await;

    // Its agent dies; that is shown, and the guests run on.
    let mut guests = machine.guests();
    guests.sort_unstable();
    assert_eq!(guests.len(), 2);
    let killed_at = Timestamp::now();
    machine.kill_agent();
    let down = wait_for_node(&admin, there, NodeState::Down).await;
    let noticed = down.state_since.since(killed_at).as_secs_f64();
    assert!(down.state_since > killed_at && noticed <= NOTICED_WITHIN_SECONDS, "noticed after {noticed} s");
    eprintln!("the dead node was noticed after {noticed:.1} s");

    // Nothing more is placed on it, and the other node works.
    for name in ["third", "fourth"] {
        assert_eq!(create(&demo, name, "blank").await, here);
    }
    let stop = StopServer { server: on_here.parse().unwrap(), hard: true, grace_seconds: None };
    succeeded(&demo, demo.call(stop).await.unwrap().workflow).await;
    succeeded(&demo, demo.call(StartServer { server: on_here.parse().unwrap() }).await.unwrap().workflow).await;
    set_enabled(&admin, here, false).await;
    let error = demo.call(create_server("nowhere", "blank")).await.unwrap_err();
    assert_eq!((error.code.as_ref(), error.kind), ("no_placement", ErrorKind::Capacity));
    let reasons: Vec<&str> = error.reasons.iter().map(|reason| reason.constraint.as_str()).collect();
    assert!(reasons.contains(&"up") && reasons.contains(&"enabled"), "{error:#?}");
    set_enabled(&admin, here, true).await;
    let error = demo.tunnel(OpenConsole { server: "talker".parse().unwrap() }).await.err().expect("nobody is there");
    assert_ne!(error.kind.http_status(), 500, "{error:?}");
    // What is asked of a server there is done when the node is back.
    let deletion =
        demo.call(DeleteServer { server: on_there.parse().unwrap(), now: false, keep_hours: None }).await.unwrap();
    let mut still = machine.guests();
    still.sort_unstable();
    assert_eq!(still, guests, "guests outlive their agent");

    // Back without a token, with its guest.
    machine.start_agent(&[]);
    let up = wait_for_node(&admin, there, NodeState::Up).await;
    assert!(up.state_since > down.state_since);
    succeeded(&demo, deletion.workflow).await;
    let adopted = machine.guests();
    assert_eq!(adopted.len(), 1);
    assert!(guests.contains(&adopted[0]), "the guest was adopted, not started again");
    let talker = server(&demo, "talker").await.unwrap();
    assert_eq!((talker.state, talker.restarts), (ServerState::Active, 0));
    let mut console = demo.tunnel(OpenConsole { server: "talker".parse().unwrap() }).await.unwrap().0;
    console.write_all(b"\r").await.unwrap();
    read_until(&mut console, "login:").await;
    drop(console);

    // Deleted, nothing is left on either.
    for name in [on_here, "third", "fourth", "talker"] {
        delete_server(&demo, name).await;
    }
    assert!(cloud.guests().is_empty() && machine.guests().is_empty());
    for data in [cloud.data(), machine.data()] {
        assert_eq!(guest_files(&data), Vec::<String>::new());
    }
    for node in admin.call(ListNodes::default()).await.unwrap().items {
        let used = (node.servers, node.vcpus_used, node.memory_mib_used, node.disk_gib_used);
        assert_eq!(used, (0, 0, 0, 0), "{node:#?}");
    }
    assert!(machine.stop_agent().await.success());
    assert!(cloud.stop().await.success());
}

/// The program of these tests as an older one: the same with a byte more, which changes nothing but its checksum.
fn older_program(folder: &Path) -> PathBuf {
    let path = folder.join("nephos");
    std::fs::copy(NEPHOS, &path).unwrap();
    std::fs::File::options().append(true).open(&path).unwrap().write_all(b"\n").unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_becomes_the_control_planes_program_and_its_guests_do_not_notice() {
    let folder = tempfile::tempdir().unwrap();
    let program = older_program(folder.path());
    let Some(mut machine) = Machine::new(&program) else { return };
    let settings = Settings { node_listen: Some(machine.near_address().into()), ..Settings::default() };
    let cloud = CloudProcess::start(NEPHOS, settings).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    let here = admin.call(ListNodes::default()).await.unwrap().items[0].id;
    let command = join_command(&cloud);
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    machine.start_agent(&arguments);
    let there = until("the machine to join", || async {
        let nodes = admin.call(ListNodes::default()).await.unwrap().items;
        // Both programs have been read by then.
        nodes.into_iter().find(|node| node.id != here && node.state == NodeState::Up && node.agent_current.is_some())
    })
    .await;
    assert_eq!(there.agent_current, Some(false));
    set_enabled(&admin, here, false).await;
    assert_eq!(create(&demo, "steady", "blank").await, there.id);
    let (guests, agent) = (machine.guests(), machine.agent_pid());

    let refused = admin.call(UpgradeNode { node: here.to_string().parse().unwrap() }).await.unwrap_err();
    assert_eq!(refused.code, "agent_not_replaceable");
    let upgrade = UpgradeNode { node: there.id.to_string().parse().unwrap() };
    succeeded(&admin, admin.call(upgrade.clone()).await.unwrap().workflow).await;
    let upgraded = wait_for_node(&admin, there.id, NodeState::Up).await;
    assert_eq!(upgraded.agent_current, Some(true), "{upgraded:#?}");
    assert!(upgraded.health.is_empty(), "{upgraded:#?}");
    assert_eq!(std::fs::read(&program).unwrap(), std::fs::read(NEPHOS).unwrap());
    assert_eq!((machine.guests(), machine.agent_pid()), (guests, agent), "the same processes");
    assert_eq!(server(&demo, "steady").await.unwrap().state, ServerState::Active);

    // The guest is still looked after: it stops when it is told to, and its end is noticed.
    let stop = StopServer { server: "steady".parse().unwrap(), hard: true, grace_seconds: None };
    succeeded(&demo, demo.call(stop).await.unwrap().workflow).await;
    assert!(machine.guests().is_empty());
    // Once more there is nothing to do.
    succeeded(&admin, admin.call(upgrade).await.unwrap().workflow).await;
    delete_server(&demo, "steady").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_written_before_goes_along_when_a_resize_changes_the_node_and_back() {
    let Some(mut machine) = Machine::new(NEPHOS) else { return };
    let micro = crate::help::micro().await;
    let settings = Settings { node_listen: Some(machine.near_address().into()), ..Settings::default() };
    let mut cloud = CloudProcess::start(NEPHOS, settings).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    upload_image(&demo, "micro", "qcow2", &micro.disk).await;
    let here = admin.call(ListNodes::default()).await.unwrap().items[0].id;
    let flavor = json!({ "name": "silver", "vcpus": 1, "memory_mib": 192, "disk_gib": 1 });
    admin.call(request::<CreateFlavor>(flavor)).await.unwrap();
    // Only what the other machine has will do for this one.
    let flavor = json!({ "name": "gold", "vcpus": 2, "memory_mib": 320, "disk_gib": 2,
        "required_traits": ["CUSTOM_GOLD"] });
    admin.call(request::<CreateFlavor>(flavor)).await.unwrap();
    let create = json!({ "name": "one", "image": "micro", "flavor": "silver" });
    succeeded(&demo, demo.call(request::<CreateServer>(create)).await.unwrap().workflow).await;
    assert_eq!(server(&demo, "one").await.unwrap().node, Some(here));

    let command = join_command(&cloud);
    let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
    machine.start_agent(&arguments);
    let there = until("the machine to join", || async {
        let nodes = admin.call(ListNodes::default()).await.unwrap().items;
        nodes.into_iter().find(|node| node.id != here && node.state == NodeState::Up)
    })
    .await;
    let there = there.id;
    let assign: AssignNode = request(json!({ "node": there, "traits": ["CUSTOM_GOLD"] }));
    admin.call(assign).await.unwrap();

    // By the agent inside, which is reached through whichever node the server is on.
    let inside = async |script: &str| {
        until(&format!("an answer to `{script}`"), || async {
            let arguments = ["server", "exec", "one", "--", "sh", "-c", script];
            let output = cloud.command(&arguments).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).trim_end().to_owned();
            output.status.success().then_some(said)
        })
        .await
    };
    const SIZE: &str = "grep -c ^processor /proc/cpuinfo; echo $(($(cat /sys/block/vda/size) / 2097152))";
    inside("echo before > /root/file && sync").await;
    assert_eq!(inside(SIZE).await, "1\n1");

    let resize = json!({ "server": "one", "flavor": "gold" });
    succeeded(&demo, demo.call(request::<ResizeServer>(resize)).await.unwrap().workflow).await;
    let moved = server(&demo, "one").await.unwrap();
    assert_eq!((moved.node, moved.state), (Some(there), ServerState::Active), "{moved:#?}");
    assert_eq!(moved.resize.and_then(|resize| resize.old_node), Some(here));
    assert_eq!((cloud.guests().len(), machine.guests().len()), (0, 1));
    assert_eq!(guest_files(&cloud.data()).iter().filter(|path| path.contains(&moved.id.to_string())).count(), 0);
    assert_eq!(inside(SIZE).await, "2\n2");
    assert_eq!(inside("cat /root/file").await, "before");
    inside("echo since > /root/since && sync").await;

    // Back on its old node and with its old size, it has what was written in the meantime, too.
    let revert = json!({ "server": "one" });
    succeeded(&demo, demo.call(request::<RevertResize>(revert)).await.unwrap().workflow).await;
    let back = server(&demo, "one").await.unwrap();
    assert_eq!((back.node, back.state, back.resize), (Some(here), ServerState::Active, None));
    assert_eq!((cloud.guests().len(), machine.guests().len()), (1, 0));
    assert_eq!(inside(SIZE).await, "1\n2");
    assert_eq!(inside("cat /root/file /root/since").await, "before\nsince");

    delete_server(&demo, "one").await;
    for node in admin.call(ListNodes::default()).await.unwrap().items {
        let used = (node.servers, node.vcpus_used, node.memory_mib_used, node.disk_gib_used);
        assert_eq!(used, (0, 0, 0, 0), "{node:#?}");
    }
    assert_eq!(guest_files(&machine.data()), Vec::<String>::new());
    assert!(machine.stop_agent().await.success());
    assert!(cloud.stop().await.success());
}
