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

mod requests {
    //! What single requests are answered.

    use nephos_network_services::metadata::{Request, Response, Tokens, answer};
    use nephos_node_api::metadata::{AddressMetadata, AddressMode, SecurityGroupMetadata, ServerMetadata};
    use nephos_types::{Id, PortId, SecurityGroupId, SubnetId};
    use serde_json::{Value, json};

    use crate::plan::{KEY, server};

    fn told() -> ServerMetadata {
        let mut told = server(1, "web");
        let address = |subnet, address: &str, mode| AddressMetadata {
            subnet: SubnetId::from_bits(subnet),
            address: address.parse().unwrap(),
            mode,
            gateway: None,
            routes: vec![],
            dns_servers: vec![],
        };
        let mut fixed = address(1, "10.0.0.11/24", AddressMode::Static);
        fixed.gateway = Some("10.0.0.1".parse().unwrap());
        fixed.dns_servers = vec!["10.0.0.2".parse().unwrap()];
        told.interfaces[0].addresses = vec![fixed, address(2, "fd00::11/64", AddressMode::Slaac)];
        told.interfaces[0].public_addresses = vec!["203.0.113.7".parse().unwrap()];
        let group = SecurityGroupMetadata { id: SecurityGroupId::from_bits(5), name: "default".to_owned() };
        told.interfaces[0].security_groups = vec![group];
        told
    }

    fn get(told: &ServerMetadata, path: &str) -> Option<String> {
        let request = Request { method: "GET", path, ..Request::default() };
        match answer(told, PortId::from_bits(1), &Tokens::default(), request) {
            Response::Found { content, .. } => Some(content),
            _ => None,
        }
    }

    fn json(told: &ServerMetadata, path: &str) -> Value {
        serde_json::from_str(&get(told, path).unwrap()).unwrap()
    }

    #[test]
    fn ec2s_tree() {
        let told = told();
        let of = |path: &str| get(&told, &format!("/2009-04-04/meta-data/{path}")).unwrap();
        for name in ["instance-id", "network/", "placement/", "public-keys/", "security-groups"] {
            assert!(of("").lines().any(|line| line == name), "{name}");
        }
        assert!(!of("").ends_with('\n'));
        assert_eq!(of("public-keys/"), "0=laptop");
        assert_eq!(of("public-keys/0/"), "openssh-key");
        assert_eq!(of("public-keys/0/openssh-key"), KEY);
        assert_eq!((of("local-ipv4"), of("public-ipv4")), ("10.0.0.11".to_owned(), "203.0.113.7".to_owned()));
        let mac = of("network/interfaces/macs");
        let mac = mac.trim_end_matches('/');
        assert_eq!(of(&format!("network/interfaces/macs/{mac}/subnet-ipv4-cidr-block")), "10.0.0.0/24");
        assert_eq!(of(&format!("network/interfaces/macs/{mac}/ipv4-associations/203.0.113.7")), "10.0.0.11");
        assert_eq!(of(&format!("network/interfaces/macs/{mac}/security-group-ids")), "sg-00000000000000005");
        assert!(get(&told, "/").unwrap().lines().any(|version| version == "2021-03-23"));
        assert_eq!(get(&told, "/latest").unwrap(), "dynamic\nmeta-data\nuser-data");
        assert_eq!(get(&told, "/latest/dynamic/instance-identity").unwrap(), "document");
        assert_eq!(json(&told, "/latest/dynamic/instance-identity/document")["privateIp"], "10.0.0.11");
        for nothing in ["/1999-01-01/meta-data", "/latest/meta-data/nothing", "/latest/meta-data/instance-id/x", "/x"] {
            assert_eq!(get(&told, nothing), None, "{nothing}");
        }
        // Every leaf that is listed can be asked for, as crawlers do.
        fn crawl(told: &ServerMetadata, path: &str) -> usize {
            let listed = get(told, path).unwrap();
            let leaves = listed.lines().map(|line| match line.split_once('=') {
                Some((number, _)) => crawl(told, &format!("{path}{number}/")),
                None if line.ends_with('/') => crawl(told, &format!("{path}{line}")),
                None => usize::from(get(told, &format!("{path}{line}")).is_some()),
            });
            leaves.sum()
        }
        assert!(crawl(&told, "/latest/meta-data/") > 30);
    }

