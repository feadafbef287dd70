//! What it costs. Prints figures, asserts none: `cargo test -p nephos-driver-network --test it figures -- --ignored --nocapture`.

use std::time::Instant;

use nephos_driver::network::Attachment;
use nephos_driver_network::LinuxNetworks;

use crate::lab::{Lab, group, network, ping_from_anywhere};

#[tokio::test]
#[ignore = "takes a minute, and says nothing about right or wrong"]
async fn figures_of_a_thousand_ports() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let open = group(vec![ping_from_anywhere()]);
    let nets: Vec<_> =
        (0..10_u8).map(|number| network(100 + u32::from(number), &format!("10.{number}.0.0/24"))).collect();
    let add = |machine: &mut crate::lab::Machine, number: usize| {
        let address = format!("10.{}.0.{}", number / 100, number % 100 + 10);
        machine.guest(&nets[number / 100], &address, &[&open]);
        machine.plan.ports[number].attachment = Attachment::Tap;
    };
    (0..999).for_each(|number| add(&mut machine, number));
    let step = async |what: &str, machine: &crate::lab::Machine| {
        let (begun, before) = (Instant::now(), machine.driver.changes());
        machine.apply().await;
        println!("{what}: {:?}, {} changes", begun.elapsed(), machine.driver.changes() - before);
    };
    step("999 ports from nothing", &machine).await;
    step("the same again", &machine).await;
    add(&mut machine, 999);
    step("one port more", &machine).await;
    machine.driver = LinuxNetworks::open(machine.settings.clone()).unwrap();
    step("a new process", &machine).await;
    machine.group_of(&open).rules.remove(0);
    step("a rule less", &machine).await;
    machine.plan.ports.pop();
    step("one port less", &machine).await;
    machine.plan.ports.clear();
    step("all ports gone", &machine).await;
}
