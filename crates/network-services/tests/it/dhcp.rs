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
    // The answer went to this client alone, which did not have the address yet.
    let known = bed.side.run("ip", &["neigh", "show", "10.0.0.11"]);
    assert!(known.contains(&mac(1).to_string()), "{known}");
    // Somebody who is on the wire, and not in the plan.
    let stranger = ["udhcpc", "-i", GUEST, "-f", "-q", "-n", "-t", "2", "-T", "1", "-s", "/bin/true"];
    let output = tokio::task::block_in_place(|| bed.guests[1].try_run("busybox", &stranger));
    assert!(!output.status.success());
}

mod messages {
    //! What single messages are answered.

    use std::{net::Ipv4Addr, time::Duration};

    use dhcproto::{
        Decodable, Decoder, Encodable, Encoder,
        v4::{DhcpOption, Message, MessageType, OptionCode},
    };
    use nephos_network_services::{
        dhcp4::{Destination, Reply, answer},
        view::NetworkView,
    };

    use crate::plan::{mac, network, plan, port, subnet};

    fn view(dhcp: bool) -> NetworkView {
        let mut range = subnet(1, "10.0.0.0/24", Some("10.0.0.1"), "10.0.0.2");
        range.dhcp = dhcp;
        let net = network(1, "demo.internal", vec![range], &[]);
        let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
        NetworkView::all(&plan(vec![net], ports)).remove(0)
    }

    fn ask(
        view: &NetworkView,
        kind: MessageType,
        has: [u8; 4],
        options: Vec<DhcpOption>,
    ) -> Option<(MessageType, Reply)> {
        let mut message = Message::default();
        message.set_chaddr(&mac(1).bytes()).set_ciaddr(has);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option);
        }
        let mut bytes = vec![];
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        let reply = answer(view, Duration::from_secs(3600), &bytes)?;
        let decoded = Message::decode(&mut Decoder::new(&reply.message)).unwrap();
        let lease = decoded.opts().get(OptionCode::AddressLeaseTime).is_some();
        let kind = decoded.opts().msg_type().unwrap();
        assert_eq!(lease, !decoded.yiaddr().is_unspecified(), "an address goes with a lease");
        Some((kind, reply))
    }

    const NONE: [u8; 4] = [0; 4];
    const OWN: [u8; 4] = [10, 0, 0, 11];
    const OTHER: [u8; 4] = [10, 0, 0, 12];

    #[test]
    fn each_state_of_a_client_is_answered() {
        use DhcpOption::{RequestedIpAddress as Wanted, ServerIdentifier as Chosen};
        let view = view(true);
        let own = Ipv4Addr::from(OWN);
        let to = |kind, has, options| ask(&view, kind, has, options).map(|(kind, reply)| (kind, reply.to));
        let hardware = Destination::Hardware(mac(1), own);
        let request = MessageType::Request;
        // Discovering, also with a wish that cannot be met.
        assert_eq!(to(MessageType::Discover, NONE, vec![]), Some((MessageType::Offer, hardware)));
        assert_eq!(to(MessageType::Discover, NONE, vec![Wanted(OTHER.into())]), Some((MessageType::Offer, hardware)));
        assert_eq!(to(MessageType::Discover, NONE, vec![DhcpOption::RapidCommit]), Some((MessageType::Ack, hardware)));
        // Selecting: us, and another server.
        let (us, another) = (Chosen([10, 0, 0, 2].into()), Chosen([10, 0, 0, 3].into()));
        assert_eq!(to(request, NONE, vec![us, Wanted(own)]), Some((MessageType::Ack, hardware)));
        assert_eq!(to(request, NONE, vec![another, Wanted(own)]), None);
        // Rebooting, with the right address and with one from elsewhere.
        assert_eq!(to(request, NONE, vec![Wanted(own)]), Some((MessageType::Ack, hardware)));
        assert_eq!(to(request, NONE, vec![Wanted(OTHER.into())]), Some((MessageType::Nak, Destination::Broadcast)));
        // Renewing and rebinding: the answer is the same whoever gave the lease.
        assert_eq!(to(request, OWN, vec![]), Some((MessageType::Ack, Destination::Address(own))));
        assert_eq!(to(request, OTHER, vec![]), Some((MessageType::Nak, Destination::Broadcast)));
        assert_eq!(to(MessageType::Inform, OWN, vec![]), Some((MessageType::Ack, Destination::Address(own))));
        for kind in [MessageType::Decline, MessageType::Release, MessageType::Offer] {
            assert_eq!(to(kind, OWN, vec![]), None);
        }
    }

    #[test]
    fn a_range_without_dhcp_is_silent() {
        assert!(ask(&view(false), MessageType::Discover, NONE, vec![]).is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_outlives_who_gave_it_and_is_not_mixed_up_with_another_networks() {
    // The same range and the same MAC address, twice.
    let beds = [Bed::new(&["10.0.0.2/24"], &[mac(1)]), Bed::new(&["10.0.0.2/24"], &[mac(1)])];
    let range = || vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")];
    let nets = [network(1, "one.internal", range(), &[]), network(2, "two.internal", range(), &[])];
    let ports = vec![port(1, &nets[0], mac(1), "web", &["10.0.0.11"]), port(2, &nets[1], mac(1), "db", &["10.0.0.12"])];
    let places = places(&[(&beds[0], nets[0].id), (&beds[1], nets[1].id)]);
    let plan = plan(nets.into(), ports);
    for _ in 0..2 {
        let services = Services::new(settings(), Told::with([]));
        assert_eq!(services.update(&plan, &places).await, Default::default());
        let told =
            tokio::task::block_in_place(|| [udhcpc(&beds[0], 0, &[]), udhcpc(&beds[1], 0, &["-r", "10.0.0.12"])]);
        assert!(told[0].contains("ip=10.0.0.11\n") && told[0].contains("domain=one.internal\n"), "{}", told[0]);
        assert!(told[1].contains("ip=10.0.0.12\n") && told[1].contains("domain=two.internal\n"), "{}", told[1]);
        services.stop().await;
    }
}
