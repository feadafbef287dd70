//! Guests and each other.

use nephos_driver::network::NetworkDriver;

use crate::lab::{Lab, group, introduce, is_cut_off, network, ping_from_anywhere, reaches};

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
