//! Where a server goes: filters say which nodes can take it and why the others cannot, weights say which one is best.
//!
//! The decision is made on [`Candidates`], a dense picture of all nodes kept in memory so that deciding among 10,000
//! takes well under a millisecond. The picture may be a moment old; what makes claims exact is the store, whose
//! bounded counters refuse the transaction that would oversubscribe. The loser looks again and decides again.
//!
//! Must not know: how nodes are reached, or what a server is beyond its demand.

use std::sync::{Mutex, PoisonError};

use nephos_driver::{Capabilities, DiskFormat, Feature};
use nephos_types::{Error, ErrorKind, Name, NodeId};

/// Amounts of what nodes have and servers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

impl Amounts {
    fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// The greater of each.
    #[must_use]
    pub fn most(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.max(other.vcpus),
            memory_mib: self.memory_mib.max(other.memory_mib),
            disk_gib: self.disk_gib.max(other.disk_gib),
        }
    }

    /// What is left when the other is taken away; nothing is less than zero.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }
}

/// What a server needs of its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// What it takes.
    pub amounts: Amounts,
    /// Format of its image, which one of the node's drivers must know.
    pub format: Option<DiskFormat>,
    /// What that driver must be able to do.
    pub features: Vec<Feature>,
}

/// The most drivers of one node that placement looks at.
const DRIVERS: usize = 4;

/// What the drivers of one node can do, small enough to be copied with each picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities([Ability; DRIVERS]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ability {
    /// A bit for each format.
    formats: u32,
    /// A bit for each feature.
    features: u32,
}

fn format_bit(format: DiskFormat) -> u32 {
    1 << match format {
        DiskFormat::Qcow2 => 0,
        DiskFormat::Raw => 1,
        DiskFormat::Iso => 2,
        DiskFormat::Tar => 3,
        DiskFormat::Oci => 4,
    }
}

fn feature_bits<'a>(features: impl IntoIterator<Item = &'a Feature>) -> u32 {
    features.into_iter().fold(0, |bits, feature| bits | 1 << (*feature as u32))
}

impl Abilities {
    /// Of these drivers.
    #[must_use]
    pub fn of(drivers: &[Capabilities]) -> Self {
        let mut abilities = Self::default();
        for (ability, driver) in abilities.0.iter_mut().zip(drivers) {
            ability.formats = driver.disk_formats.iter().fold(0, |bits, format| bits | format_bit(*format));
            ability.features = feature_bits(&driver.features);
        }
        abilities
    }

    /// Whether one driver boots the format and has all the features.
    fn suit(&self, demand: &Demand) -> bool {
        let format = demand.format.map_or(0, format_bit);
        let features = feature_bits(&demand.features);
        demand.format.is_none() && features == 0
            || self.0.iter().any(|able| able.formats & format == format && able.features & features == features)
    }

    fn boot(&self, format: DiskFormat) -> bool {
        self.0.iter().any(|able| able.formats & format_bit(format) != 0)
    }
}

/// One node as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Its name, for reasons.
    pub name: Name,
    /// Whether it is heard of.
    pub up: bool,
    /// Why nothing new is placed on it; `None` when it is enabled.
    pub disabled: Option<String>,
    /// What its drivers can do.
    pub abilities: Abilities,
    /// What it may give, overcommitment included.
    pub capacity: Amounts,
    /// What is claimed on it.
    pub used: Amounts,
}

/// Why a node cannot take a server.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Refusal {
    constraint: &'static str,
    detail: String,
}

/// The cheap answer first: reasons are only put into words when every node refuses.
fn fits(candidate: &Candidate, demand: &Demand) -> bool {
    let after = candidate.used.plus(demand.amounts);
    candidate.up
        && candidate.disabled.is_none()
        && candidate.abilities.suit(demand)
        && after.vcpus <= candidate.capacity.vcpus
        && after.memory_mib <= candidate.capacity.memory_mib
        && after.disk_gib <= candidate.capacity.disk_gib
}

fn refusals(candidate: &Candidate, demand: &Demand) -> Vec<Refusal> {
    let mut all = vec![];
    let mut refuse = |constraint, detail| all.push(Refusal { constraint, detail });
    if !candidate.up {
        refuse("up", "the node is not heard of".to_owned());
    }
    if let Some(reason) = &candidate.disabled {
        refuse("enabled", format!("the node is disabled: {reason}"));
    }
    match demand.format {
        Some(format) if !candidate.abilities.boot(format) => {
            refuse("format", format!("its drivers cannot boot {format:?} images").to_lowercase());
        }
        _ if !candidate.abilities.suit(demand) => {
            refuse("features", format!("its drivers lack one of {:?}", demand.features).to_lowercase());
        }
        _ => {}
    }
    let free = candidate.capacity.minus(candidate.used);
    for (constraint, need, have, unit) in [
        ("vcpus", demand.amounts.vcpus, free.vcpus, "vCPU"),
        ("memory", demand.amounts.memory_mib, free.memory_mib, "MiB"),
        ("disk", demand.amounts.disk_gib, free.disk_gib, "GiB"),
    ] {
        if need > have {
            refuse(constraint, format!("need {need} {unit}, have {have} {unit}"));
        }
    }
    all
}

