//! A network with one guest, `fa:16:3e:00:00:01`.

use nephos_driver::network::NetworkPlan;
use nephos_network_services::view::NetworkView;

const PLAN: &str = r#"{
  "networks": [{
    "id": "net-0000000000001", "segment": { "type": "vxlan", "vni": 1 }, "mtu": 1450, "dns_domain": "demo.internal",
    "names": [{ "name": "web", "addresses": ["10.0.0.11", "fd00::11"] }], "remote": [],
    "subnets": [
      { "id": "sub-0000000000001", "cidr": "10.0.0.0/24", "gateway": "10.0.0.1", "service": "10.0.0.2", "dhcp": true,
        "dns_servers": [], "host_routes": [], "ipv6_mode": null },
      { "id": "sub-0000000000002", "cidr": "fd00::/64", "gateway": null, "service": "fd00::2", "dhcp": true,
        "dns_servers": [], "host_routes": [], "ipv6_mode": "dhcp_stateful" }
    ]
  }],
  "ports": [{
    "id": "port-0000000000001", "network": "net-0000000000001", "server": "srv-0000000000001", "host_name": "web",
    "mac": "fa:16:3e:00:00:01", "attachment": { "type": "tap" }, "allowed_pairs": [], "port_security": true,
    "security_groups": [], "up": true, "send_limit": null, "receive_limit": null,
    "addresses": [
      { "subnet": "sub-0000000000001", "address": "10.0.0.11" }, { "subnet": "sub-0000000000002", "address": "fd00::11" }
    ]
  }],
  "security_groups": [], "routers": []
}"#;

pub(crate) fn view() -> NetworkView {
    let plan: NetworkPlan = serde_json::from_str(PLAN).expect("the plan is one");
    NetworkView::all(&plan).remove(0)
}
