//! Several controllers on one PostgreSQL database.

mod ledger;
mod logins;
mod plane;
mod versions;

use nephos_cli::client::Client;
use nephos_ops::{
    compute::{ListServers, MakeConsoleUrl, OpenConsole, OpenConsoleUrl, RevokeConsoles, ServerState, ShowQuota},
    node::{ListNodes, NodeState},
    workflow::{CancelWorkflow, ShowWorkflow, WorkflowState},
};
use nephos_testkit::{CloudProcess, LIMIT, Settings, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::plane::{Plane, free_port};
use crate::{
    NEPHOS,
    guest::read_until,
    help::{blank_image, create_server, delete_server, ended, request, server, succeeded},
};

/// What is done through one controller is seen, watched and cancelled through the others at once; who dies is replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_controllers_are_one_cloud() {
    let mut plane = Plane::start(3, 3).await;
    let clients = [plane.demo(0).await, plane.demo(1).await, plane.demo(2).await];
    blank_image(&clients[0], "blank").await;
    for (number, name) in ["a", "b", "c", "d", "e", "f"].into_iter().enumerate() {
        // Asked of one, followed at the next, looked at in the third.
        let started = clients[number % 3].call(create_server(name, "blank")).await.unwrap();
        succeeded(&clients[(number + 1) % 3], started.workflow).await;
        let shown = server(&clients[(number + 2) % 3], name).await.unwrap();
        assert_eq!((shown.state, shown.task), (ServerState::Active, None), "{name}");
    }
    for client in &clients {
        assert_eq!(client.call(ListServers::default()).await.unwrap().items.len(), 6);
        assert_eq!(client.call(ShowQuota::default()).await.unwrap().servers.used, 6);
    }

    // A console is reached through each controller, wherever the node calls.
    for client in &clients {
        let mut console = client.tunnel(OpenConsole { server: "a".parse().unwrap() }).await.unwrap().0;
        console.write_all(b"\r").await.unwrap();
        read_until(&mut console, "login:").await;
    }

    console_urls(&plane, &clients).await;

    // A workflow that waits, because no node answers, is cancelled through another controller.
    for node in 0..3 {
        plane.machines[node].kill_agent();
    }
    let waiting = clients[0].call(create_server("waits", "blank")).await.unwrap();
    clients[1].call(CancelWorkflow { workflow: waiting.workflow }).await.unwrap();
    for node in 0..3 {
        plane.machines[node].start_agent().await;
    }
    assert_eq!(ended(&clients[2], waiting.workflow).await.state, WorkflowState::Cancelled);

    // The controller to which the agents went first dies; they go to another, and what it held is taken over.
    for node in 0..3 {
        plane.machines[node].kill_agent();
    }
    let orphan = clients[0].call(create_server("orphan", "blank")).await.unwrap();
    plane.controllers[0].kill();
    for node in 0..3 {
        plane.machines[node].start_agent().await;
    }
    succeeded(&clients[1], orphan.workflow).await;
    let admin = plane.admin(2).await;
    until("all nodes to be up elsewhere", || async {
        let nodes = admin.call(ListNodes::default()).await.unwrap().items;
        nodes.iter().all(|node| node.state == NodeState::Up).then_some(())
    })
    .await;
    for name in ["a", "b", "c", "d", "e", "f", "orphan", "waits"] {
        delete_server(&clients[1], name).await;
    }
    assert_eq!(clients[2].call(ShowQuota::default()).await.unwrap().vcpus.used, 0);

    // Back again, it knows all that happened.
    plane.controllers[0].start_again().await;
    let back = plane.demo(0).await;
    assert!(back.call(ListServers::default()).await.unwrap().items.is_empty());
    assert_eq!(back.call(ShowWorkflow { workflow: orphan.workflow }).await.unwrap().state, WorkflowState::Succeeded);
    for controller in &mut plane.controllers {
        assert!(controller.stop().await.success());
    }
}

