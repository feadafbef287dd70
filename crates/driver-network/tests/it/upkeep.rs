//! What a node's networks go through: restarts, changes, somebody who meddles, removal.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use nephos_driver::network::{Attachment, NetworkDriver, NetworkPlan, RateLimit};
use nephos_driver_network::LinuxNetworks;
use nephos_host::netns;

use crate::lab::{Lab, external, group, introduce, network, ping_from_anywhere, reaches, router, run, try_run};

#[tokio::test]
async fn a_new_process_recognises_everything_and_no_packet_is_lost() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    one.settings.host = true;
    one.driver = LinuxNetworks::open(one.settings.clone()).unwrap();
    let (left, world) = (network(100, "10.0.0.0/24"), external("172.24.4.0/24"));
    let open = group(vec![ping_from_anywhere()]);
    let a = one.guest(&left, "10.0.0.11", &[&open]);
    two.guest(&left, "10.0.0.12", &[&open]);
    one.plan.networks.push(world.clone());
    one.plan.routers.push(router((&world, "172.24.4.10/24"), &[(&left, "10.0.0.1/24")]));
    one.plan.ports[0].send_limit = Some(RateLimit { kbit: 100_000, burst_kbit: 1000 });
    introduce(&mut [&mut one, &mut two]);
    one.apply().await;
    two.apply().await;
    assert!(reaches(&a, "10.0.0.12"));
    let mut ping = Command::new("nsenter")
        .arg(format!("--net={}", a.display()))
        .args(["ping", "-n", "-i", "0.02", "-c", "150", "-W", "20", "10.0.0.12"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(ping.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("icmp_seq=1 ")));
    // The process is killed: nothing of it is left but what the kernel has.
    for machine in [&mut one, &mut two] {
        machine.driver = LinuxNetworks::open(machine.settings.clone()).unwrap();
        machine.apply().await;
        assert_eq!(machine.driver.changes(), 0);
    }
    // What is new does not disturb what is.
    let c = one.guest(&left, "10.0.0.13", &[&open]);
    one.apply().await;
    assert!(reaches(&c, "10.0.0.11"));
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(rest.iter().any(|line| line.contains(" 0% packet loss")), "{rest:?}");
    ping.wait().unwrap();
}

#[tokio::test]
async fn what_somebody_meddled_with_is_made_good() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let net = network(100, "10.0.0.0/24");
    let open = group(vec![ping_from_anywhere()]);
    let a = machine.guest(&net, "10.0.0.11", &[&open]);
    machine.guest(&net, "10.0.0.12", &[&open]);
    machine.apply().await;
    let fabric = machine.driver.fabric();
    let list = "nft list ruleset | grep -v '^$'";
    let rules = run(&fabric, list);
    for restart in [false, true] {
        run(&fabric, "nft flush ruleset; for link in $(ls /sys/class/net); do true; done");
        run(&fabric, &format!("ip link del {}", port_device(&machine, 1)));
        run(&fabric, &format!("ip link set {} down", port_device(&machine, 0)));
        assert!(!try_run(&a, "ping -n -c 1 -W 1 10.0.0.12").status.success());
        if restart {
            machine.driver = LinuxNetworks::open(machine.settings.clone()).unwrap();
        }
        machine.apply().await;
        assert_eq!(run(&fabric, list), rules);
        assert!(reaches(&a, "10.0.0.12"));
    }
}

fn port_device(machine: &crate::lab::Machine, number: usize) -> String {
    machine.driver.tap(machine.plan.ports[number].id).unwrap().1
}

#[tokio::test]
async fn nothing_is_left_when_everything_is_removed() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    one.settings.host = true;
    one.driver = LinuxNetworks::open(one.settings.clone()).unwrap();
    run(&one.path, "nft 'add table inet theirs; add chain inet theirs input { type filter hook input priority 0; }'");
    let before = one.state();
    let (left, world) = (network(100, "10.0.0.0/24"), external("172.24.4.0/24"));
    let open = group(vec![ping_from_anywhere()]);
    one.guest(&left, "10.0.0.11", &[&open]);
    two.guest(&left, "10.0.0.12", &[&open]);
    one.plan.networks.push(world.clone());
    one.plan.routers.push(router((&world, "172.24.4.10/24"), &[(&left, "10.0.0.1/24")]));
    introduce(&mut [&mut one, &mut two]);
    for way in ["an empty plan", "removal", "removal by another process"] {
        one.apply().await;
        assert_ne!(one.state(), before);
        match way {
            "an empty plan" => assert!(one.driver.apply(&NetworkPlan::default()).await.unwrap().is_clean()),
            "removal" => one.driver.remove_all().await.unwrap(),
            _ => {
                one.driver = LinuxNetworks::open(one.settings.clone()).unwrap();
                one.driver.remove_all().await.unwrap();
            }
        }
        assert_eq!(one.state(), before, "{way}");
    }
    assert_eq!(std::fs::read_dir(&one.settings.folder).unwrap().count(), 0);
}

#[tokio::test]
async fn ports_are_slowed_in_both_directions_and_no_longer() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let net = network(100, "10.0.0.0/24");
    let open = group(vec![ping_from_anywhere()]);
    let a = machine.guest(&net, "10.0.0.11", &[&open]);
    machine.guest(&net, "10.0.0.12", &[&open]);
    machine.plan.ports[0].send_limit = Some(RateLimit { kbit: 50_000, burst_kbit: 1000 });
    machine.plan.ports[0].receive_limit = Some(RateLimit { kbit: 20_000, burst_kbit: 500 });
    machine.apply().await;
    let fabric = machine.driver.fabric();
    let shaped = run(&fabric, "tc qdisc");
    assert!(shaped.contains("rate 50Mbit") && shaped.contains("rate 20Mbit"), "{shaped}");
    assert!(reaches(&a, "10.0.0.12"));
    let traffic = machine.driver.traffic(machine.plan.ports[0].id).await.unwrap();
    assert!(traffic.sent_packets > 0 && traffic.received_packets > 0, "{traffic:?}");
    let before = machine.driver.changes();
    machine.apply().await;
    assert_eq!(machine.driver.changes(), before);
    machine.plan.ports[0].send_limit = None;
    machine.plan.ports[0].receive_limit = Some(RateLimit { kbit: 10_000, burst_kbit: 500 });
    machine.apply().await;
    let shaped = run(&fabric, "tc qdisc");
    assert!(
        !shaped.contains("rate 50Mbit") && !shaped.contains("ingress") && shaped.contains("rate 10Mbit"),
        "{shaped}"
    );
    assert!(reaches(&a, "10.0.0.12"));
}

#[tokio::test]
async fn a_tap_is_opened_in_the_namespace_that_it_is_in() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let net = network(100, "10.0.0.0/24");
    machine.guest(&net, "10.0.0.11", &[]);
    machine.plan.ports[0].attachment = Attachment::Tap;
    machine.apply().await;
    let (namespace, device) = machine.driver.tap(machine.plan.ports[0].id).unwrap();
    let opened = netns::open_tap(netns::open(&namespace).unwrap(), &device).unwrap();
    assert!(run(&namespace, &format!("ip link show {device}")).contains("LOWER_UP"));
    // One guest holds it at a time.
    assert!(netns::open_tap(netns::open(&namespace).unwrap(), &device).is_err());
    drop(opened);
    assert_eq!(
        netns::open_tap(netns::open(&namespace).unwrap(), "nobody").unwrap_err().kind(),
        std::io::ErrorKind::NotFound
    );
    machine.plan.ports.clear();
    machine.apply().await;
    assert!(!try_run(&namespace, &format!("ip link show {device}")).status.success());
}