/// Greater is better: the share of memory that stays free, in parts per million, then of CPUs. Spreads servers.
fn weight(candidate: &Candidate, demand: &Demand) -> (u64, u64) {
    let free = candidate.capacity.minus(candidate.used.plus(demand.amounts));
    let share = |free: u64, whole: u64| free.saturating_mul(1_000_000) / whole.max(1);
    (share(free.memory_mib, candidate.capacity.memory_mib), share(free.vcpus, candidate.capacity.vcpus))
}

/// How many nodes a refusal names one by one.
const NAMED_NODES: usize = 20;

/// The best node for a demand, or why none can take it.
pub fn choose(candidates: &[Candidate], demand: &Demand) -> Result<usize, Error> {
    let best = candidates
        .iter()
        .enumerate()
        .filter(|(_, candidate)| fits(candidate, demand))
        // Of equals the first one in order of id, so that decisions can be repeated.
        .max_by_key(|(index, candidate)| (weight(candidate, demand), std::cmp::Reverse(*index)));
    if let Some((index, _)) = best {
        return Ok(index);
    }
    let mut error = Error::new(ErrorKind::Capacity, "no_placement", "No node can take the server");
    if candidates.is_empty() {
        return Err(error
            .detail("there is no node yet")
            .next("add a machine", Some("nephos node join-token".to_owned())));
    }
    for candidate in candidates.iter().take(NAMED_NODES) {
        for refusal in refusals(candidate, demand) {
            error = error.reason(candidate.name.as_str(), refusal.constraint, refusal.detail);
        }
    }
    if let Some(format) = demand.format.filter(|format| !candidates.iter().any(|node| node.abilities.boot(*format))) {
        return Err(no_driver(error, format));
    }
    let free = |amount: fn(&Amounts) -> u64| {
        candidates
            .iter()
            .filter(|candidate| candidate.up && candidate.disabled.is_none())
            .map(|candidate| amount(&candidate.capacity.minus(candidate.used)))
            .max()
            .unwrap_or(0)
    };
    let mut detail = format!(
        "it needs {} vCPU, {} MiB of memory and {} GiB of disk; the most that one usable node has free is {} vCPU, {} MiB, {} GiB",
        demand.amounts.vcpus,
        demand.amounts.memory_mib,
        demand.amounts.disk_gib,
        free(|amounts| amounts.vcpus),
        free(|amounts| amounts.memory_mib),
        free(|amounts| amounts.disk_gib),
    );
    if candidates.len() > NAMED_NODES {
        detail.push_str(&format!("; {NAMED_NODES} of {} nodes are named here", candidates.len()));
    }
    Err(error
        .detail(detail)
        .next("use a smaller flavor", Some("nephos flavor list".to_owned()))
        .next("add a machine", Some("nephos node join-token".to_owned())))
}

/// What to do about an image that no node at all can run.
fn no_driver(error: Error, format: DiskFormat) -> Error {
    let detail = format!("no node has a driver that runs {format:?} images").to_lowercase();
    let (install, command) = if format.is_root_file_system() {
        (
            "for containers, install crun on a node and run its agent as root",
            "apt-get install --no-install-recommends crun",
        )
    } else {
        ("for virtual machines, install QEMU on a node", "apt-get install qemu-system-x86 qemu-utils")
    };
    error
        .detail(detail)
        .next("see under missing_drivers what a node lacks", Some("nephos node show NODE".to_owned()))
        .next(install, Some(command.to_owned()))
}

/// The picture of all nodes that decisions are made on.
#[derive(Default)]
pub struct Candidates {
    picture: Mutex<Picture>,
}

#[derive(Default)]
struct Picture {
    /// As of which change of the nodes; 0 before the first look.
    version: u64,
    /// In order of node id.
    candidates: Vec<Candidate>,
}

impl Picture {
    fn draw(&mut self, version: u64, look: impl Fn() -> Vec<Candidate>) {
        self.candidates = look();
        self.candidates.sort_by_key(|candidate| candidate.node);
        self.version = version;
    }

    /// Chooses. Notes of claims that the store then refused make the picture too dark, so nobody is refused before a
    /// fresh look.
    fn choose(&mut self, version: u64, look: impl Fn() -> Vec<Candidate>, demand: &Demand) -> Result<usize, Error> {
        let fresh = self.version != version;
        if fresh {
            self.draw(version, &look);
        }
        match choose(&self.candidates, demand) {
            Err(_) if !fresh => {
                self.draw(version, look);
                choose(&self.candidates, demand)
            }
            decided => decided,
        }
    }
}

