//! What a server's first-boot software finds on its configuration drive: who it is, its keys, its network, files, and
//! what its owner (user data) and the operator (vendor data) want done.
//!
//! In one of the two formats of the field: NoCloud
//! (<https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html>) or OpenStack
//! (<https://docs.openstack.org/nova/latest/user/config-drive.html>). A drive has one: cloud-init takes NoCloud where it
//! finds both, and Windows' cloudbase-init only knows the other.
//!
//! JSON is YAML: what is YAML by its format is written as JSON, whose writer keeps names and keys from becoming syntax.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nephos_driver::ConfigFile;
use nephos_node_api::WantedInterface;
use nephos_types::{ProjectId, ServerId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Server;

/// How a configuration drive is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriveFormat {
    /// cloud-init's own.
    #[default]
    NoCloud,
    /// OpenStack's.
    OpenStack,
}

impl DriveFormat {
    pub(crate) fn of(open_stack: bool) -> Self {
        if open_stack { Self::OpenStack } else { Self::NoCloud }
    }
}

/// Whom the drive is for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipient<'a> {
    /// The server's id.
    pub(crate) id: ServerId,
    /// Its project.
    pub(crate) project: Option<ProjectId>,
    /// What the operator wants done in every server.
    pub(crate) vendor_data: Option<&'a str>,
}

/// The files of a server's drive.
pub(crate) fn files(server: &Server, recipient: Recipient<'_>) -> Vec<ConfigFile> {
    match server.drive_format {
        DriveFormat::NoCloud => no_cloud(server, recipient),
        DriveFormat::OpenStack => open_stack(server, recipient),
    }
}

fn file(path: impl Into<String>, content: impl ToString) -> ConfigFile {
    ConfigFile { path: path.into(), content: content.to_string() }
}

fn macs(server: &Server) -> Vec<String> {
    let mac = |interface| match interface {
        WantedInterface::User { mac, .. } => mac,
        WantedInterface::Port { mac, .. } => mac.to_string(),
    };
    server.interfaces().into_iter().map(mac).collect()
}

fn no_cloud(server: &Server, recipient: Recipient<'_>) -> Vec<ConfigFile> {
    let quoted = |text: &str| Value::from(text).to_string();
    let mut meta_data = format!("instance-id: {}\nlocal-hostname: {}\n", recipient.id, quoted(&server.hostname));
    if !server.public_keys.is_empty() {
        meta_data.push_str("public-keys:\n");
        for key in &server.public_keys {
            meta_data.push_str(&format!("  - {}\n", quoted(key)));
        }
    }
    if !server.metadata.is_empty() {
        meta_data.push_str(&format!("meta: {}\n", json!(server.metadata)));
    }
    let mut drive = vec![
        file("meta-data", meta_data),
        file("user-data", server.user_data.as_deref().unwrap_or_default()),
        file("network-config", format!("{}\n", network_config(&macs(server)))),
    ];
    drive.extend(vendor_data(server, recipient.vendor_data).map(|content| file("vendor-data", content)));
    drive
}

/// Writes the server's files at its first boot, as early as cloud-init writes any. A line for each follows, then [`WRITTEN`].
const WRITE_FILES: &str = r#"#cloud-boothook
#!/bin/sh
# Files that the cloud was given for this server; in base64, path and content of each. They are written once.
written=/var/lib/cloud/instance/sem/given_files
[ ! -e $written ] || exit 0
write_given_file() {
    path=$(echo "$1" | base64 -d)
    mkdir -p "${path%/*}/"
    echo "$2" | base64 -d > "$path"
}
"#;
const WRITTEN: &str = "touch $written\n";

/// What the operator wants, and the server's files, which NoCloud has no other place for: vendor data. As a script, because of
/// a list `write_files` in vendor data nothing is left where user data has one, too.
fn vendor_data(server: &Server, of_the_operator: Option<&str>) -> Option<String> {
    if server.files.is_empty() {
        return of_the_operator.map(str::to_owned);
    }
    let line = |(path, content): &(String, String)| {
        format!("write_given_file {} {}\n", STANDARD.encode(path), STANDARD.encode(content))
    };
    let script = format!("{WRITE_FILES}{}{WRITTEN}", server.files.iter().map(line).collect::<String>());
    let Some(of_the_operator) = of_the_operator else { return Some(script) };
    let parts = json!([{ "content": of_the_operator }, { "content": script }]);
    Some(format!("#cloud-config-archive\n{parts}\n"))
}

