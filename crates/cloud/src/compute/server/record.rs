//! The stored form of a server, and what follows from it: what its node should make of it, and what people see.

use std::collections::{BTreeMap, BTreeSet};

use nephos_driver::{Feature, Firmware, PortForward, Power};
use nephos_node_api::{
    BootSource, DesiredServer, ImageSource, PortReport, ServerReport, ServerState as Reported, SnapshotReport,
    SnapshotTask, WantedInterface, WantedPower, metadata::ServerMetadata,
};
use nephos_ops::compute as view;
use nephos_store::{Kind, Record};
use nephos_types::{Bytes, FlavorId, ImageId, Name, NodeId, Result, ServerGroupId, ServerId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};

use super::config_drive::{self, DriveFormat, Recipient};
use crate::{
    network::Nic,
    placement::{Amounts, Demand, Needs},
    resolve::name_of,
};

/// What is being done to a server. At most one thing at a time, except that deletion ends whatever else goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// `create`, `start`, `stop`, `reboot`, `delete`.
    pub name: String,
    /// The workflow that does it.
    pub workflow: WorkflowId,
}

/// Where a server is in its life, as far as the control plane decides it; what people see also depends on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// Not yet running for the first time.
    Building,
    /// Made; runs or not as wanted and observed.
    Made,
    /// Could not be made.
    Failed,
}

/// What its node last said of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// The generation that the node has reached.
    pub generation: u64,
    /// What is so.
    pub state: Reported,
    /// Whether it ran when that was last known: stays while the node works on it.
    pub power: Option<Power>,
    /// Why the wanted generation is not reached.
    pub error: Option<nephos_types::Error>,
    /// How far copies of its disk are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotReport>,
    /// What its ports are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortReport>,
}

/// A server as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Flavor it was made from.
    pub flavor: FlavorId,
    /// Name of that flavor at that time.
    pub flavor_name: Name,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// What its root disk is claimed as on the node, in GiB; the image's size rounded up if `disk_gib` is 0.
    pub claimed_disk_gib: u64,
    /// Image for the root disk.
    pub image: ImageSource,
    /// Name of the key pair.
    pub keypair: Option<Name>,
    /// Public keys for logging in.
    pub public_keys: Vec<String>,
    /// For the server's own first-boot software.
    pub user_data: Option<String>,
    /// MAC address of its interface.
    pub mac: String,
    /// Ports that shall be reachable, with the node's ports once it is placed.
    pub forwards: Vec<PortForward>,
    /// Host name inside; stays when the server is renamed.
    pub hostname: String,
    /// Whether a crashed server is started again.
    pub restart: bool,
    /// The node it is on.
    pub node: Option<NodeId>,
    /// Whether it should run.
    pub wanted: WantedPower,
    /// Grows with each change of what the node should make so.
    pub generation: u64,
    /// How often it was asked to reboot.
    pub reboots: u64,
    /// Grace of the last reboot in milliseconds.
    pub reboot_grace_ms: u64,
    /// Where it is in its life.
    pub life: Life,
    /// What is being done to it.
    pub task: Option<Task>,
    /// The last workflow that did something to it.
    pub last_workflow: Option<WorkflowId>,
    /// What last went wrong.
    pub fault: Option<view::Fault>,
    /// What its node last said.
    pub observed: Option<Observed>,
    /// Restarts after crashes.
    pub restarts: u64,
    /// The driver that runs it, chosen with the node.
    #[serde(default)]
    pub driver: String,
    /// Another number means another root disk.
    #[serde(default)]
    pub incarnation: u64,
    /// Firmware.
    #[serde(default)]
    pub firmware: Firmware,
    /// Where it boots from.
    #[serde(default)]
    pub boot: BootSource,
    /// The image that it boots from while it is being rescued.
    #[serde(default)]
    pub rescue: Option<ImageSource>,
    /// Copies of its disk that are being made.
    #[serde(default)]
    pub snapshots: Vec<SnapshotTask>,
    /// A resize that is not over.
    #[serde(default)]
    pub resize: Option<Resize>,
    /// Images that must stay while its node may still have to fetch them.
    #[serde(default)]
    pub held: Vec<ImageId>,
    /// Images that must stay as long as it is there, because it can be made anew from them at any time: its kernel and RAM
    /// disk, and its disk while it is shelved.
    #[serde(default)]
    pub kept: Vec<ImageId>,
    /// It is put away: on no node, its disk being its image.
    #[serde(default)]
    pub shelved: bool,
    /// An image that exists only as this server's disk.
    #[serde(default)]
    pub own_image: Option<ImageId>,
    /// It is in the trash.
    #[serde(default)]
    pub trashed: Option<Trashed>,
    /// Changes are refused.
    #[serde(default)]
    pub lock: Option<Lock>,
    /// It cannot be deleted.
    #[serde(default)]
    pub protected: bool,
    /// Notes.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    /// Words to find it by.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Files for its first boot: path and content.
    #[serde(default)]
    pub files: Vec<(String, String)>,
    /// How its configuration drive is laid out.
    #[serde(default)]
    pub drive_format: DriveFormat,
    /// The last time that somebody changed its inside by way of the cloud.
    #[serde(default)]
    pub touched: Option<Touched>,
    /// Grows when all console URLs are ended.
    #[serde(default)]
    pub console_epoch: u32,
    /// What it asks of the place where it is put.
    #[serde(default)]
    pub placing: Placing,
    /// Its ports, in the order of its interfaces.
    #[serde(default)]
    pub nics: Vec<Nic>,
}

