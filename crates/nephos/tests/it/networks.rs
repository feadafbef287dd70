//! Networks through the real binary: addresses, what may be deleted and what not, and real servers on them.

use std::path::Path;

use nephos_cli::client::Client;
use nephos_ops::{
    compute::{CommandResult, CreateServer, ExecuteCommand},
    network::{
        CreateNetwork, CreatePort, CreateSecurityGroupRule, CreateSubnet, DeleteNetwork, DeletePort, DeleteSubnet,
        ListPorts, ListSecurityGroups, Port, PortState, ShowSubnet, UpdatePort,
    },
};
use nephos_testkit::{CloudProcess, Settings, until};
use nephos_types::{ErrorKind, Result};
use serde_json::{Value, json};

use crate::{
    NEPHOS,
    bad_input::simulated,
    help::{delete_server, micro, request, server, succeeded, upload_image},
};

async fn network(client: &Client, name: &str, cidr: &str) {
    client.call(request::<CreateNetwork>(json!({ "name": name }))).await.unwrap();
    subnet(client, name, name, cidr).await.unwrap();
}

async fn subnet(client: &Client, name: &str, network: &str, cidr: &str) -> Result<()> {
    let create: CreateSubnet = request(json!({ "name": name, "network": network, "cidr": cidr }));
    client.call(create).await.map(drop)
}

async fn port(client: &Client, fields: Value) -> Result<Port> {
    client.call(request::<CreatePort>(fields)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_is_given_out_twice() {
    let cloud = simulated().await;
    let demo = cloud.demo().await;
    network(&demo, "lan", "10.9.0.0/28").await;
    // Of 16 there are 14 for hosts; the gateway has one, the services another.
    let creations = (0..20).map(|_| port(&demo, json!({ "network": "lan" })));
    let outcomes = futures_util::future::join_all(creations).await;
    let made: Vec<&Port> = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).collect();
    let mut addresses: Vec<String> = made.iter().map(|port| port.addresses[0].to_string()).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!((made.len(), addresses.len()), (12, 12), "{outcomes:#?}");
    for error in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
        assert_eq!((&*error.code, error.kind), ("addresses_exhausted", ErrorKind::Capacity), "{error:#?}");
    }
    assert_eq!(demo.call(ShowSubnet { subnet: "lan".parse().unwrap() }).await.unwrap().used, 12);

    // A certain one is refused while somebody has it, and free when that one is gone.
    let held = made[0].addresses[0].address.unwrap();
    let wish = json!({ "network": "lan", "addresses": [held.to_string()] });
    assert_eq!(port(&demo, wish.clone()).await.unwrap_err().code, "address_taken");
    demo.call(DeletePort { port: made[0].id.to_string().parse().unwrap() }).await.unwrap();
    assert_eq!(port(&demo, wish).await.unwrap().addresses[0].address, Some(held));

    // What is in use stays.
    let refused = demo.call(DeleteSubnet { subnet: "lan".parse().unwrap() }).await.unwrap_err();
    assert_eq!(refused.code, "subnet_in_use", "{refused:#?}");
    let refused = demo.call(DeleteNetwork { network: "lan".parse().unwrap() }).await.unwrap_err();
    assert_eq!(refused.code, "network_in_use", "{refused:#?}");
    for port in demo.call(ListPorts::default()).await.unwrap().items {
        demo.call(DeletePort { port: port.id.to_string().parse().unwrap() }).await.unwrap();
    }
    assert_eq!(subnet(&demo, "more", "lan", "10.9.0.8/29").await.unwrap_err().code, "subnet_overlaps");
    subnet(&demo, "more", "lan", "fd00:9::/64").await.unwrap();
    let both = port(&demo, json!({ "network": "lan" })).await.unwrap();
    assert_eq!(both.addresses.len(), 2, "one of each version: {both:#?}");
    demo.call(DeletePort { port: both.id.to_string().parse().unwrap() }).await.unwrap();
    demo.call(DeleteNetwork { network: "lan".parse().unwrap() }).await.unwrap();
    // With the network went its subnets, and their names and addresses.
    network(&demo, "lan", "10.9.0.0/28").await;
}

/// Whether nodes can have networks here; if not, it is said loudly.
fn networks_can_be_made() -> bool {
    let (root, nft) = (nix::unistd::geteuid().is_root(), Path::new("/usr/sbin/nft").exists());
    if !root || !nft {
        eprintln!("\n*** NOT TESTED: networks need root and nft (root: {root}, nft: {nft}) ***\n");
    }
    root && nft
}

async fn run(client: &Client, server: &str, command: &str) -> Result<CommandResult> {
    let execute: ExecuteCommand = request(json!({ "server": server, "command": ["sh", "-c", command] }));
    client.call(execute).await
}

/// Waits until a command inside a server ends well, and returns what it said.
async fn until_said(client: &Client, server: &str, command: &str) -> String {
    until(&format!("`{command}` on {server}"), || async move {
        let done = run(client, server, command).await.ok()?;
        (done.exit_code == Some(0)).then_some(done.stdout)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_of_a_network_reach_each_other_and_what_serves_them() {
    if !networks_can_be_made() {
        return;
    }
    let image = micro().await;
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    upload_image(&demo, "micro", "qcow2", &image.disk).await;
    network(&demo, "lan", "10.9.0.0/24").await;
    for name in ["one", "two"] {
        // It is the project's only network, so nobody has to name it.
        let create: CreateServer = request(json!({ "name": name, "image": "micro", "flavor": "tiny" }));
        let started = demo.call(create).await.unwrap();
        succeeded(&demo, started.workflow).await;
    }
    let address = |name: &'static str| {
        let demo = &demo;
        async move { server(demo, name).await.unwrap().addresses[0].address }
    };
    let (one, two) = (address("one").await, address("two").await);

    // Each has the address that it was given, by DHCP, and finds the other by name.
    let shown = until_said(&demo, "one", &format!("ip addr | grep 'inet {one}/24'")).await;
    assert!(!shown.is_empty());
    until_said(&demo, "one", "ping -c 1 -W 2 two").await;
    until_said(&demo, "two", &format!("ping -c 1 -W 2 {one}")).await;
    // What it is told about itself is about itself.
    let told = until_said(&demo, "two", "wget -q -O - http://169.254.169.254/latest/meta-data/local-ipv4").await;
    assert_eq!(told.trim(), two.to_string());

    // Without the group that lets in what comes from its own, nothing comes in.
    let ports = demo.call(request::<ListPorts>(json!({ "server": "two" }))).await.unwrap().items;
    assert_eq!(ports[0].state, PortState::Active, "{ports:#?}");
    let with = |groups: Value| request::<UpdatePort>(json!({ "port": ports[0].id, "security_groups": groups }));
    demo.call(with(json!([]))).await.unwrap();
    let unreachable = format!("! ping -c 1 -W 1 {two}");
    until_said(&demo, "one", &unreachable).await;
    let groups = demo.call(ListSecurityGroups::default()).await.unwrap().items;
    demo.call(request::<CreateSecurityGroupRule>(json!({ "security_group": groups[0].id, "protocol": "icmp" })))
        .await
        .unwrap();
    demo.call(with(json!([groups[0].id]))).await.unwrap();
    until_said(&demo, "one", &format!("ping -c 1 -W 2 {two}")).await;

    for name in ["one", "two"] {
        delete_server(&demo, name).await;
    }
    assert!(demo.call(ListPorts::default()).await.unwrap().items.is_empty(), "ports go with their servers");
    demo.call(DeleteNetwork { network: "lan".parse().unwrap() }).await.unwrap();
}
