//! Whatever guests send: no panic, no more than bounded answers, and nobody is told of another's network.

use std::{net::IpAddr, time::Duration};

use dhcproto::{Encodable, Encoder, v4, v6};
use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RecordType},
};
use nephos_network_services::{
    advertise::is_solicitation,
    dhcp4, dhcp6,
    dns::{self, Answer, Transport},
    metadata::{self, Request, Response, Tokens},
    view::link_local,
};
use nephos_types::{Id, PortId};
use proptest::prelude::*;

use crate::plan::{mac, server};

/// The fuzz targets' network.
#[path = "../../../../fuzz/fuzz_targets/network/mod.rs"]
mod network;
use network::view;

const LEASE: Duration = Duration::from_secs(3600);

/// A message that is understood, so that changes of it get further than noise.
fn discover() -> Vec<u8> {
    let mut message = v4::Message::default();
    message.set_chaddr(&mac(1).bytes());
    message.opts_mut().insert(v4::DhcpOption::MessageType(v4::MessageType::Discover));
    message.opts_mut().insert(v4::DhcpOption::ClientIdentifier(vec![1; 7]));
    message.opts_mut().insert(v4::DhcpOption::RequestedIpAddress([10, 0, 0, 11].into()));
    let mut bytes = vec![];
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn solicit() -> Vec<u8> {
    let mut message = v6::Message::new(v6::MessageType::Solicit);
    message.opts_mut().insert(v6::DhcpOption::ClientId(vec![0, 3, 0, 1, 2, 3, 4, 5, 6, 7]));
    let identity = v6::IANA { id: 1, t1: 0, t2: 0, opts: v6::DhcpOptions::new() };
    message.opts_mut().insert(v6::DhcpOption::IANA(identity));
    let mut bytes = vec![];
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

/// Noise, or a message with some of its bytes changed, and cut off somewhere.
fn bytes(message: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let length = message.len();
    let changed =
        (proptest::collection::vec((0..length, any::<u8>()), 0..6), 0..=length).prop_map(move |(changes, end)| {
            let mut message = message.clone();
            for (place, byte) in changes {
                message[place] = byte;
            }
            message.truncate(end.max(length / 2));
            message
        });
    prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), changed]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn dhcp(bytes in bytes(discover())) {
        if let Some(reply) = dhcp4::answer(&view(), LEASE, &bytes) {
            prop_assert!(reply.message.len() <= 1200);
        }
    }

    #[test]
    fn dhcpv6(bytes in bytes(solicit())) {
        for source in [link_local(mac(1)), "fe80::1".parse().unwrap()] {
            if let Some(reply) = dhcp6::answer(&view(), LEASE, &bytes, source) {
                prop_assert!(reply.len() <= 3000);
            }
        }
    }

    #[test]
    fn questions(bytes in bytes(question("web.demo.internal.", RecordType::A))) {
        if let Some(Answer::Message(reply)) = dns::answer(view().zone(), &bytes, Transport::Udp) {
            prop_assert!(reply.len() <= 1232);
        }
        let _ = dns::answer(view().zone(), &bytes, Transport::Tcp);
    }

    #[test]
    fn solicitations(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = is_solicitation(&bytes);
    }

    #[test]
    fn requests(path in "(/(latest|openstack|meta-data|[a-z%0-9./=]{0,12})){0,6}", method in "(GET|PUT|POST|HEAD|X)", token in any::<Option<Vec<u8>>>()) {
        let tokens = Tokens::default();
        let request = Request { method: &method, path: &path, token: token.as_deref(), token_seconds: token.as_deref(), forwarded: false };
        let response = metadata::answer(&server(1, "web"), PortId::from_bits(1), &tokens, request);
        // What is no token opens nothing.
        if token.is_some() && !path.ends_with("token") {
            prop_assert!(matches!(response, Response::Refused(_)), "{response:?}");
        }
    }
}

#[test]
fn the_seeds_are_understood() {
    assert!(dhcp4::answer(&view(), LEASE, &discover()).is_some());
    assert!(dhcp6::answer(&view(), LEASE, &solicit(), link_local(mac(1))).is_some());
    assert!(dns::answer(view().zone(), &question("web.demo.internal.", RecordType::A), Transport::Udp).is_some());
    assert!(is_solicitation(&[133, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 1]));
    assert!(!is_solicitation(&[133, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 1]), "an option without length");
    assert!(!is_solicitation(&[134, 0, 0, 0, 0, 0, 0, 0]));
    // A status code without room for one, which the library would read all the same.
    let short = [11, 1, 2, 3, 0, 13, 0, 0, 0x6d];
    assert!(dhcp6::answer(&view(), LEASE, &short, link_local(mac(1))).is_some());
    // Likewise an option of DHCP: a full name that is shorter than what goes before it.
    let mut message = discover();
    message.splice(240..240, [81, 0]);
    assert!(dhcp4::answer(&view(), LEASE, &message).is_some());
    // The length of the hardware address, which the library would trust.
    let mut message = discover();
    message[2] = 200;
    assert_eq!(dhcp4::answer(&view(), LEASE, &message), None);
}

#[test]
fn what_dns_says() {
    let ask = |name: &str, kind| match dns::answer(view().zone(), &question(name, kind), Transport::Udp) {
        Some(Answer::Message(bytes)) => Some(Message::from_vec(&bytes).unwrap()),
        Some(Answer::Elsewhere(_)) => None,
        None => panic!("{name} is not answered"),
    };
    let code = |name: &str, kind| ask(name, kind).map(|message| message.metadata.response_code.to_string());
    // There is such a name, without such a record; there is none; it leads to others.
    let empty = ask("web.demo.internal.", RecordType::TXT).unwrap();
    assert!(empty.answers.is_empty() && empty.authorities.len() == 1 && empty.metadata.authoritative);
    assert_eq!(code("db.demo.internal.", RecordType::A).unwrap(), "Non-Existent Domain");
    assert_eq!(code("demo.internal.", RecordType::A).unwrap(), "No Error");
    assert_eq!(code("12.0.0.10.in-addr.arpa.", RecordType::PTR).unwrap(), "Non-Existent Domain");
    assert_eq!(code("0.0.10.in-addr.arpa.", RecordType::PTR).unwrap(), "No Error");
    // Others' names are others' business.
    for name in ["example.org.", "web.other.internal.", "xdemo.internal.", "1.1.0.10.in-addr.arpa.", "internal."] {
        assert_eq!(code(name, RecordType::A), None, "{name}");
    }
    let refused = Message::from_vec(
        &dns::reply(&Message::query(), Err(hickory_proto::op::ResponseCode::Refused), Transport::Udp).unwrap(),
    );
    assert!(refused.is_ok());
}

#[test]
fn who_asks_is_known_by_the_address() {
    let view = view();
    assert_eq!(view.port_at(IpAddr::from([10, 0, 0, 11])).map(|port| port.id), Some(PortId::from_bits(1)));
    assert_eq!(view.port_at(link_local(mac(1)).into()).map(|port| port.id), Some(PortId::from_bits(1)));
    assert_eq!(view.port_at(IpAddr::from([10, 0, 0, 12])), None);
}