/// A change of a server's inside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// When it began.
    pub at: Timestamp,
    /// `exec`, `push`, `reset-password`, `reset-keys`.
    pub action: String,
    /// The program without its arguments, the file, the user.
    pub about: String,
}

/// What a server asks of the place where it is put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placing {
    /// The availability zone; any if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Name>,
    /// Its server group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<ServerGroupId>,
    /// What its flavor asks for.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub flavor: Needs,
    /// What its image asks for.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub image: Needs,
    /// Another node that it has a claim on: where it is moving to or, while a resize that moved it is not decided, where
    /// it was before.
    #[serde(default, alias = "moving", skip_serializing_if = "Option::is_none")]
    pub elsewhere: Option<Place>,
}

/// A place on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The node.
    pub node: NodeId,
    /// The driver that runs the server there.
    pub driver: String,
    /// The node's ports for the server's forwards, in their order.
    pub ports: Vec<u16>,
    /// What is claimed there.
    #[serde(default)]
    pub taken: Amounts,
    /// The image as which its disk is to go there, if it is on its way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<ImageId>,
}

/// A size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// The flavor that it is taken from.
    pub flavor: FlavorId,
    /// Name of that flavor at that time.
    pub flavor_name: Name,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// What the root disk is claimed as.
    pub claimed_disk_gib: u64,
    /// What the flavor asks of a node's kind.
    #[serde(default, skip_serializing_if = "Needs::is_empty")]
    pub needs: Needs,
}

impl Size {
    /// What a server of it takes.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        Amounts { vcpus: self.vcpus.into(), memory_mib: self.memory_mib, disk_gib: self.claimed_disk_gib }
    }
}

/// A resize that is under way or to be confirmed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// The size that the server does not have now: first the new one, then the old one. What is claimed suffices for
    /// either.
    pub other: Size,
    /// It waits for a decision; at this time it confirms itself.
    pub waits: Option<Deadline>,
}

/// Something that happens by itself at a time, or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadline {
    /// When.
    pub at: Option<Timestamp>,
}

/// Who refuses changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// An administrator, so that only one takes it away.
    pub by_admin: bool,
    /// Why.
    pub reason: Option<String>,
}

/// A server in the trash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// When it is deleted for good.
    pub until: Timestamp,
    /// Whether it ran.
    pub ran: bool,
}

