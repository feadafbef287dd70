//! Nodes as they are shown.

use nephos_driver::{Accelerator, Capabilities, MissingDriver};
use nephos_node_api::Hardware;
use nephos_ops::node as ops;
use nephos_store::Record;
use nephos_types::{Error, Result};

use super::{
    Node, Nodes, Reachable,
    program::Program,
    record::{Condition, used},
};

impl Nodes {
    /// A node with all that is known of it.
    pub(super) fn view(&self, record: &Record<Node>) -> Result<ops::Node> {
        let hardware = record.body.inventory.as_ref().map(|inventory| hardware(&inventory.hardware));
        Ok(ops::Node { hardware, ..self.brief(record)? })
    }

    /// A node as it stands in lists.
    pub(super) fn brief(&self, record: &Record<Node>) -> Result<ops::Node> {
        let node = &record.body;
        let inventory = node.inventory.as_ref();
        let drivers = inventory.map(|inventory| &*inventory.compute).unwrap_or_default();
        let capacity = self.capacity(node);
        let count = |what| used(&self.store, record.id(), what);
        let name = record.meta.name.clone();
        Ok(ops::Node {
            id: record.id(),
            name: name.ok_or_else(|| Error::bug(format!("node {} has no name", record.id())))?,
            state: match node.reachable {
                Reachable::Unknown => ops::NodeState::Unknown,
                Reachable::Up => ops::NodeState::Up,
                Reachable::Down => ops::NodeState::Down,
            },
            state_since: node.reachable_since,
            enabled: node.disabled.is_none(),
            disabled_reason: node.disabled.clone().filter(|reason| !reason.is_empty()),
            draining: node.placing.drain,
            zone: Self::zone_of(node)?,
            aggregates: self.aggregate_names(node),
            traits: Self::traits_of(node),
            overcommit: node.placing.overcommit,
            address: node.address.clone(),
            agent_version: node.agent_version.clone(),
            agent_current: node.program.as_ref().and_then(|program| Some(Program::known()?.sha256 == *program)),
            hostname: inventory.map(|inventory| inventory.hostname.clone()),
            kernel: inventory.map(|inventory| inventory.kernel.clone()),
            architecture: inventory.map(|inventory| inventory.architecture.clone()),
            cpu_model: inventory.map(|inventory| inventory.cpu_model.clone()),
            driver: drivers.first().map(|driver| format!("{} {}", driver.driver, driver.version)),
            drivers: drivers.iter().map(driver_view).collect(),
            missing_drivers: inventory
                .map(|inventory| inventory.missing.iter().map(missing_view).collect())
                .unwrap_or_default(),
            accelerator: drivers.first().and_then(|driver| match &driver.accelerator {
                Accelerator::Kvm => Some("kvm".to_owned()),
                Accelerator::Tcg { reason } => Some(format!("tcg: {reason}")),
                Accelerator::None => None,
            }),
            health: node.health.iter().map(condition).collect(),
            hardware: None,
            cpus: inventory.map_or(0, |inventory| inventory.cpus),
            vcpus: capacity.vcpus,
            vcpus_used: count("vcpus"),
            memory_mib: capacity.memory_mib,
            memory_mib_used: count("memory_mib"),
            disk_gib: capacity.disk_gib,
            disk_gib_used: count("disk_gib"),
            servers: count("servers"),
            certificate_expires_at: node.certificate_expires_at,
            labels: record.meta.labels.clone(),
            created_at: record.meta.created_at,
            updated_at: record.meta.updated_at,
        })
    }
}

fn driver_view(driver: &Capabilities) -> ops::NodeDriver {
    // Words as on the wire.
    let word = |value: serde_json::Result<serde_json::Value>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    ops::NodeDriver {
        name: driver.driver.clone(),
        version: driver.version.clone(),
        formats: driver.disk_formats.iter().map(|format| word(serde_json::to_value(format))).collect(),
        features: driver.features.iter().map(|feature| word(serde_json::to_value(feature))).collect(),
    }
}

fn missing_view(missing: &MissingDriver) -> ops::NodeMissingDriver {
    ops::NodeMissingDriver { name: missing.driver.clone(), reason: missing.reason.clone() }
}

fn condition(condition: &Condition) -> ops::NodeCondition {
    let Condition { code, message, since } = condition.clone();
    ops::NodeCondition { code, message, since }
}

fn hardware(hardware: &Hardware) -> ops::NodeHardware {
    ops::NodeHardware {
        cpu_flags: hardware.cpu_flags.split_whitespace().map(str::to_owned).collect(),
        numa: hardware
            .numa
            .iter()
            .map(|node| ops::NodeNuma { id: node.id, cpus: node.cpus.clone(), memory_mib: node.memory.0 >> 20 })
            .collect(),
        disks: hardware
            .disks
            .iter()
            .map(|disk| ops::NodeDisk {
                name: disk.name.clone(),
                model: disk.model.clone(),
                bytes: disk.size.0,
                rotational: disk.rotational,
            })
            .collect(),
        interfaces: hardware
            .interfaces
            .iter()
            .map(|interface| ops::NodeInterface {
                name: interface.name.clone(),
                mac: interface.mac.clone(),
                mbit_per_second: interface.speed,
            })
            .collect(),
        devices: hardware
            .devices
            .iter()
            .map(|device| ops::NodeDevice {
                address: device.address.clone(),
                class: format!("{:06x}", device.class),
                id: format!("{:04x}:{:04x}", device.vendor, device.device),
                driver: device.driver.clone(),
                iommu_group: device.iommu_group,
            })
            .collect(),
    }
}