/// A console's URL that one controller made opens through another, without a login, and is revoked through a third.
async fn console_urls(plane: &Plane, clients: &[Client; 3]) {
    let open = async |controller: usize, path: &str| {
        let token = path.strip_prefix("/v1/consoles/").unwrap().parse().unwrap();
        plane.controllers[controller].anonymous().tunnel(OpenConsoleUrl { token }).await.map(|tunnel| tunnel.0)
    };
    let mut last = None;
    for (maker, client) in clients.iter().enumerate() {
        let make: MakeConsoleUrl = request(json!({ "server": "b", "kind": "serial" }));
        let path = client.call(make).await.unwrap().path;
        let mut console = open((maker + 1) % 3, &path).await.unwrap();
        console.write_all(b"\r").await.unwrap();
        read_until(&mut console, "login:").await;
        last = Some((console, path));
    }
    // The last one was made by the third controller and is open at the first.
    let (mut console, path) = last.unwrap();
    clients[1].call(RevokeConsoles { server: "b".parse().unwrap() }).await.unwrap();
    let ended = async { while !matches!(console.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(LIMIT, ended).await.expect("a revoked console ends wherever it is open");
    for controller in 0..3 {
        assert_eq!(open(controller, &path).await.err().unwrap().code, "console_url_invalid");
    }
}

/// A cloud of one process moves into a database, and lives on there: its people, servers, keys and history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_moves_to_postgresql() {
    let database = nephos_testkit_postgres::shared().database();
    let mut cloud = CloudProcess::start(NEPHOS, Settings { simulated_nodes: 2, ..Settings::default() }).await;
    let demo = cloud.demo().await;
    blank_image(&demo, "blank").await;
    for name in ["one", "two"] {
        let started = demo.call(create_server(name, "blank")).await.unwrap();
        succeeded(&demo, started.workflow).await;
    }
    let token = cloud.demo_token().await;
    let data = cloud.data().display().to_string();
    let migrate = |to: &str| {
        let mut command = std::process::Command::new(NEPHOS);
        command.args(["migrate", "--from", &data, "--to", to]);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.success(), text)
    };
    let (moved, text) = migrate(&database);
    assert!(!moved && text.contains("store_locked"), "a running cloud: {text}");
    assert!(cloud.stop().await.success());
    let (moved, text) = migrate("postgres://nobody@127.0.0.1:1/none");
    assert!(!moved && text.contains("database_unreachable"), "{text}");
    let (moved, text) = migrate(&database);
    assert!(moved && text.contains("moved and compared"), "{text}");
    let (moved, text) = migrate(&database);
    assert!(!moved && text.contains("database_not_empty"), "{text}");

    // On the same folder, and on a new one with the key to the secrets.
    let flags = |of: &str| {
        vec!["--secret-file".to_owned(), format!("{of}/secret.key"), "--images".to_owned(), format!("{of}/images")]
    };
    cloud.settings().database = Some(database.clone());
    cloud.start_again().await;
    let settings =
        Settings { database: Some(database), flags: flags(&data), ports: (0, free_port()), ..Settings::default() };
    let other = CloudProcess::start(NEPHOS, settings).await;
    for controller in [&cloud, &other] {
        // A token from before is good, for the keys have moved along.
        let client = controller.anonymous().with_token(Some(token.clone())).unwrap();
        assert_eq!(client.call(ListServers::default()).await.unwrap().items.len(), 2);
        assert_eq!(client.call(ShowQuota::default()).await.unwrap().servers.used, 2);
    }
    // Without the key, a data folder elsewhere is of no use.
    let mut stranger =
        CloudProcess::new(NEPHOS, Settings { flags: vec![], ports: (0, 0), ..other.settings_now().clone() });
    stranger.spawn();
    assert!(!stranger.ended().await.success());
    assert!(stranger.log_text().contains("secret_file_missing"), "{}", stranger.log_text());
}