impl Candidates {
    /// Decides, and notes the demand on the chosen node at once so that the next decision sees it. `version` changes
    /// whenever a node's record does; then `look` draws the picture anew.
    pub fn place(
        &self,
        version: u64,
        look: impl Fn() -> Vec<Candidate>,
        demand: &Demand,
    ) -> Result<(NodeId, Amounts), Error> {
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        let index = picture.choose(version, look, demand)?;
        let candidate = &mut picture.candidates[index];
        candidate.used = candidate.used.plus(demand.amounts);
        Ok((candidate.node, candidate.capacity))
    }

    /// Whether there is a node for the demand now; claims nothing.
    pub fn check(&self, version: u64, look: impl Fn() -> Vec<Candidate>, demand: &Demand) -> Result<(), Error> {
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        picture.choose(version, look, demand).map(|_| ())
    }

    /// What was claimed on a node is free again, or was never claimed because the store refused.
    pub fn give_back(&self, node: NodeId, amounts: Amounts) {
        self.correct(node, |candidate| candidate.used = candidate.used.minus(amounts));
    }

    /// More was claimed on a node.
    pub fn take(&self, node: NodeId, amounts: Amounts) {
        self.correct(node, |candidate| candidate.used = candidate.used.plus(amounts));
    }

    fn correct(&self, node: NodeId, change: impl FnOnce(&mut Candidate)) {
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(index) = picture.candidates.binary_search_by_key(&node, |candidate| candidate.node) {
            change(&mut picture.candidates[index]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u64, memory_mib: u64) -> Candidate {
        Candidate {
            node: nephos_types::Id::from_bits(number),
            name: format!("n{number}").parse().unwrap(),
            up: true,
            disabled: None,
            abilities: Abilities([Ability { formats: format_bit(DiskFormat::Qcow2), features: 0 }; DRIVERS]),
            capacity: Amounts { vcpus: 8, memory_mib, disk_gib: 100 },
            used: Amounts::default(),
        }
    }

    fn demand(memory_mib: u64) -> Demand {
        let amounts = Amounts { vcpus: 1, memory_mib, disk_gib: 1 };
        Demand { amounts, format: Some(DiskFormat::Qcow2), features: vec![] }
    }

    #[test]
    fn servers_spread() {
        let candidates = Candidates::default();
        let look = || vec![candidate(1, 1024), candidate(2, 1024)];
        let first = candidates.place(1, look, &demand(256)).unwrap().0;
        let second = candidates.place(1, look, &demand(256)).unwrap().0;
        assert_ne!(first, second);
    }

    #[test]
    fn a_refusal_names_each_nodes_reason() {
        let mut down = candidate(1, 4096);
        down.up = false;
        let mut disabled = candidate(2, 4096);
        disabled.disabled = Some("new disk".to_owned());
        let mut other = candidate(3, 4096);
        other.abilities = Abilities::default();
        let small = candidate(4, 128);
        let error = choose(&[down, disabled, other, small], &demand(256)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Capacity);
        let reasons: Vec<_> = error.reasons.iter().map(|r| (r.subject.as_str(), r.constraint.as_str())).collect();
        assert_eq!(reasons, [("n1", "up"), ("n2", "enabled"), ("n3", "format"), ("n4", "memory")]);
        assert_eq!(error.reasons[3].detail, "need 256 MiB, have 128 MiB");
    }

    #[test]
    fn what_is_given_back_can_be_placed_again() {
        let candidates = Candidates::default();
        let full = std::cell::Cell::new(false);
        let look = || {
            let mut only = candidate(1, 256);
            only.used.memory_mib = if full.get() { 256 } else { 0 };
            vec![only]
        };
        let (node, _) = candidates.place(1, look, &demand(256)).unwrap();
        full.set(true);
        assert!(candidates.place(1, look, &demand(256)).is_err());
        candidates.give_back(node, demand(256).amounts);
        assert!(candidates.place(1, look, &demand(256)).is_ok());
    }

    proptest! {
        #[test]
        fn never_oversubscribes_and_refuses_only_when_none_fits(
            sizes in proptest::collection::vec(0u64..2048, 1..8),
            demands in proptest::collection::vec(1u64..1024, 1..40),
        ) {
            let mut all: Vec<_> = sizes.iter().enumerate().map(|(n, size)| candidate(n as u64, *size)).collect();
            for memory in demands {
                match choose(&all, &demand(memory)) {
                    Ok(index) => {
                        all[index].used = all[index].used.plus(demand(memory).amounts);
                        prop_assert!(all[index].used.memory_mib <= all[index].capacity.memory_mib);
                        prop_assert!(all[index].used.vcpus <= all[index].capacity.vcpus);
                    }
                    Err(_) => prop_assert!(!all.iter().any(|c| fits(c, &demand(memory)))),
                }
            }
        }
    }
}
