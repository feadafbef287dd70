//! Where servers go, and how nodes are emptied, through the real binary with simulated nodes.

use futures_util::future::join_all;
use nephos_cli::client::Client;
use nephos_ops::{table, workflow::WorkflowState};
use nephos_testkit::{CloudProcess, Settings};
use nephos_types::{ErrorKind, Result, WorkflowId};
use serde_json::{Value, json};

use crate::{
    NEPHOS,
    help::{blank_image, delete_server, ended, succeeded},
};

async fn call(client: &Client, operation: &str, input: Value) -> Result<Value> {
    let entry = table().iter().find(|entry| entry.spec.name == operation).expect(operation);
    client.call_json(&entry.spec, &input).await
}

async fn do_it(client: &Client, operation: &str, input: Value) -> Value {
    call(client, operation, input).await.unwrap_or_else(|error| panic!("{operation}: {error:?}"))
}

fn workflow(started: &Value) -> WorkflowId {
    serde_json::from_value(started["workflow"].clone()).unwrap()
}

/// Creates a server with these wishes and says on which node it is.
async fn create(client: &Client, name: &str, wishes: Value) -> String {
    let mut input = json!({ "name": name, "image": "blank", "flavor": "tiny" });
    input.as_object_mut().unwrap().extend(wishes.as_object().unwrap().clone());
    let started = do_it(client, "server.create", input).await;
    succeeded(client, workflow(&started)).await;
    let server = do_it(client, "server.show", json!({ "server": name })).await;
    server["node_name"].as_str().unwrap().to_owned()
}

async fn cloud(nodes: u32) -> CloudProcess {
    CloudProcess::start(NEPHOS, Settings { simulated_nodes: nodes, ..Settings::default() }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_go_where_they_ask_to_and_say_why() {
    let cloud = cloud(3).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    let node =
        do_it(&admin, "node.assign", json!({ "node": "sim-1", "zone": "east", "traits": ["CUSTOM_GOLD"] })).await;
    assert_eq!(node["zone"], "east");
    assert!(node["traits"].as_array().unwrap().contains(&json!("COMPUTE_DRIVER_SIMULATED")), "{node:#}");
    assert_eq!(create(&demo, "a", json!({ "zone": "east" })).await, "sim-1");
    let refused = call(&admin, "node.assign", json!({ "node": "sim-1", "zone": "west" })).await.unwrap_err();
    assert_eq!(refused.code, "zone_in_use");

    let why = do_it(&demo, "server.placement", json!({ "server": "a" })).await;
    assert_eq!((&why["node_name"], &why["reasons"]["fitting"]), (&json!("sim-1"), &json!(1)));
    assert_eq!(why["reasons"]["refused"], json!([{ "filter": "zone", "nodes": 2 }]));
    let shown = cloud.nephos(&["server", "placement", "a", "--project", "demo"]);
    assert!(shown.contains("sim-1: the only one of 3 that fits"), "{shown}");
    let run = ended(&demo, workflow(&why)).await;
    assert!(run.steps.iter().any(|step| step.detail.as_deref().is_some_and(|text| text.contains("refused: zone 2"))));

    let nowhere = json!({ "name": "b", "image": "blank", "flavor": "tiny", "zone": "nowhere" });
    let refused = call(&demo, "server.create", nowhere).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Capacity, "no_placement"));
    assert!(refused.detail.contains("of 3 nodes refused: zone 3; nearest: "), "{}", refused.detail);

    // A flavor asks for a property of an aggregate and a trait.
    do_it(&admin, "aggregate.create", json!({ "name": "fast", "properties": { "disk": "nvme" } })).await;
    let flavor = json!({ "name": "gold", "vcpus": 1, "memory_mib": 256, "properties": { "disk": "nvme" },
        "required_traits": ["CUSTOM_GOLD"] });
    do_it(&admin, "flavor.create", flavor).await;
    let gold = json!({ "name": "g", "image": "blank", "flavor": "gold" });
    let refused = call(&demo, "server.create", gold.clone()).await.unwrap_err();
    assert!(refused.reasons.iter().any(|reason| reason.constraint == "properties"), "{refused:?}");
    let fits = |capacity: &Value| capacity["fits"].as_u64().unwrap();
    assert_eq!(fits(&do_it(&admin, "capacity.show", json!({ "flavor": "gold" })).await), 0);
    do_it(&admin, "aggregate.add-node", json!({ "aggregate": "fast", "node": "sim-1" })).await;
    let capacity = do_it(&admin, "capacity.show", json!({ "flavor": "gold" })).await;
    assert_eq!(capacity["aggregates"][0]["nodes"], 1);
    let before = fits(&capacity);
    assert_eq!(create(&demo, "g", json!({ "flavor": "gold" })).await, "sim-1");
    assert_eq!(fits(&do_it(&admin, "capacity.show", json!({ "flavor": "gold" })).await), before - 1);
    let lost = do_it(&admin, "node.what-if-lost", json!({ "node": "sim-1" })).await;
    assert_eq!((&lost["servers"], &lost["placed"], &lost["unplaced"]), (&json!(2), &json!(0), &json!(2)));

    // Overcommitment: the node's own word counts before its aggregate's, that before the cloud's.
    let vcpus = |node: Value| node["vcpus"].as_u64().unwrap();
    let show = || do_it(&admin, "node.show", json!({ "node": "sim-1" }));
    assert_eq!(vcpus(show().await), 256);
    do_it(&admin, "placement.set-overcommit", json!({ "vcpus": 200 })).await;
    assert_eq!(vcpus(show().await), 128);
    do_it(&admin, "aggregate.update", json!({ "aggregate": "fast", "overcommit_vcpus": 150 })).await;
    assert_eq!(vcpus(show().await), 96);
    do_it(&admin, "node.assign", json!({ "node": "sim-1", "overcommit_vcpus": 100 })).await;
    assert_eq!(vcpus(show().await), 64);
    assert!(cloud_stops(cloud).await);
}