/// Index of servers that something happens to by itself at some time.
pub const BY_DEADLINE: &str = "deadline";
/// Index of servers by the id of their node.
pub const BY_NODE: &str = "node";
/// Index of servers by the id of their group.
pub const BY_GROUP: &str = "group";

impl Kind for Server {
    type Id = ServerId;
    const NAME: &'static str = "server";
    const INDEXES: &'static [&'static str] = &[BY_NODE, BY_DEADLINE, BY_GROUP];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            BY_NODE => record.body.node.iter().map(ToString::to_string).collect(),
            BY_GROUP => record.body.placing.group.iter().map(ToString::to_string).collect(),
            BY_DEADLINE => record.body.deadline().map(|_| "yes".to_owned()).into_iter().collect(),
            _ => vec![],
        }
    }
}

impl Server {
    /// What it takes of its node.
    #[must_use]
    pub fn amounts(&self) -> Amounts {
        let own = self.size().amounts();
        self.resize.as_ref().map_or(own, |resize| own.most(resize.other.amounts()))
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> Size {
        Size {
            flavor: self.flavor,
            flavor_name: self.flavor_name.clone(),
            vcpus: self.vcpus,
            memory_mib: self.memory_mib,
            disk_gib: self.disk_gib,
            claimed_disk_gib: self.claimed_disk_gib,
            needs: self.placing.flavor.clone(),
        }
    }

    /// Gives it another size.
    pub fn take_size(&mut self, size: Size) {
        self.flavor = size.flavor;
        self.flavor_name = size.flavor_name;
        self.vcpus = size.vcpus;
        self.memory_mib = size.memory_mib;
        self.disk_gib = size.disk_gib;
        self.claimed_disk_gib = size.claimed_disk_gib;
        self.placing.flavor = size.needs;
    }

    /// What is counted against its project's quota: what it takes where it is, or elsewhere if that is more.
    #[must_use]
    pub fn charged(&self) -> Amounts {
        let here = self.amounts();
        self.placing.elsewhere.as_ref().map_or(here, |place| here.most(place.taken))
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> Option<Place> {
        Some(Place {
            node: self.node?,
            driver: self.driver.clone(),
            ports: self.forwards.iter().map(|forward| forward.host_port).collect(),
            taken: self.amounts(),
            by: None,
        })
    }

    /// Puts it somewhere else; nothing is known of what is there.
    pub fn take_place(&mut self, place: &Place) {
        self.node = Some(place.node);
        self.driver.clone_from(&place.driver);
        for (forward, port) in self.forwards.iter_mut().zip(&place.ports) {
            forward.host_port = *port;
        }
        self.observed = None;
        self.snapshots.clear();
    }

    /// All places that it has a claim on.
    pub fn places(&self) -> impl Iterator<Item = Place> {
        self.place().into_iter().chain(self.placing.elsewhere.clone())
    }

    /// When something happens to it by itself, if nothing else is being done to it then.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        match &self.trashed {
            // Protected since it is in the trash, it stays there.
            Some(trashed) => Some(trashed.until).filter(|_| !self.protected),
            None => self.resize.as_ref()?.waits?.at,
        }
    }

    /// Its network interfaces: its ports; and user-mode networking if it has none, or ports of its node lead to it.
    #[must_use]
    pub fn interfaces(&self) -> Vec<WantedInterface> {
        let ports = self.nics.iter().map(|nic| WantedInterface::Port { port: nic.port, mac: nic.mac, mtu: nic.mtu });
        let user = (self.nics.is_empty() || !self.forwards.is_empty())
            .then(|| WantedInterface::User { mac: self.mac.clone(), forwards: self.forwards.clone() });
        ports.chain(user).collect()
    }

