//! Security groups, and servers that lie about who they are.

use nephos_driver::network::{Direction, NetworkDriver, RulePeer, RuleProtocol};
use nephos_types::Cidr;

use crate::lab::{
    IMPATIENT, Lab, PATIENT, carries, connect, group, introduce, is_cut_off, listen, network, ping_from_anywhere,
    reaches, rule, run, try_run,
};

fn tcp(port: u16, peer: RulePeer) -> nephos_driver::network::SecurityRule {
    rule(Direction::Ingress, RuleProtocol::Tcp { ports: Some((port, port)) }, peer)
}

#[tokio::test]
async fn what_a_rule_allows_passes_and_its_answers_do_and_its_removal_cuts_what_lives() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let net = network(100, "10.0.0.0/24");
    let (client, server) = (group(vec![]), group(vec![tcp(80, RulePeer::Any)]));
    let a = machine.guest(&net, "10.0.0.11", &[&client]);
    let b = machine.guest(&net, "10.0.0.12", &[&server]);
    machine.apply().await;
    let (allowed, refused) = (listen(&b, 80), listen(&b, 81));
    let at_a = connect(&a, "10.0.0.12:80", PATIENT).unwrap();
    let (at_b, _) = allowed.accept().unwrap();
    assert!(carries(&at_a, &at_b, PATIENT) && carries(&at_b, &at_a, PATIENT));
    connect(&a, "10.0.0.12:81", IMPATIENT).unwrap_err();
    assert!(is_cut_off(&a, "10.0.0.12"));
    // The client's group lets nothing in.
    let _listener = listen(&a, 80);
    connect(&b, "10.0.0.11:80", IMPATIENT).unwrap_err();
    drop(refused);

    let rules = machine.group_of(&server).rules.clone();
    machine.group_of(&server).rules.retain(|rule| rule.direction == Direction::Egress);
    machine.apply().await;
    // Neither the client nor the server, which may send anything, keeps it alive.
    assert!(!carries(&at_b, &at_a, IMPATIENT));
    assert!(!carries(&at_a, &at_b, IMPATIENT));
    let before = machine.driver.changes();
    machine.apply().await;
    assert_eq!(machine.driver.changes(), before);
    machine.group_of(&server).rules = rules;
    machine.apply().await;
    // What was sent meanwhile is sent again.
    assert!(carries(&at_a, &at_b, PATIENT) && carries(&at_b, &at_a, PATIENT));
}

#[tokio::test]
async fn a_rule_for_a_group_follows_its_members() {
    let lab = Lab::new();
    let mut machine = lab.machine(1);
    let net = network(100, "10.0.0.0/24");
    let clients = group(vec![]);
    let server = group(vec![rule(Direction::Ingress, RuleProtocol::Any, RulePeer::Group { id: clients.id })]);
    let a = machine.guest(&net, "10.0.0.11", &[&clients]);
    let c = machine.guest(&net, "10.0.0.13", &[&clients]);
    machine.guest(&net, "10.0.0.12", &[&server]);
    machine.group_of(&clients).members = vec!["10.0.0.11/32".parse().unwrap()];
    machine.apply().await;
    assert!(reaches(&a, "10.0.0.12"));
    assert!(is_cut_off(&c, "10.0.0.12"));
    machine.group_of(&clients).members = vec!["10.0.0.13/32".parse::<Cidr>().unwrap()];
    machine.apply().await;
    assert!(is_cut_off(&a, "10.0.0.12"));
    assert!(reaches(&c, "10.0.0.12"));
}

#[tokio::test]
async fn a_server_cannot_be_another_one() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    let net = network(100, "10.0.0.0/24");
    let open = group(vec![ping_from_anywhere()]);
    let liar = one.guest(&net, "10.0.0.11", &[&open]);
    one.guest(&net, "10.0.0.12", &[&open]);
    two.guest(&net, "10.0.0.13", &[&open]);
    introduce(&mut [&mut one, &mut two]);
    one.apply().await;
    two.apply().await;
    let mac = one.plan.ports[0].mac;
    for to in ["10.0.0.12", "10.0.0.13"] {
        assert!(reaches(&liar, to));
    }
    run(&liar, "ip addr add 10.0.0.99/24 dev eth0");
    for to in ["10.0.0.12", "10.0.0.13"] {
        assert!(!try_run(&liar, &format!("ping -n -c 3 -i 0.2 -W 1 -I 10.0.0.99 {to}")).status.success());
    }
    // Nobody believes that it has the address: who asks for it hears nothing.
    let honest = one.settings.folder.join(format!("guest-{}", one.plan.ports[1].id));
    assert!(is_cut_off(&honest, "10.0.0.99"));
    assert!(!run(&honest, "ip neigh show 10.0.0.99").contains("lladdr"));
    run(&liar, "ip addr del 10.0.0.99/24 dev eth0; ip link set eth0 address 02:00:00:00:00:99");
    assert!(is_cut_off(&liar, "10.0.0.12"));
    run(
        &liar,
        &format!("ip link set eth0 address {mac}; ip neigh flush dev eth0; ip route replace default via 10.0.0.1"),
    );
    assert!(reaches(&liar, "10.0.0.12"));
    // Without port security it may be whom it likes.
    one.plan.ports[0].port_security = false;
    one.apply().await;
    run(&liar, "ip addr add 10.0.0.99/24 dev eth0");
    assert!(try_run(&liar, "ping -n -c 1 -i 0.5 -w 60 -I 10.0.0.99 10.0.0.12").status.success());
    // But not to those who serve it.
    assert!(reaches(&liar, "169.254.169.254"));
    assert!(!try_run(&liar, "ping -n -c 3 -i 0.2 -W 1 -I 10.0.0.99 169.254.169.254").status.success());
}

#[tokio::test]
async fn guests_are_served_by_their_own_node_wherever_they_send_their_questions() {
    let lab = Lab::new();
    let (mut one, mut two) = (lab.machine(1), lab.machine(2));
    let net = network(100, "10.0.0.0/24");
    // No group at all: nothing passes but this.
    let a = one.guest(&net, "10.0.0.11", &[]);
    let b = two.guest(&net, "10.0.0.12", &[]);
    introduce(&mut [&mut one, &mut two]);
    one.apply().await;
    two.apply().await;
    for guest in [&a, &b] {
        assert!(reaches(guest, "169.254.169.254"));
        assert!(reaches(guest, "10.0.0.2"));
    }
    // By a gateway that is not there, as guests without a route of their own do.
    run(&a, "ip route del 169.254.169.254; ip neigh replace 10.0.0.1 lladdr 02:00:00:00:00:77 dev eth0");
    assert!(reaches(&a, "169.254.169.254"));
    let (path, interface) = one.driver.service_namespace(net.id).unwrap();
    let link = run(&path, &format!("ip addr show {interface}"));
    assert!(link.contains("10.0.0.2/24") && link.contains("fe80::a9fe:a9fe/64"), "{link}");
    // The other node's services are not seen: all of one's neighbours there are one's own guests.
    assert!(!run(&path, "ip neigh").contains("10.0.0.12"));
    assert_eq!(one.driver.service_namespace(nephos_types::NetworkId::new()).unwrap_err().code, "network_not_found");
}
