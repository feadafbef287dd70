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

mod messages {
    //! What single messages of DHCPv6 are answered.

    use std::{net::Ipv6Addr, time::Duration};

    use dhcproto::{
        Decodable, Decoder, Encodable, Encoder,
        v6::{DhcpOption, DhcpOptions, IAAddr, IANA, IAPD, Message, MessageType, OptionCode, Status},
    };
    use nephos_driver::network::Ipv6Mode;
    use nephos_network_services::{
        dhcp6::answer,
        view::{NetworkView, link_local},
    };

    use crate::plan::{mac, network, plan, port, subnet};

    const OWN: &str = "fd00:1::77";

    fn view() -> NetworkView {
        let mut range = subnet(1, "fd00:1::/64", None, "fd00:1::2");
        range.ipv6_mode = Some(Ipv6Mode::DhcpStateful);
        let net = network(1, "demo.internal", vec![range], &[]);
        let ports = vec![port(1, &net, mac(1), "web", &[OWN])];
        NetworkView::all(&plan(vec![net], ports)).remove(0)
    }

    fn identity(has: &[&str]) -> DhcpOption {
        let address = |address: &&str| {
            let addr = address.parse().unwrap();
            DhcpOption::IAAddr(IAAddr { addr, preferred_life: 0, valid_life: 0, opts: DhcpOptions::new() })
        };
        DhcpOption::IANA(IANA { id: 7, t1: 0, t2: 0, opts: has.iter().map(address).collect() })
    }

    fn ask_from(source: Ipv6Addr, kind: MessageType, options: Vec<DhcpOption>) -> Option<Message> {
        let mut message = Message::new(kind);
        let duid = [&[0, 3, 0, 1], mac(1).bytes().as_slice()].concat();
        message.opts_mut().insert(DhcpOption::ClientId(duid));
        for option in options {
            message.opts_mut().insert(option);
        }
        let mut bytes = vec![];
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let reply = answer(&view(), Duration::from_secs(1000), &bytes, source)?;
        let reply = Message::decode(&mut Decoder::new(&reply)).unwrap();
        assert_eq!(reply.xid(), message.xid());
        Some(reply)
    }

    fn ask(kind: MessageType, options: Vec<DhcpOption>) -> Option<Message> {
        ask_from(link_local(mac(1)), kind, options)
    }

    fn server() -> DhcpOption {
        let reply = ask(MessageType::Solicit, vec![]).unwrap();
        reply.opts().get(OptionCode::ServerId).unwrap().clone()
    }

    /// The addresses of the one identity association, and for how long.
    fn given(reply: &Message) -> Vec<(String, u32)> {
        let Some(DhcpOption::IANA(identity)) = reply.opts().get(OptionCode::IANA) else { panic!("{reply:?}") };
        let of = |option: &DhcpOption| match option {
            DhcpOption::IAAddr(address) => Some((address.addr.to_string(), address.valid_life)),
            _ => None,
        };
        identity.opts.iter().filter_map(of).collect()
    }

    fn status(options: &DhcpOptions) -> Option<Status> {
        match options.get(OptionCode::StatusCode) {
            Some(DhcpOption::StatusCode(code)) => Some(code.status),
            _ => None,
        }
    }

    #[test]
    fn each_message_of_a_client_is_answered() {
        use MessageType::{
            Advertise, Confirm, Decline, InformationRequest, Rebind, Release, Renew, Reply, Request, Solicit,
        };
        let own = vec![(OWN.to_owned(), 1000)];
        let found = ask(Solicit, vec![identity(&[])]).unwrap();
        assert_eq!((found.msg_type(), given(&found)), (Advertise, own.clone()));
        let rapid = ask(Solicit, vec![identity(&[]), DhcpOption::RapidCommit]).unwrap();
        assert_eq!((rapid.msg_type(), given(&rapid)), (Reply, own.clone()));
        assert!(rapid.opts().get(OptionCode::RapidCommit).is_some());
        for kind in [Request, Renew] {
            assert_eq!(given(&ask(kind, vec![server(), identity(&[OWN])]).unwrap()), own);
            assert!(ask(kind, vec![identity(&[OWN])]).is_none(), "which server?");
            assert!(ask(kind, vec![DhcpOption::ServerId(vec![0, 4, 1]), identity(&[OWN])]).is_none(), "another server");
        }
        // Another address is taken back.
        let moved = ask(Rebind, vec![identity(&["fd00:2::1"])]).unwrap();
        assert_eq!(given(&moved), [("fd00:2::1".to_owned(), 0), (OWN.to_owned(), 1000)]);
        for (has, expected) in [(OWN, Status::Success), ("fd00:2::1", Status::NotOnLink)] {
            assert_eq!(status(ask(Confirm, vec![identity(&[has])]).unwrap().opts()), Some(expected));
        }
        assert!(ask(Confirm, vec![identity(&[])]).is_none());
        for kind in [Release, Decline] {
            assert_eq!(status(ask(kind, vec![server(), identity(&[OWN])]).unwrap().opts()), Some(Status::Success));
        }
        let told = ask(InformationRequest, vec![]).unwrap();
        assert!(
            told.opts().get(OptionCode::DomainNameServers).is_some() && told.opts().get(OptionCode::IANA).is_none()
        );
        // No prefixes are given out.
        let delegation = DhcpOption::IAPD(IAPD { id: 1, t1: 0, t2: 0, opts: DhcpOptions::new() });
        let reply = ask(Solicit, vec![delegation]).unwrap();
        let Some(DhcpOption::IAPD(refused)) = reply.opts().get(OptionCode::IAPD) else { panic!("{reply:?}") };
        assert_eq!(status(&refused.opts), Some(Status::NoPrefixAvail));
    }

    #[test]
    fn a_client_is_known_by_its_identifier_if_its_address_does_not_say() {
        let made_otherwise = "fe80::1234".parse().unwrap();
        let reply = ask_from(made_otherwise, MessageType::Solicit, vec![identity(&[])]).unwrap();
        assert_eq!(given(&reply), [(OWN.to_owned(), 1000)]);
        let stranger = vec![0, 3, 0, 1, 2, 2, 2, 2, 2, 2];
        let mut message = Message::new(MessageType::Solicit);
        message.opts_mut().insert(DhcpOption::ClientId(stranger));
        let mut bytes = vec![];
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        assert_eq!(answer(&view(), Duration::from_secs(1000), &bytes, made_otherwise), None);
    }
}