    #[test]
    fn open_stacks_documents() {
        let told = told();
        let versions = get(&told, "/openstack").unwrap();
        assert!(versions.lines().any(|version| version == "2018-08-27"), "{versions}");
        let meta_data = json(&told, "/openstack/2018-08-27/meta_data.json");
        assert_eq!(meta_data["uuid"], json!(told.id));
        assert_eq!(meta_data["public_keys"], json!({ "laptop": KEY }));
        assert_eq!(meta_data["meta"], json!({ "role": "web" }));
        let content = meta_data["files"][0]["content_path"].as_str().unwrap();
        assert_eq!(get(&told, &format!("/openstack{content}")).unwrap(), "hello\n");
        let network = json(&told, "/openstack/latest/network_data.json");
        assert_eq!(network["links"][0]["mtu"], 1450);
        assert_eq!(network["networks"][0]["type"], "ipv4");
        assert_eq!(network["networks"][0]["netmask"], "255.255.255.0");
        assert_eq!(
            network["networks"][0]["routes"],
            json!([{ "network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1" }])
        );
        assert_eq!(network["networks"][1]["type"], "ipv6_slaac");
        assert_eq!(json(&told, "/openstack/latest/vendor_data.json"), json!({}));
        assert_eq!(get(&told, "/openstack/latest/user_data"), told.user_data);
    }

    #[test]
    fn tokens_and_who_may_ask() {
        let mut told = told();
        let (port, tokens) = (PortId::from_bits(1), Tokens::default());
        let put = |seconds: Option<&'static [u8]>, forwarded| {
            let request =
                Request { method: "PUT", path: "/latest/api/token", token: None, token_seconds: seconds, forwarded };
            answer(&server(1, "web"), port, &tokens, request)
        };
        for seconds in [None, Some(b"0".as_slice()), Some(b"21601"), Some(b"x"), Some(b"-1")] {
            assert_eq!(put(seconds, false), Response::Refused(400));
        }
        assert_eq!(put(Some(b"60"), true), Response::Refused(403));
        let Response::Token { token, seconds: 60, hop_limit: 1 } = put(Some(b"60"), false) else { panic!("no token") };
        told.access.tokens_required = true;
        let ask = |told: &ServerMetadata, path: &str, token: Option<&[u8]>| {
            answer(told, port, &tokens, Request { method: "GET", path, token, ..Request::default() })
        };
        for path in ["/latest/user-data", "/openstack/latest/user_data"] {
            assert_eq!(ask(&told, path, None), Response::Refused(401));
            assert_eq!(ask(&told, path, Some(b"nonsense")), Response::Refused(401));
            assert!(matches!(ask(&told, path, Some(token.as_bytes())), Response::Found { .. }));
        }
        told.access.enabled = false;
        assert_eq!(ask(&told, "/latest/user-data", Some(token.as_bytes())), Response::Refused(403));
        let delete = Request { method: "DELETE", path: "/latest/user-data", ..Request::default() };
        assert_eq!(answer(&server(1, "web"), port, &tokens, delete), Response::Method("GET, HEAD"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_leaves_its_password_once_and_says_so_by_ipv6_too() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1)]);
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], &[]);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let told = Told::with([server(1, "web")]);
    let services = Services::new(Settings { forwarders: vec![], ..Settings::default() }, told.clone());
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    let url = format!("http://[fe80::a9fe:a9fe%25{GUEST}]/openstack/latest/password");
    let curl = |arguments: &[&str]| {
        let all: Vec<&str> = [
            "-s",
            "--retry",
            "20",
            "--retry-connrefused",
            "--retry-all-errors",
            "--max-time",
            "60",
            "-w",
            "%{http_code}",
            &url,
        ]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
        tokio::task::block_in_place(|| bed.guests[0].run("curl", &all))
    };
    assert_eq!(curl(&[]), "200");
    let long = "x".repeat(1021);
    assert!(curl(&["-d", &long]).ends_with("400"));
    assert_eq!(curl(&["-d", "c2VjcmV0"]), "200");
    assert!(curl(&["-d", "b3RoZXI="]).ends_with("409"));
    assert_eq!(curl(&[]), "c2VjcmV0200");
}

