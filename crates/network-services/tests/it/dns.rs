//! DNS by dig.

use nephos_network_services::{Places, Services, Settings};

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