/// Version 2, <https://cloudinit.readthedocs.io/en/latest/reference/network-config-format-v2.html>: addresses by DHCP, and
/// the system's own names for interfaces.
fn network_config(macs: &[String]) -> Value {
    let interface = |mac: &String| json!({ "match": { "macaddress": mac }, "dhcp4": true });
    let interfaces: serde_json::Map<String, Value> =
        macs.iter().enumerate().map(|(place, mac)| (format!("nic{place}"), interface(mac))).collect();
    json!({ "version": 2, "ethernets": interfaces })
}

fn open_stack(server: &Server, recipient: Recipient<'_>) -> Vec<ConfigFile> {
    let keys: Vec<(String, &String)> = match &server.keypair {
        Some(name) => server.public_keys.iter().map(|key| (name.to_string(), key)).collect(),
        None => server.public_keys.iter().enumerate().map(|(place, key)| (format!("key-{place}"), key)).collect(),
    };
    let public_keys: serde_json::Map<String, Value> =
        keys.iter().map(|(name, key)| (name.clone(), Value::from(key.as_str()))).collect();
    let listed: Vec<Value> =
        keys.iter().map(|(name, key)| json!({ "data": key, "name": name, "type": "ssh" })).collect();
    let content = |place: usize| format!("content/{place:04}");
    let listed_files: Vec<Value> = server
        .files
        .iter()
        .enumerate()
        .map(|(place, (path, _))| json!({ "content_path": format!("/{}", content(place)), "path": path }))
        .collect();
    let meta_data = json!({
        "availability_zone": "nova",
        "files": listed_files,
        "hostname": server.hostname,
        "keys": listed,
        "launch_index": 0,
        "meta": server.metadata,
        "name": server.hostname,
        "project_id": recipient.project,
        "public_keys": public_keys,
        "uuid": recipient.id,
    });
    let macs = macs(server);
    let links: Vec<Value> = macs
        .iter()
        .enumerate()
        .map(|(place, mac)| json!({ "ethernet_mac_address": mac, "id": format!("nic{place}"), "mtu": null, "type": "phy" }))
        .collect();
    let networks: Vec<Value> = (0..macs.len())
        .map(|place| json!({ "id": format!("network{place}"), "link": format!("nic{place}"), "network_id": "", "type": "ipv4_dhcp" }))
        .collect();
    let network_data = json!({ "links": links, "networks": networks, "services": [] });
    // As cloud-init takes it out of what may be for other software, too.
    let vendor_data = recipient.vendor_data.map_or_else(|| json!({}), |content| json!({ "cloud-init": content }));
    let mut drive = vec![
        file("openstack/latest/meta_data.json", meta_data),
        file("openstack/latest/network_data.json", network_data),
        file("openstack/latest/vendor_data.json", vendor_data),
    ];
    drive.extend(server.user_data.as_ref().map(|content| file("openstack/latest/user_data", content)));
    let contents = server.files.iter().enumerate();
    drive.extend(contents.map(|(place, (_, text))| file(format!("openstack/{}", content(place)), text)));
    drive
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use nephos_types::Id;

    use super::*;
    use crate::compute::server::workflows::a_server;

    const KEY: &str = "ssh-ed25519 AAAAC3Nz me: \"home\"";

    fn drive(server: &Server, vendor_data: Option<&str>) -> BTreeMap<String, String> {
        let recipient = Recipient { id: ServerId::from_bits(1), project: Some(ProjectId::from_bits(2)), vendor_data };
        files(server, recipient).into_iter().map(|file| (file.path, file.content)).collect()
    }

    fn json(text: &str) -> Value {
        serde_json::from_str(text).unwrap()
    }

    fn server(format: DriveFormat) -> Server {
        let mut server = a_server();
        server.drive_format = format;
        server.keypair = Some("laptop".parse().unwrap());
        server.public_keys = vec![KEY.to_owned()];
        server.metadata.insert("role".to_owned(), "a: \"b\"\n".to_owned());
        server
    }

    #[test]
    fn a_no_cloud_drive() {
        let mut server = server(DriveFormat::NoCloud);
        let plain = drive(&server, None);
        assert_eq!(plain.keys().collect::<Vec<_>>(), ["meta-data", "network-config", "user-data"]);
        assert_eq!(plain["user-data"], "", "cloud-init wants the file even if nobody gave any");
        // One line of JSON, whatever is in it.
        let lines: Vec<&str> = plain["meta-data"].lines().collect();
        assert!(lines.contains(&r#"  - "ssh-ed25519 AAAAC3Nz me: \"home\"""#), "{lines:?}");
        assert!(lines.contains(&r#"meta: {"role":"a: \"b\"\n"}"#), "{lines:?}");
        assert_eq!(
            json(&plain["network-config"]),
            json!({ "version": 2, "ethernets": { "nic0": { "match": { "macaddress": server.mac }, "dhcp4": true } } })
        );

        // The operator's, as it is; and the server's files beside it.
        assert_eq!(drive(&server, Some("#!/bin/sh\n"))["vendor-data"], "#!/bin/sh\n");
        server.files.push(("/etc/motd".to_owned(), "hello\n".to_owned()));
        let vendor = drive(&server, None)["vendor-data"].clone();
        assert!(vendor.starts_with("#cloud-boothook\n#!/bin/sh\n"), "{vendor}");
        assert!(vendor.contains("\nwrite_given_file L2V0Yy9tb3Rk aGVsbG8K\n"), "{vendor}");
        let both = drive(&server, Some("#!/bin/sh\n"))["vendor-data"].clone();
        let parts = json(both.strip_prefix("#cloud-config-archive\n").unwrap());
        assert_eq!(parts[0], json!({ "content": "#!/bin/sh\n" }));
        assert_eq!(parts[1], json!({ "content": vendor }));
    }

    #[test]
    fn an_open_stack_drive() {
        let mut server = server(DriveFormat::OpenStack);
        server.user_data = Some("#!/bin/sh\n".to_owned());
        server.files.push(("/etc/motd".to_owned(), "hello\n".to_owned()));
        let drive = drive(&server, Some("#cloud-config\n"));
        let of = |name: &str| json(&drive[&format!("openstack/latest/{name}")]);
        let meta_data = of("meta_data.json");
        let (id, project) = (ServerId::from_bits(1), ProjectId::from_bits(2));
        for (name, value) in [
            ("uuid", json!(id)),
            ("project_id", json!(project)),
            ("hostname", json!("web")),
            ("public_keys", json!({ "laptop": KEY })),
            ("keys", json!([{ "data": KEY, "name": "laptop", "type": "ssh" }])),
            ("meta", json!({ "role": "a: \"b\"\n" })),
            ("files", json!([{ "content_path": "/content/0000", "path": "/etc/motd" }])),
        ] {
            assert_eq!(meta_data[name], value, "{name}");
        }
        assert_eq!(drive["openstack/content/0000"], "hello\n");
        assert_eq!(drive["openstack/latest/user_data"], "#!/bin/sh\n");
        assert_eq!(of("vendor_data.json"), json!({ "cloud-init": "#cloud-config\n" }));
        let network = of("network_data.json");
        assert_eq!(network["links"][0]["ethernet_mac_address"], server.mac);
        assert_eq!(network["networks"][0]["link"], network["links"][0]["id"]);
        assert_eq!(network["networks"][0]["type"], "ipv4_dhcp");
    }

    #[test]
    fn a_drive_of_either_format_is_accepted_by_drivers() {
        for (format, label) in [(DriveFormat::NoCloud, "cidata"), (DriveFormat::OpenStack, "config-2")] {
            let mut server = server(format);
            server.files = (0..10).map(|n| (format!("/etc/{n}"), "x".repeat(16384))).collect();
            server.user_data = Some("x".repeat(65535));
            let recipient = Recipient { id: ServerId::from_bits(1), project: None, vendor_data: Some("#!/bin/sh\n") };
            let files = files(&server, recipient);
            assert_eq!(nephos_driver::config_drive_label(&files), label);
            let spec = nephos_driver::GuestSpec {
                id: recipient.id,
                name: "web".to_owned(),
                vcpus: 1,
                memory: nephos_types::Bytes::mib(256),
                disk: nephos_driver::Disk { base: None, size: nephos_types::Bytes::mib(1), incarnation: 0 },
                firmware: Default::default(),
                boot: Default::default(),
                rescue: None,
                interfaces: vec![],
                config_drive: files,
            };
            assert_eq!(spec.check(), Ok(()));
        }
    }
}