async fn cloud_stops(mut cloud: CloudProcess) -> bool {
    cloud.stop().await.success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_emptied_as_far_as_groups_and_locks_allow() {
    let cloud = cloud(3).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    do_it(&demo, "server-group.create", json!({ "name": "apart", "policy": "anti-affinity" })).await;
    let mut places = vec![];
    for name in ["db-0", "db-1", "db-2"] {
        places.push(create(&demo, name, json!({ "group": "apart" })).await);
    }
    let on_first = ["db-0", "db-1", "db-2"][places.iter().position(|place| place == "sim-0").unwrap()];
    let mut sorted = places.clone();
    sorted.sort();
    assert_eq!(sorted, ["sim-0", "sim-1", "sim-2"]);
    let fourth = json!({ "name": "db-3", "image": "blank", "flavor": "tiny", "group": "apart" });
    let refused = call(&demo, "server.create", fourth).await.unwrap_err();
    assert!(refused.detail.contains("refused: group 3"), "{}", refused.detail);
    let group = do_it(&demo, "server-group.show", json!({ "server_group": "apart" })).await;
    assert_eq!((&group["satisfied"], &group["servers"]), (&json!(true), &json!(3)));
    let refused = call(&demo, "server-group.delete", json!({ "server_group": "apart" })).await.unwrap_err();
    assert_eq!(refused.code, "group_in_use");

    // More servers, until some are on the first node.
    let mut there = vec![];
    for number in 0..9 {
        let name = format!("web-{number}");
        if create(&demo, &name, json!({})).await == "sim-0" {
            there.push(name);
        }
    }
    assert_eq!(there.len(), 3);
    let stop = do_it(&demo, "server.stop", json!({ "server": there[1], "hard": true })).await;
    succeeded(&demo, workflow(&stop)).await;
    do_it(&demo, "server.lock", json!({ "server": there[2], "reason": "audit" })).await;

    // The group's server has no place elsewhere, and the locked one refuses.
    let drain = do_it(&admin, "node.drain", json!({ "node": "sim-0", "reason": "new fans" })).await;
    let run = ended(&admin, workflow(&drain)).await;
    assert_eq!(run.state, WorkflowState::Failed);
    let error = run.error.unwrap();
    assert_eq!(error.code, "drain_incomplete");
    let mut stayed: Vec<&str> = error.reasons.iter().map(|reason| reason.subject.as_str()).collect();
    stayed.sort_unstable();
    assert_eq!(stayed, [on_first, there[2].as_str()], "{error:?}");
    let node = do_it(&admin, "node.show", json!({ "node": "sim-0" })).await;
    assert_eq!((&node["enabled"], &node["servers"], &node["draining"]), (&json!(false), &json!(2), &Value::Null));
    let moved = do_it(&demo, "server.show", json!({ "server": there[0] })).await;
    assert_eq!(moved["state"], "active");
    assert_ne!(moved["node_name"], "sim-0");
    let stopped = do_it(&demo, "server.show", json!({ "server": there[1] })).await;
    assert_eq!(stopped["state"], "stopped");
    assert_ne!(stopped["node_name"], "sim-0");

    // What stood against it is gone: now the node can be emptied, and taken into service again.
    let elsewhere = ["db-0", "db-1", "db-2"].into_iter().find(|name| *name != on_first).unwrap();
    delete_server(&demo, elsewhere).await;
    do_it(&demo, "server.unlock", json!({ "server": there[2] })).await;
    let drain = do_it(&admin, "node.drain", json!({ "node": "sim-0" })).await;
    succeeded(&admin, workflow(&drain)).await;
    let node = do_it(&admin, "node.show", json!({ "node": "sim-0" })).await;
    assert_eq!((&node["servers"], &node["vcpus_used"], &node["memory_mib_used"]), (&json!(0), &json!(0), &json!(0)));
    let group = do_it(&demo, "server-group.show", json!({ "server_group": "apart" })).await;
    assert_eq!(group["satisfied"], true, "{group:#}");
    do_it(&admin, "node.uncordon", json!({ "node": "sim-0" })).await;
    let back = do_it(&admin, "server.move", json!({ "server": moved["id"], "node": "sim-0" })).await;
    succeeded(&admin, workflow(&back)).await;
    assert_eq!(do_it(&demo, "server.show", json!({ "server": there[0] })).await["node_name"], "sim-0");
    assert_eq!(create(&demo, "last", json!({})).await, "sim-0");
    assert!(cloud_stops(cloud).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_of_projects_and_domains_are_exact_under_64_creators() {
    let cloud = cloud(2).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    do_it(&admin, "quota.update", json!({ "project": "demo", "servers": 50, "vcpus": 50 })).await;
    let create = |number: usize| {
        let demo = demo.clone();
        async move {
            let input = json!({ "name": format!("s-{number}"), "image": "blank", "flavor": "tiny" });
            call(&demo, "server.create", input).await
        }
    };
    do_it(&admin, "quota.update-domain", json!({ "domain": "default", "servers": 20 })).await;
    let outcomes = join_all((0..64).map(create)).await;
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    assert!(
        refused.iter().all(|error| error.kind == ErrorKind::Quota && error.title.contains("domain")),
        "{refused:?}"
    );
    assert_eq!(outcomes.len() - refused.len(), 20);
    let quota = do_it(&admin, "quota.show-domain", json!({ "domain": "default" })).await;
    assert_eq!(quota["servers"], json!({ "limit": 20, "used": 20 }));
    assert_eq!(quota["vcpus"], json!({ "used": 20 }));

    do_it(&admin, "quota.update-domain", json!({ "domain": "default", "unlimited": true })).await;
    let outcomes = join_all((64..128).map(create)).await;
    let made = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(made, 30, "the project's own quota holds");
    for started in outcomes.into_iter().flatten() {
        succeeded(&demo, workflow(&started)).await;
    }
    let servers = do_it(&demo, "server.list", json!({ "limit": 1000 })).await;
    for server in servers["items"].as_array().unwrap() {
        do_it(&demo, "server.delete", json!({ "server": server["id"] })).await;
    }
    nephos_testkit::until("all to be gone", || async {
        let quota = do_it(&admin, "quota.show-domain", json!({ "domain": "default" })).await;
        (quota["servers"]["used"] == 0 && quota["memory_mib"]["used"] == 0).then_some(())
    })
    .await;
    assert!(cloud_stops(cloud).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_to_grow_grows_elsewhere_and_may_come_back() {
    let cloud = cloud(2).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    blank_image(&demo, "blank").await;
    do_it(&admin, "quota.update", json!({ "project": "demo", "vcpus": 1000, "memory_mib": 1_000_000 })).await;
    for (name, vcpus) in [("huge", 200), ("most", 100)] {
        do_it(&admin, "flavor.create", json!({ "name": name, "vcpus": vcpus, "memory_mib": 512, "disk_gib": 1 })).await;
    }
    // Both on one node, which has 256 virtual CPUs to give.
    do_it(&admin, "node.cordon", json!({ "node": "sim-1" })).await;
    assert_eq!(create(&demo, "one", json!({ "flavor": "tiny" })).await, "sim-0");
    assert_eq!(create(&demo, "other", json!({ "flavor": "most" })).await, "sim-0");
    let act = async |operation: &str, input: Value| {
        let started = do_it(&demo, operation, input).await;
        succeeded(&demo, workflow(&started)).await;
        do_it(&demo, "server.show", json!({ "server": "one" })).await
    };
    let used = async || {
        let mut used = vec![];
        for node in ["sim-0", "sim-1"] {
            let node = do_it(&admin, "node.show", json!({ "node": node })).await;
            used.push((node["vcpus_used"].as_u64().unwrap(), node["servers"].as_u64().unwrap()));
        }
        used
    };
    let quota = async || do_it(&demo, "quota.show", json!({})).await["vcpus"]["used"].clone();
    let one = || json!({ "server": "one" });

    // There is room nowhere: said at once, with what its own node lacks.
    let refused = call(&demo, "server.resize", json!({ "server": "one", "flavor": "huge" })).await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Capacity, "no_placement"));
    let own =
        |reason: &nephos_types::Reason| reason.subject == "sim-0" && reason.detail.contains("where the server is");
    assert!(refused.reasons.iter().any(own), "{refused:?}");
    do_it(&admin, "node.uncordon", json!({ "node": "sim-1" })).await;

    let grown = act("server.resize", json!({ "server": "one", "flavor": "huge" })).await;
    assert_eq!(
        (&grown["node_name"], &grown["vcpus"], &grown["state"]),
        (&json!("sim-1"), &json!(200), &json!("active"))
    );
    assert!(grown["resize"]["old_node"].is_string(), "{grown:#}");
    let why = do_it(&demo, "server.placement", one()).await;
    assert_eq!((&why["node_name"], &why["workflow"]), (&json!("sim-1"), &grown["workflow"]));
    // Both places are kept, and it is charged for the larger size once.
    assert_eq!((used().await, quota().await), (vec![(101, 2), (200, 1)], json!(300)));
    for operation in ["server.shelve", "server.rebuild"] {
        assert_eq!(call(&demo, operation, one()).await.unwrap_err().code, "wrong_state");
    }

    // Back where it was, though nothing more is placed there by now than what it takes.
    let back = act("server.revert-resize", one()).await;
    assert_eq!((&back["node_name"], &back["vcpus"], &back["resize"]), (&json!("sim-0"), &json!(1), &Value::Null));
    assert_eq!((used().await, quota().await), (vec![(101, 2), (0, 0)], json!(101)));

    // Reverted while its old node is out of service, it gets its old size where it is.
    act("server.resize", json!({ "server": "one", "flavor": "huge" })).await;
    do_it(&admin, "node.cordon", json!({ "node": "sim-0" })).await;
    let stays = act("server.revert-resize", one()).await;
    assert_eq!((&stays["node_name"], &stays["vcpus"], &stays["state"]), (&json!("sim-1"), &json!(1), &json!("active")));
    assert_eq!(used().await, vec![(100, 1), (1, 1)]);
    do_it(&admin, "node.uncordon", json!({ "node": "sim-0" })).await;

    // Confirmed, nothing is left where it was.
    do_it(&demo, "server.move", json!({ "server": "one", "node": "sim-0" })).await;
    nephos_testkit::until("it to have moved", || async {
        let server = do_it(&demo, "server.show", one()).await;
        (server["task"].is_null() && server["node_name"] == "sim-0").then_some(())
    })
    .await;
    act("server.resize", json!({ "server": "one", "flavor": "huge" })).await;
    do_it(&demo, "server.confirm-resize", one()).await;
    assert_eq!((used().await, quota().await), (vec![(100, 1), (200, 1)], json!(300)));
    for name in ["one", "other"] {
        delete_server(&demo, name).await;
    }
    assert_eq!((used().await, quota().await), (vec![(0, 0), (0, 0)], json!(0)));
    let images = do_it(&demo, "image.list", json!({})).await;
    assert_eq!(images["items"].as_array().unwrap().len(), 1, "no copy of a disk is left: {images:#}");
    assert!(cloud_stops(cloud).await);
}
