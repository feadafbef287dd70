//! DNS by dig.

use std::{
    io::{Read, Write},
    net::SocketAddr,
};

use hickory_proto::{
    op::{Message, Query},
    rr::{Name, RData, Record, RecordType, rdata::A},
};
use nephos_network_services::{Places, Services, Settings};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};

use crate::{
    bed::{Bed, GUEST, ip},
    plan::{Told, mac, network, plan, port, subnet},
};

#[tokio::test(flavor = "multi_thread")]
async fn dig_resolves_the_networks_names_both_ways() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1)]);
    let names: &[(&str, &[&str])] = &[("web", &["10.0.0.11", "fd00::11"]), ("db", &["10.0.0.12"])];
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], names);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(Settings { forwarders: vec![], ..Settings::default() }, Told::with([]));
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    ip(&format!("-n {} addr add 10.0.0.11/24 dev {GUEST}", bed.guests[0].0));
    let dig = |arguments: &[&str]| {
        let all: Vec<&str> = ["@10.0.0.2", "+tries=3"].into_iter().chain(arguments.iter().copied()).collect();
        tokio::task::block_in_place(|| bed.guests[0].run("dig", &all))
    };
    for transport in ["+notcp", "+tcp"] {
        assert_eq!(dig(&[transport, "+short", "web.demo.internal", "A"]), "10.0.0.11\n");
        assert_eq!(dig(&[transport, "+short", "WEB.Demo.Internal", "AAAA"]), "fd00::11\n");
        assert_eq!(dig(&[transport, "+short", "-x", "10.0.0.12"]), "db.demo.internal.\n");
    }
    let nothing = dig(&["nobody.demo.internal"]);
    assert!(nothing.contains("status: NXDOMAIN") && nothing.contains("SOA"), "{nothing}");
    let refused = dig(&["example.org"]);
    assert!(refused.contains("status: REFUSED"), "{refused}");
}

/// A DNS server as the operator would have: one name, with an answer that is too long for a datagram.
async fn somebody_else() -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 2000];
        loop {
            let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
            udp.send_to(&long_answer(&buffer[..length]), from).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let mut question = vec![0; stream.read_u16().await.unwrap().into()];
            stream.read_exact(&mut question).await.unwrap();
            let answer = long_answer(&question);
            stream.write_u16(answer.len().try_into().unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    address
}

/// More than fit into 1,232 bytes.
const ANSWERS: u8 = 100;

fn long_answer(question: &[u8]) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let name = question.queries[0].name.clone();
    let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
    answer.add_queries(question.queries);
    for number in 0..ANSWERS {
        answer.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, number))));
    }
    answer.to_vec().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_the_networks_own_is_asked_of_others_and_only_for_its_guests() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1), mac(2)]);
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], &[]);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let settings = Settings { forwarders: vec![somebody_else().await], ..Settings::default() };
    let services = Services::new(settings, Told::with([]));
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    ip(&format!("-n {} addr add 10.0.0.11/24 dev {GUEST}", bed.guests[0].0));
    ip(&format!("-n {} addr add 10.0.0.12/24 dev {GUEST}", bed.guests[1].0));
    let dig = |arguments: &[&str]| {
        let all: Vec<&str> = ["@10.0.0.2", "+tries=3"].into_iter().chain(arguments.iter().copied()).collect();
        tokio::task::block_in_place(|| bed.guests[0].run("dig", &all))
    };
    let cut = dig(&["+ignore", "example.org"]);
    assert!(cut.contains(" tc ") && cut.contains("ANSWER: 0"), "{cut}");
    let whole = dig(&["+short", "example.org"]);
    assert_eq!(whole.lines().count(), usize::from(ANSWERS), "asked again by TCP");
    // On the same wire, and none of the network's ports.
    let stranger = ["@10.0.0.2", "+tries=1", "+time=2", "example.org"];
    let output = tokio::task::block_in_place(|| bed.guests[1].try_run("dig", &stranger));
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_elsewhere_do_not_interrupt() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1)]);
    let names: &[(&str, &[&str])] = &[("web", &["10.0.0.11"])];
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], names);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let other_bed = Bed::new(&["10.0.0.2/24"], &[]);
    let other = network(2, "other.internal", vec![subnet(2, "10.0.0.0/24", None, "10.0.0.2")], &[]);
    let places =
        Places { networks: [(net.id, bed.place()), (other.id, other_bed.place())].into(), ..Places::default() };
    let services = Services::new(Settings { forwarders: vec![], ..Settings::default() }, Told::with([]));
    let mut now = plan(vec![net, other], ports);
    assert_eq!(services.update(&now, &places).await, Default::default());
    ip(&format!("-n {} addr add 10.0.0.11/24 dev {GUEST}", bed.guests[0].0));
    // One connection, in which one question after the other is asked, while everything changes around it.
    let (asked, mut progress) = tokio::sync::mpsc::unbounded_channel();
    let path = bed.guests[0].path();
    let guest = std::thread::spawn(move || {
        nix::sched::setns(std::fs::File::open(path).unwrap(), nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut stream = std::net::TcpStream::connect("10.0.0.2:53").unwrap();
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii("web.demo.internal.").unwrap(), RecordType::A));
        let question = question.to_vec().unwrap();
        for _ in 0..40 {
            stream.write_all(&u16::try_from(question.len()).unwrap().to_be_bytes()).unwrap();
            stream.write_all(&question).unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut answer = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
            asked.send(()).unwrap();
        }
    });
    let mut round = 0_u8;
    while progress.recv().await.is_some() {
        round += 1;
        now.networks[0].names[0].addresses = vec![std::net::IpAddr::from([10, 0, 0, round])];
        now.networks.truncate(1);
        assert_eq!(services.update(&now, &places).await, Default::default());
        now.networks.push(network(2, "other.internal", vec![subnet(2, "10.0.0.0/24", None, "10.0.0.2")], &[]));
        assert_eq!(services.update(&now, &places).await, Default::default());
    }
    guest.join().unwrap();
    assert_eq!(round, 40);
    // A place that is gone is told, and does not keep the others from being served.
    let mut gone = places.clone();
    gone.networks.get_mut(&now.networks[1].id).unwrap().interface = "nowhere".to_owned();
    let troubles = services.update(&now, &gone).await;
    assert_eq!(troubles.networks.iter().map(|trouble| trouble.id).collect::<Vec<_>>(), [now.networks[1].id]);
    assert_eq!(services.update(&now, &places).await, Default::default());
}
