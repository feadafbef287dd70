//! The weights, as data: each says in millionths how well a node suits.

use nephos_ops::placement::{GroupPolicy, Weight};

use super::{Amounts, Candidate, Demand};

/// The whole share.
pub(super) const WHOLE: u32 = 1_000_000;

/// One weight.
pub(super) struct Scale {
    pub(super) name: Weight,
    pub(super) summary: &'static str,
    /// How much it counts if nobody says otherwise.
    pub(super) multiplier: i32,
    /// Whether a demand has anything to do with it.
    pub(super) applies: fn(&Demand) -> bool,
    /// What the node has of it, 0 to [`WHOLE`].
    pub(super) share: fn(&Candidate, &Demand) -> u32,
}

/// All of them. As they are, servers are spread by memory; CPUs and disk decide between nodes that are alike in that.
pub(super) static SCALES: &[Scale] = &[
    Scale {
        name: Weight::Memory,
        summary: "the share of memory that stays free",
        multiplier: 1000,
        applies: |_| true,
        share: |node, demand| left(node, demand, |amounts| amounts.memory_mib),
    },
    Scale {
        name: Weight::Vcpus,
        summary: "the share of virtual CPUs that stay free",
        multiplier: 100,
        applies: |_| true,
        share: |node, demand| left(node, demand, |amounts| amounts.vcpus),
    },
    Scale {
        name: Weight::Disk,
        summary: "the share of disk that stays free",
        multiplier: 10,
        applies: |_| true,
        share: |node, demand| left(node, demand, |amounts| amounts.disk_gib),
    },
    Scale {
        name: Weight::Group,
        summary: "what a soft server group wishes: the share of its servers that are there, or are not",
        multiplier: 10_000,
        applies: |demand| {
            let policy = demand.group.as_ref().map(|group| group.policy);
            matches!(policy, Some(GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity))
        },
        share: wished,
    },
];

/// The share that stays free.
fn left(node: &Candidate, demand: &Demand, amount: fn(&Amounts) -> u64) -> u32 {
    let whole = amount(&node.capacity).max(1);
    let taken = amount(&node.used).saturating_add(amount(&demand.amounts));
    let free = amount(&node.capacity).saturating_sub(taken);
    u32::try_from(free.saturating_mul(u64::from(WHOLE)) / whole).unwrap_or(WHOLE).min(WHOLE)
}

fn wished(node: &Candidate, demand: &Demand) -> u32 {
    let Some(group) = &demand.group else { return 0 };
    let here = group.on.get(&node.node).copied().unwrap_or(0);
    let most = group.on.values().copied().max().unwrap_or(0).max(1);
    let share = u32::try_from(here.saturating_mul(u64::from(WHOLE)) / most).unwrap_or(WHOLE).min(WHOLE);
    match group.policy {
        GroupPolicy::SoftAffinity | GroupPolicy::Affinity => share,
        GroupPolicy::SoftAntiAffinity | GroupPolicy::AntiAffinity => WHOLE - share,
    }
}
