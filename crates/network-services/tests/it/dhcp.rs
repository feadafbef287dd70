//! DHCP by busybox's client and ISC's.

use nephos_network_services::{Places, Services, Settings};
use nephos_types::NetworkId;

use crate::{
    bed::{Bed, GUEST},
    plan::{Told, mac, network, plan, port, subnet},
};

/// Gets a lease with busybox's client; what it was told, one `name=value` a line.
fn udhcpc(bed: &Bed, guest: usize, further: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("told");
    std::fs::write(&script, "#!/bin/sh\n[ \"$1\" = bound ] && env || true\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    let script = script.to_str().unwrap();
    let options = [
        "udhcpc",
        "-i",
        GUEST,
        "-f",
        "-q",
        "-n",
        "-t",
        "10",
        "-T",
        "1",
        "-s",
        script,
        "-O",
        "staticroutes",
        "-O",
        "mtu",
        "-O",
        "search",
    ];
    let all: Vec<&str> = options.into_iter().chain(further.iter().copied()).collect();
    bed.guests[guest].run("busybox", &all)
}

fn places(beds: &[(&Bed, NetworkId)]) -> Places {
    Places { networks: beds.iter().map(|(bed, id)| (*id, bed.place())).collect(), ..Places::default() }
}

fn settings() -> Settings {
    Settings { forwarders: vec![], ..Settings::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn busybox_gets_the_ports_address_and_what_goes_with_it() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1), mac(2)]);
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2")], &[]);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let id = net.id;
    let services = Services::new(settings(), Told::with([]));
    let troubles = services.update(&plan(vec![net], ports), &places(&[(&bed, id)])).await;
    assert_eq!(troubles, Default::default());
    let told = tokio::task::block_in_place(|| udhcpc(&bed, 0, &[]));
    for line in [
        "ip=10.0.0.11",
        "mask=24",
        "router=10.0.0.1",
        "dns=10.0.0.2",
        "mtu=1450",
        "hostname=web",
        "domain=demo.internal",
        "lease=86400",
        "serverid=10.0.0.2",
        "staticroutes=169.254.169.254/32 10.0.0.2 0.0.0.0/0 10.0.0.1",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} in\n{told}");
    }
    // Somebody who is on the wire, and not in the plan.
    let stranger = ["udhcpc", "-i", GUEST, "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"];
    let output = tokio::task::block_in_place(|| bed.guests[1].try_run("busybox", &stranger));
    assert!(!output.status.success());
}
