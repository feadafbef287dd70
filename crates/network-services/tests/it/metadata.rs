//! Metadata by curl.

use nephos_network_services::{Places, Services, Settings};

use crate::{
    bed::{Bed, GUEST, ip},
    plan::{KEY, Told, mac, network, plan, port, server, subnet},
};

const URL: &str = "http://169.254.169.254";

#[tokio::test(flavor = "multi_thread")]
async fn curl_finds_out_who_it_is() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1), mac(2)]);
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], &[]);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"]), port(2, &net, mac(2), "db", &["10.0.0.12"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(
        Settings { forwarders: vec![], ..Settings::default() },
        Told::with([server(1, "web"), server(2, "db")]),
    );
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    for (guest, address) in ["10.0.0.11", "10.0.0.12"].iter().enumerate() {
        ip(&format!("-n {} addr add {address}/24 dev {GUEST}", bed.guests[guest].0));
        ip(&format!("-n {} route add 169.254.169.254 via 10.0.0.2", bed.guests[guest].0));
    }
    let curl = |guest: usize, arguments: &[&str]| {
        let all: Vec<&str> = ["-s", "--max-time", "60"].into_iter().chain(arguments.iter().copied()).collect();
        tokio::task::block_in_place(|| bed.guests[guest].run("curl", &all))
    };
    let get = |guest: usize, path: &str| curl(guest, &[&format!("{URL}{path}")]);
    assert_eq!(get(0, "/latest/meta-data/local-hostname"), "web.demo.internal");
    assert_eq!(get(1, "/latest/meta-data/local-hostname"), "db.demo.internal");
    assert_eq!(get(0, "/latest/meta-data/public-keys/0/openssh-key"), KEY);
    let found: serde_json::Value = serde_json::from_str(&get(0, "/openstack/latest/meta_data.json")).unwrap();
    assert_eq!(found["hostname"], "web.demo.internal");
    assert_eq!(get(0, "/latest/user-data"), "#cloud-config\nruncmd: [true]\n");

    let token =
        curl(0, &["-X", "PUT", "-H", "X-aws-ec2-metadata-token-ttl-seconds: 60", &format!("{URL}/latest/api/token")]);
    let shown = format!("X-aws-ec2-metadata-token: {token}");
    let id = format!("{URL}/latest/meta-data/instance-id");
    assert_eq!(curl(0, &["-H", &shown, &id]), "i-00000000000000001");
    assert_eq!(curl(1, &["-o", "/dev/null", "-w", "%{http_code}", "-H", &shown, &id]), "401", "somebody else's token");
}
