//! Routers, and the machine as the way out.

use nephos_driver::Protocol;
use nephos_driver::network::{Direction, FloatingIp, Forwarding, NetworkDriver, RulePeer, RuleProtocol, Segment};
use nephos_types::{FloatingIpId, PortForwardingId};

use crate::lab::{
    IMPATIENT, Lab, PATIENT, carries, connect, external, group, is_cut_off, listen, network, reaches, router, rule, run,
};

#[tokio::test]
async fn a_router_joins_networks_and_the_outside() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let outside_world = lab.machine(9);
    machine.settings.host = true;
    machine.driver = nephos_driver_network::LinuxNetworks::open(machine.settings.clone()).unwrap();
    let (left, right) = (network(100, "10.0.0.0/24"), network(101, "10.1.0.0/24"));
    let world = external("172.24.4.0/24");
    let open = group(vec![rule(Direction::Ingress, RuleProtocol::Any, RulePeer::Any)]);
    let a = machine.guest(&left, "10.0.0.11", &[&open]);
    let b = machine.guest(&right, "10.1.0.11", &[&open]);
    let c = machine.guest(&left, "10.0.0.12", &[&open]);
    machine.plan.networks.push(world.clone());
    let mut spec = router((&world, "172.24.4.10/24"), &[(&left, "10.0.0.1/24"), (&right, "10.1.0.1/24")]);
    let floating = |external: &str, fixed: Option<&str>, forwardings| FloatingIp {
        id: FloatingIpId::new(),
        external: external.parse().unwrap(),
        fixed: fixed.map(|fixed| fixed.parse().unwrap()),
        forwardings,
    };
    let forwarding = Forwarding {
        id: PortForwardingId::new(),
        protocol: Protocol::Tcp,
        external_ports: (8080, 8089),
        fixed: "10.0.0.12".parse().unwrap(),
        fixed_ports: (80, 89),
    };
    spec.floating_ips =
        vec![floating("172.24.4.20", Some("10.0.0.11"), vec![]), floating("172.24.4.21", None, vec![forwarding])];
    machine.plan.routers.push(spec);
    machine.apply().await;
    let before = machine.driver.changes();
    machine.apply().await;
    assert_eq!(machine.driver.changes(), before);

    assert!(reaches(&a, "10.1.0.11"), "between networks");
    assert!(reaches(&b, "172.24.4.1"), "out to the machine");
    // The other machine knows nothing of any of these addresses.
    assert!(reaches(&b, "10.200.0.9"), "out to the world");
    assert!(reaches(&machine.path, "172.24.4.20"), "in to a server");
    let [in_a, in_c] = [&a, &c].map(|guest| listen(guest, 85));
    let client = connect(&machine.path, "172.24.4.21:8085", PATIENT).unwrap();
    let (server, _) = in_c.accept().unwrap();
    assert!(carries(&client, &server, PATIENT), "by a port");
    // Answers of a neighbour come back by the router, although both are on one network.
    let client = connect(&c, "172.24.4.20:85", PATIENT).unwrap();
    let (server, _) = in_a.accept().unwrap();
    assert!(carries(&client, &server, PATIENT) && carries(&server, &client, PATIENT), "round by the router");

    let client = connect(&machine.path, "172.24.4.20:85", PATIENT).unwrap();
    let (server, _) = in_a.accept().unwrap();
    assert!(carries(&client, &server, PATIENT));
    machine.plan.routers[0].floating_ips.remove(0);
    machine.apply().await;
    assert!(!carries(&client, &server, IMPATIENT), "a floating IP that is gone leads nowhere");
    assert!(is_cut_off(&machine.path, "172.24.4.20"));
    assert!(reaches(&a, "10.200.0.9"), "out, by the router's own address");

    machine.plan.routers[0].up = false;
    machine.apply().await;
    assert!(is_cut_off(&a, "10.1.0.11"));
    machine.plan.routers[0].up = true;
    machine.apply().await;
    assert!(reaches(&a, "10.1.0.11"));
    drop(outside_world);
}

#[tokio::test]
async fn a_network_takes_an_interface_of_the_machine_and_gives_it_back() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    lab.run("wire", &format!("ip link add x1 type veth peer name lan0 netns /../..{}", machine.path.display()));
    lab.run("wire", "ip link set x1 up; ip addr add 10.5.0.1/24 dev x1");
    lab.run("machine1", "ip link set lan0 up; until ip link show lan0 | grep -q 'state UP'; do sleep 0.1; done");
    machine.settings.physical = [("lan".to_owned(), "lan0".to_owned()), ("busy".to_owned(), "wire".to_owned())].into();
    machine.driver = nephos_driver_network::LinuxNetworks::open(machine.settings.clone()).unwrap();
    // Its number among the machine's interfaces is another one in the end.
    let look = |machine: &crate::lab::Machine| {
        let link = run(&machine.path, "ip -o link show lan0");
        let words = link.split_whitespace().filter(|word| !word.starts_with("lan0@"));
        words.skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = look(&machine);
    let mut net = network(0, "10.5.0.0/24");
    net.segment = Segment::Flat { physical: "lan".into() };
    let open = group(vec![rule(Direction::Ingress, RuleProtocol::Any, RulePeer::Any)]);
    let a = machine.guest(&net, "10.5.0.11", &[&open]);
    machine.apply().await;
    assert!(reaches(&a, "10.5.0.1"));
    assert!(reaches(&lab.path("wire"), "10.5.0.11"));
    // One that the machine needs itself is not taken, and one that nobody named neither.
    for (physical, word) in [("busy", "addresses of its own"), ("other", "not on the physical network")] {
        let mut plan = machine.plan.clone();
        plan.networks[0].id = nephos_types::NetworkId::new();
        plan.networks[0].segment = Segment::Flat { physical: physical.into() };
        plan.ports.clear();
        let report = machine.driver.apply(&plan).await.unwrap();
        assert!(report.networks[0].error.detail.contains(word), "{report:?}");
    }
    machine.driver.remove_all().await.unwrap();
    let mut after = look(&machine);
    for _ in 0..600 {
        if after == before {
            break;
        }
        // It takes the other end a moment to see that it is up.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        after = look(&machine);
    }
    assert_eq!(after, before);
}
