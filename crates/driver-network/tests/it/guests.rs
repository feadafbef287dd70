//! Guests and each other.

use nephos_driver::network::{
    AddressPair, Direction, IpVersion, NetworkDriver, RulePeer, RuleProtocol, SecurityRule, SubnetSpec,
};
use nephos_types::SubnetId;

use crate::lab::{Lab, group, introduce, is_cut_off, network, ping_from_anywhere, reaches, rule, run};

#[tokio::test]
async fn guests_of_one_network_reach_each_other_and_tenants_with_the_same_addresses_do_not() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let (ours, theirs) = (network(100, "10.0.0.0/24"), network(101, "10.0.0.0/24"));
    let open = group(vec![ping_from_anywhere()]);
    let a = machine.guest(&ours, "10.0.0.11", &[&open]);
    let _b = machine.guest(&ours, "10.0.0.12", &[&open]);
    let c = machine.guest(&theirs, "10.0.0.11", &[&open]);
    let _d = machine.guest(&theirs, "10.0.0.13", &[&open]);
    machine.apply().await;
    assert!(reaches(&a, "10.0.0.12"));
    assert!(reaches(&c, "10.0.0.13"));
    assert!(is_cut_off(&a, "10.0.0.13"));
    assert!(is_cut_off(&c, "10.0.0.12"));
    machine.driver.remove_all().await.unwrap();
}

#[tokio::test]
async fn guests_on_two_machines_reach_each_other() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    let ours = network(100, "10.0.0.0/24");
    let open = group(vec![ping_from_anywhere()]);
    let a = one.guest(&ours, "10.0.0.11", &[&open]);
    let b = two.guest(&ours, "10.0.0.12", &[&open]);
    introduce(&mut [&mut one, &mut two]);
    one.apply().await;
    two.apply().await;
    assert!(reaches(&a, "10.0.0.12"));
    assert!(reaches(&b, "10.0.0.11"));
}

#[tokio::test]
async fn addresses_of_both_kinds_are_told_and_held_to() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    let mut ours = network(100, "10.0.0.0/24");
    ours.subnets.push(SubnetSpec {
        id: SubnetId::new(),
        cidr: "fd00:1::/64".parse().unwrap(),
        gateway: "fd00:1::1".parse().ok(),
        service: "fd00:1::2".parse().ok(),
        ..ours.subnets[0].clone()
    });
    let v6 = |protocol| SecurityRule {
        version: IpVersion::V6,
        ..rule(Direction::Ingress, protocol, RulePeer::Range { cidr: "fd00:1::/64".parse().unwrap() })
    };
    let open = group(vec![v6(RuleProtocol::Icmp { kind: Some(128), code: None })]);
    let a = one.guest(&ours, "10.0.0.11 fd00:1::11", &[&open]);
    let b = two.guest(&ours, "10.0.0.12 fd00:1::12", &[&open]);
    let c = one.guest(&ours, "10.0.0.13 fd00:1::13", &[&open]);
    introduce(&mut [&mut one, &mut two]);
    one.apply().await;
    two.apply().await;
    for (from, to) in [(&a, "fd00:1::12"), (&b, "fd00:1::11"), (&a, "fd00:1::13"), (&c, "fd00:1::2")] {
        assert!(reaches(from, to), "{to}");
    }
    assert!(is_cut_off(&a, "10.0.0.12"));
    // An address that is not its own serves it nothing, until somebody allows it: any address at all.
    run(&a, "ip addr add fd00:1::99/64 dev eth0 nodad");
    let ping = "ping -n -c 1 -i 0.5 -I fd00:1::99 fd00:1::12";
    assert!(!crate::lab::try_run(&a, &format!("{ping} -w 3")).status.success());
    for addresses in ["0.0.0.0/0", "::/0"] {
        one.plan.ports[0].allowed_pairs.push(AddressPair { addresses: addresses.parse().unwrap(), mac: None });
    }
    one.apply().await;
    assert!(crate::lab::try_run(&a, &format!("{ping} -w 60")).status.success());
    assert!(one.driver.capabilities().underlay.is_some());
}