    /// What its node should make of it.
    #[must_use]
    pub(crate) fn desired(&self, recipient: Recipient<'_>, metadata: Option<ServerMetadata>) -> DesiredServer {
        DesiredServer {
            id: recipient.id,
            generation: self.generation,
            name: self.hostname.clone(),
            vcpus: self.vcpus,
            memory: Bytes::mib(self.memory_mib),
            disk: Bytes(self.disk_gib.saturating_mul(1 << 30)),
            image: Some(self.image.clone()),
            interfaces: self.interfaces(),
            config_drive: config_drive::files(self, recipient),
            power: self.wanted,
            reboots: self.reboots,
            reboot_grace_ms: self.reboot_grace_ms,
            driver: self.driver.clone(),
            incarnation: self.incarnation,
            rescue: self.rescue.clone(),
            firmware: self.firmware,
            boot: self.boot.clone(),
            snapshots: self.snapshots.clone(),
            metadata: metadata.map(Box::new),
        }
    }

    /// What it needs of a node, but for its group.
    #[must_use]
    pub fn demand(&self) -> Demand {
        let mut features = vec![];
        if self.firmware == Firmware::Uefi {
            features.push(Feature::Uefi);
        }
        if self.boot != BootSource::Disk {
            features.push(Feature::Kernel);
        }
        if !self.nics.is_empty() {
            features.push(Feature::Network);
        }
        let Placing { zone, flavor, image, .. } = &self.placing;
        let needs = Needs {
            zone: zone.clone(),
            properties: flavor.properties.clone(),
            required: flavor.required.union(&image.required).cloned().collect(),
            forbidden: flavor.forbidden.union(&image.forbidden).cloned().collect(),
        };
        Demand { amounts: self.amounts(), format: Some(self.image.format), features, needs, ..Demand::default() }
    }

    /// Takes in what the node says. Returns whether anything that matters has changed.
    pub fn observe(&mut self, report: &ServerReport, at: Timestamp) -> bool {
        let power = match &report.state {
            Reported::Present(seen) => Some(seen.power),
            Reported::Gone => None,
            Reported::Working { .. } | Reported::Unknown { .. } => self.observed.as_ref().and_then(|last| last.power),
        };
        let (generation, state, error) = (report.generation, report.state.clone(), report.error.clone());
        let (snapshots, ports) = (report.snapshots.clone(), report.ports.clone());
        let observed = Observed { generation, state, power, error, snapshots, ports };
        if self.observed.as_ref() == Some(&observed) && self.restarts == report.restarts {
            return false;
        }
        if report.restarts > self.restarts {
            self.fault = Some(view::Fault {
                code: "guest_crashed".to_owned(),
                message: format!("it crashed and was restarted, {} times so far", report.restarts),
                at,
            });
        }
        self.observed = Some(observed);
        self.restarts = report.restarts;
        true
    }

    /// Whether the node has reached what is wanted now.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.observed.as_ref().is_some_and(|observed| observed.generation >= self.generation)
    }

    /// Whether the node says that nothing of it is there, knowing that it should be absent.
    #[must_use]
    pub fn gone(&self) -> bool {
        self.node.is_none()
            || (self.reached() && self.observed.as_ref().is_some_and(|observed| observed.state == Reported::Gone))
    }

    /// Whether it was last seen running.
    #[must_use]
    pub fn running(&self) -> bool {
        matches!(&self.observed, Some(Observed { state: Reported::Present(seen), .. }) if seen.power == Power::On)
    }

    /// Whether it was last seen switched off, or nothing of it is there.
    #[must_use]
    pub fn off(&self) -> bool {
        match self.observed.as_ref().map(|observed| &observed.state) {
            Some(Reported::Present(seen)) => seen.power == Power::Off,
            Some(Reported::Gone) => true,
            _ => false,
        }
    }

    /// Whether it was last seen in this state of power.
    #[must_use]
    pub fn is_power(&self, power: Power) -> bool {
        matches!(&self.observed, Some(Observed { state: Reported::Present(seen), .. }) if seen.power == power)
    }

    /// What people see, given whether its node is heard of.
    #[must_use]
    pub fn state(&self, node_up: bool) -> view::ServerState {
        if self.task.as_ref().is_some_and(|task| task.name == "delete") {
            return view::ServerState::Deleting;
        }
        match self.life {
            Life::Failed => view::ServerState::Error,
            Life::Building => view::ServerState::Building,
            Life::Made if self.trashed.is_some() => view::ServerState::Trashed,
            Life::Made if self.shelved => view::ServerState::Shelved,
            Life::Made if !node_up => view::ServerState::Unknown,
            Life::Made => match &self.observed {
                Some(Observed { state: Reported::Gone, .. }) => view::ServerState::Error,
                Some(Observed { state: Reported::Unknown { .. }, .. }) => view::ServerState::Unknown,
                Some(Observed { power: Some(Power::On), .. }) if self.rescue.is_some() => view::ServerState::Rescued,
                Some(Observed { power: Some(Power::On), .. }) => view::ServerState::Active,
                Some(Observed { power: Some(Power::Off), .. }) => view::ServerState::Stopped,
                Some(Observed { power: Some(Power::Paused), .. }) => view::ServerState::Paused,
                Some(Observed { power: Some(Power::Suspended), .. }) => view::ServerState::Suspended,
                _ => view::ServerState::Unknown,
            },
        }
    }
}

