//! Router advertisements by the kernel, DHCPv6 by ISC's client.

use std::time::{Duration, Instant};

use nephos_driver::network::{Ipv6Mode, NetworkSpec, RouterInterface, RouterSpec};
use nephos_network_services::{Place, Places, Services, Settings, view::link_local};
use nephos_types::{Id, PortId, RouterId};

use crate::{
    bed::{Bed, GUEST, Namespace},
    plan::{Told, mac, network, plan, port, subnet},
};

fn settings() -> Settings {
    Settings { forwarders: vec![], ..Settings::default() }
}

fn net(mode: Ipv6Mode) -> NetworkSpec {
    let mut range = subnet(1, "fd00:1::/64", None, "fd00:1::2");
    range.ipv6_mode = Some(mode);
    network(1, "demo.internal", vec![range], &[])
}

/// Waits until the guest's kernel shows this.
async fn shows(guest: &Namespace, arguments: &[&str], what: &str) {
    let begun = Instant::now();
    loop {
        let shown = tokio::task::block_in_place(|| guest.run("ip", arguments));
        if shown.contains(what) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no {what} in\n{shown}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernel_makes_an_address_and_takes_only_a_router_for_one() {
    let bed = Bed::new(&["fd00:1::2/64"], &[mac(1), mac(9)]);
    let net = net(Ipv6Mode::Slaac);
    let ports = vec![port(1, &net, mac(1), "web", &["fd00:1::f816:3eff:fe00:1"])];
    let mut plan = plan(vec![net.clone()], ports);
    let mut places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(settings(), Told::with([]));
    assert_eq!(services.update(&plan, &places).await, Default::default());
    let guest = &bed.guests[0];
    shows(guest, &["-6", "addr", "show", "dev", GUEST], "fd00:1::f816:3eff:fe00:1/64").await;
    tokio::task::block_in_place(|| {
        let heard = guest.run("rdisc6", &["-1", "-q", "-w", "20000", GUEST]);
        assert!(heard.contains("fd00:1::/64"), "{heard}");
        assert!(!guest.run("ip", &["-6", "route"]).contains("default"), "the service side is no router");
    });

    // Now a router, which says so itself.
    let interface = RouterInterface {
        port: PortId::from_bits(9),
        network: net.id,
        mac: mac(9),
        addresses: vec!["fd00:1::1/64".parse().unwrap()],
        advertise: vec![net.subnets[0].id],
    };
    plan.routers.push(RouterSpec {
        id: RouterId::from_bits(1),
        up: true,
        interfaces: vec![interface],
        gateway: None,
        routes: vec![],
        floating_ips: vec![],
    });
    let router = Place { namespace: bed.guests[1].path(), interface: GUEST.to_owned() };
    places.routers.insert(PortId::from_bits(9), router);
    assert_eq!(services.update(&plan, &places).await, Default::default());
    let default = format!("default via {}", link_local(mac(9)));
    shows(guest, &["-6", "route"], &default).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn iscs_client_gets_the_ports_address() {
    let bed = Bed::new(&["fd00:1::2/64"], &[mac(1)]);
    let net = net(Ipv6Mode::DhcpStateful);
    let ports = vec![port(1, &net, mac(1), "web", &["fd00:1::77"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(settings(), Told::with([]));
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (script, leases, pid, told) = (file("script"), file("leases"), file("pid"), file("told"));
    std::fs::write(&script, format!("#!/bin/sh\nenv >> {told}\nexit 0\n")).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let run = |further: &[&str]| {
        let options = ["-6", "-1", "-sf", &script, "-lf", &leases, "-pf", &pid];
        let all: Vec<&str> = options.into_iter().chain(further.iter().copied()).chain([GUEST]).collect();
        tokio::task::block_in_place(|| bed.guests[0].run("dhclient", &all));
        std::fs::read_to_string(&told).unwrap()
    };
    let bound = run(&[]);
    for line in
        ["new_ip6_address=fd00:1::77", "new_dhcp6_name_servers=fd00:1::2", "new_dhcp6_domain_search=demo.internal."]
    {
        assert!(bound.lines().any(|told| told == line), "{line} in\n{bound}");
    }
    // Giving back is answered, or the client would ask for minutes.
    let released = run(&["-r"]);
    assert!(released.contains("reason=RELEASE6"), "{released}");
}

#[tokio::test(flavor = "multi_thread")]
async fn iscs_client_gets_what_goes_with_an_address_of_its_own_making() {
    let bed = Bed::new(&["fd00:1::2/64"], &[mac(1)]);
    let net = net(Ipv6Mode::DhcpStateless);
    let ports = vec![port(1, &net, mac(1), "web", &["fd00:1::f816:3eff:fe00:1"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(settings(), Told::with([]));
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (script, leases, pid, told) = (file("script"), file("leases"), file("pid"), file("told"));
    std::fs::write(&script, format!("#!/bin/sh\nenv >> {told}\nexit 0\n")).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let options = ["-6", "-S", "-1", "-sf", &script, "-lf", &leases, "-pf", &pid, GUEST];
    tokio::task::block_in_place(|| bed.guests[0].run("dhclient", &options));
    let told = std::fs::read_to_string(&told).unwrap();
    assert!(told.contains("new_dhcp6_name_servers=fd00:1::2\n"), "{told}");
}