/// Both of its data sources, as they are; prints what they found.
const CRAWL: &str = r#"
import json, tempfile
from cloudinit import helpers
from cloudinit.sources.DataSourceEc2 import CloudNames, DataSourceEc2
from cloudinit.sources.helpers import openstack

url = "http://169.254.169.254"
stack = openstack.MetadataReader(url).read_v2()
network = openstack.convert_net_json(stack["networkdata"], known_macs={"fa:16:3e:00:00:01": "eth0"})
folder = tempfile.mkdtemp()
source = DataSourceEc2({}, None, helpers.Paths({"cloud_dir": folder, "run_dir": folder}))
source._cloud_name = CloudNames.AWS
source.metadata_urls = [url]
amazon = source.crawl_metadata()
print(json.dumps({"stack": stack, "network": network, "amazon": amazon, "token": bool(source._api_token)}, default=str))
"#;

/// What cloud-init itself makes of it. Left out, as it needs cloud-init's Python modules (Debian's package `cloud-init` and
/// what that depends on, installed, or unpacked and named by `PYTHONPATH`):
/// `cargo test -p nephos-network-services -- --ignored cloud_init`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs cloud-init"]
async fn cloud_init_crawls_both_forms() {
    let bed = Bed::new(&["10.0.0.2/24"], &[mac(1)]);
    let net = network(1, "demo.internal", vec![subnet(1, "10.0.0.0/24", None, "10.0.0.2")], &[]);
    let ports = vec![port(1, &net, mac(1), "web", &["10.0.0.11"])];
    let mut told = server(1, "web");
    told.access.tokens_required = false;
    told.interfaces[0].addresses = vec![nephos_node_api::metadata::AddressMetadata {
        subnet: net.subnets[0].id,
        address: "10.0.0.11/24".parse().unwrap(),
        mode: nephos_node_api::metadata::AddressMode::Static,
        gateway: Some("10.0.0.1".parse().unwrap()),
        routes: vec![],
        dns_servers: vec!["10.0.0.2".parse().unwrap()],
    }];
    let places = Places { networks: [(net.id, bed.place())].into(), ..Places::default() };
    let services = Services::new(Settings { forwarders: vec![], ..Settings::default() }, Told::with([told]));
    assert_eq!(services.update(&plan(vec![net], ports), &places).await, Default::default());
    ip(&format!("-n {} addr add 10.0.0.11/24 dev {GUEST}", bed.guests[0].0));
    ip(&format!("-n {} route add 169.254.169.254 via 10.0.0.2", bed.guests[0].0));
    let printed = tokio::task::block_in_place(|| bed.guests[0].run("/usr/bin/python3", &["-c", CRAWL]));
    let found: serde_json::Value = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let stack = &found["stack"];
    assert_eq!(stack["metadata"]["public_keys"]["laptop"], KEY, "{found:#}");
    assert_eq!(stack["metadata"]["local-hostname"], "web.demo.internal");
    assert!(stack["userdata"].as_str().unwrap().contains("runcmd"));
    assert!(stack["files"]["/etc/motd"].as_str().unwrap().contains("hello"));
    assert_eq!(stack["ec2-metadata"]["instance-id"], "i-00000000000000001");
    assert_eq!(found["network"]["config"][0]["subnets"][0]["address"], "10.0.0.11");
    assert_eq!(found["token"], true);
    let amazon = &found["amazon"];
    assert_eq!(amazon["meta-data"]["public-keys"]["laptop"], KEY, "{amazon:#}");
    assert_eq!(amazon["meta-data"]["local-hostname"], "web.demo.internal");
    assert_eq!(amazon["dynamic"]["instance-identity"]["document"]["region"], "home");
    assert!(amazon["user-data"].as_str().unwrap().contains("runcmd"));
}