/// The images that a server with this boot source needs besides its own.
#[must_use]
pub fn boot_images(boot: &BootSource) -> Vec<ImageId> {
    match boot {
        BootSource::Kernel { kernel, initrd, .. } => {
            [Some(kernel), initrd.as_ref()].into_iter().flatten().map(|image| image.id).collect()
        }
        _ => vec![],
    }
}

/// What people see of a server. `node` is its node's name and whether it is heard of, `addresses` those of its ports.
pub fn view(
    record: &Record<Server>,
    node: Option<(Name, bool)>,
    addresses: Vec<view::ServerAddress>,
) -> Result<view::Server> {
    let body = &record.body;
    let node_up = node.as_ref().is_none_or(|(_, up)| *up);
    Ok(view::Server {
        id: record.meta.id,
        name: name_of(record)?,
        project: record.meta.project.unwrap_or_else(crate::resolve::no_id),
        state: body.state(node_up),
        task: body.task.as_ref().map(|task| task.name.clone()),
        workflow: body.task.as_ref().map(|task| task.workflow).or(body.last_workflow),
        flavor: body.flavor,
        flavor_name: body.flavor_name.clone(),
        vcpus: body.vcpus,
        memory_mib: body.memory_mib,
        disk_gib: body.disk_gib,
        image: Some(body.image.id),
        keypair: body.keypair.clone(),
        node: body.node,
        node_name: node.map(|(name, _)| name),
        zone: body.placing.zone.clone(),
        group: body.placing.group,
        forwards: body
            .forwards
            .iter()
            .filter(|forward| forward.host_port != 0)
            .map(|forward| view::Forward {
                protocol: match forward.protocol {
                    nephos_driver::Protocol::Tcp => view::Protocol::Tcp,
                    nephos_driver::Protocol::Udp => view::Protocol::Udp,
                },
                port: forward.guest_port,
                node_port: forward.host_port,
            })
            .collect(),
        addresses,
        restarts: body.restarts,
        driver: body.driver.clone(),
        protected: body.protected,
        locked: body.lock.is_some(),
        locked_reason: body.lock.as_ref().and_then(|lock| lock.reason.clone()),
        resize: body.resize.as_ref().and_then(|resize| {
            let waits = resize.waits?;
            Some(view::PendingResize {
                old_flavor: resize.other.flavor,
                old_flavor_name: resize.other.flavor_name.clone(),
                old_node: body.placing.elsewhere.as_ref().map(|place| place.node),
                confirms_at: waits.at,
            })
        }),
        rescue_image: body.rescue.as_ref().map(|image| image.id),
        trashed_until: body.trashed.map(|trashed| trashed.until),
        tags: body.tags.clone(),
        metadata: nephos_ops::image::Properties(body.metadata.clone()),
        fault: body.fault.clone(),
        labels: record.meta.labels.clone(),
        created_at: record.meta.created_at,
        updated_at: record.meta.updated_at,
    })
}
