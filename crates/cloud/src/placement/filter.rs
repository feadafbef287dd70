//! The filters, as data: each says whether it stands against a node, and why in words.

use nephos_ops::placement::{Filter, GroupPolicy};

use super::{Candidate, Class, Demand};

/// What a filter looks at.
pub(super) enum Looks {
    /// The kind of node: asked once for each kind.
    AtClass {
        /// Whether such a node passes.
        passes: fn(&Class, &Demand) -> bool,
        /// Why it does not.
        why: fn(&Class, &Demand) -> String,
    },
    /// The node itself.
    AtNode {
        /// Whether it passes.
        passes: fn(&Candidate, &Demand) -> bool,
        /// Why it does not.
        why: fn(&Candidate, &Demand) -> String,
    },
}

/// One filter.
pub(super) struct Rule {
    pub(super) name: Filter,
    /// The word for it in errors.
    pub(super) word: &'static str,
    pub(super) summary: &'static str,
    /// Whether it can be switched off.
    pub(super) optional: bool,
    /// Whether a demand has anything to do with it.
    pub(super) applies: fn(&Demand) -> bool,
    pub(super) looks: Looks,
}

/// All of them, in the order of asking.
pub(super) static RULES: &[Rule] = &[
    Rule {
        name: Filter::Up,
        word: "up",
        summary: "the node must be heard of",
        optional: false,
        applies: |_| true,
        looks: Looks::AtNode { passes: |node, _| node.up, why: |_, _| "the node is not heard of".to_owned() },
    },
    Rule {
        name: Filter::Enabled,
        word: "enabled",
        summary: "the node must take new servers",
        optional: false,
        applies: |_| true,
        looks: Looks::AtNode {
            passes: |node, _| node.disabled.is_none(),
            why: |node, _| match node.disabled.as_deref().unwrap_or_default() {
                "" => "the node is disabled".to_owned(),
                reason => format!("the node is disabled: {reason}"),
            },
        },
    },
    Rule {
        name: Filter::Target,
        word: "target",
        summary: "the node must be the one that was asked for, and not the one to be left",
        optional: false,
        applies: |demand| demand.only.is_some() || demand.not.is_some(),
        looks: Looks::AtNode {
            passes: |node, demand| {
                demand.only.is_none_or(|only| only == node.node) && demand.not.is_none_or(|not| not != node.node)
            },
            why: |node, demand| {
                let left = demand.not == Some(node.node);
                if left { "the server is to leave it" } else { "another node was asked for" }.to_owned()
            },
        },
    },
    Rule {
        name: Filter::Zone,
        word: "zone",
        summary: "the node must be in the zone that was asked for",
        optional: true,
        applies: |demand| demand.needs.zone.is_some(),
        looks: Looks::AtClass {
            passes: |class, demand| demand.needs.zone.as_ref().is_none_or(|zone| *zone == class.zone),
            why: |class, demand| match &demand.needs.zone {
                Some(zone) => format!("it is in zone {}, not {zone}", class.zone),
                None => String::new(),
            },
        },
    },
    Rule {
        name: Filter::Properties,
        word: "properties",
        summary: "the node's aggregates must have the properties that the flavor asks for",
        optional: true,
        applies: |demand| !demand.needs.properties.is_empty(),
        looks: Looks::AtClass {
            passes: |class, demand| lacking(class, demand).next().is_none(),
            why: |class, demand| {
                format!("no aggregate of it has {}", lacking(class, demand).collect::<Vec<_>>().join(", "))
            },
        },
    },
    Rule {
        name: Filter::Traits,
        word: "traits",
        summary: "the node must have the required traits, and none of the forbidden ones",
        optional: true,
        applies: |demand| !demand.needs.required.is_empty() || !demand.needs.forbidden.is_empty(),
        looks: Looks::AtClass {
            passes: |class, demand| {
                demand.needs.required.is_subset(&class.traits) && demand.needs.forbidden.is_disjoint(&class.traits)
            },
            why: |class, demand| {
                let lacks = demand.needs.required.difference(&class.traits).map(|name| format!("it lacks {name}"));
                let has = demand.needs.forbidden.intersection(&class.traits).map(|name| format!("it has {name}"));
                lacks.chain(has).collect::<Vec<_>>().join(", ")
            },
        },
    },
    Rule {
        name: Filter::Format,
        word: "format",
        summary: "a driver of the node must boot the image's format",
        optional: false,
        applies: |demand| demand.format.is_some(),
        looks: Looks::AtClass {
            passes: |class, demand| demand.format.is_none_or(|format| class.abilities.boot(format)),
            why: |_, demand| match demand.format {
                Some(format) => format!("its drivers cannot boot {format:?} images").to_lowercase(),
                None => String::new(),
            },
        },
    },
    Rule {
        name: Filter::Features,
        word: "features",
        summary: "a driver of the node that boots the image must be able to do what is asked for",
        optional: false,
        applies: |demand| demand.format.is_some() || !demand.features.is_empty(),
        looks: Looks::AtClass {
            // What no driver boots is refused for that already.
            passes: |class, demand| {
                class.abilities.suit(demand) || demand.format.is_some_and(|format| !class.abilities.boot(format))
            },
            why: |_, demand| format!("its drivers lack one of {:?}", demand.features).to_lowercase(),
        },
    },
    Rule {
        name: Filter::Group,
        word: "group",
        summary: "the server's group must want it there",
        optional: false,
        applies: |demand| {
            let policy = demand.group.as_ref().map(|group| group.policy);
            matches!(policy, Some(GroupPolicy::Affinity | GroupPolicy::AntiAffinity))
        },
        looks: Looks::AtNode { passes: wanted_by_group, why: why_not_wanted },
    },
    Rule {
        name: Filter::Vcpus,
        word: "vcpus",
        summary: "enough virtual CPUs must be free",
        optional: false,
        applies: |_| true,
        looks: Looks::AtNode {
            passes: |node, demand| node.used.vcpus.saturating_add(demand.amounts.vcpus) <= node.capacity.vcpus,
            why: |node, demand| format!("need {} vCPU, have {} vCPU", demand.amounts.vcpus, node.free().vcpus),
        },
    },
    Rule {
        name: Filter::Memory,
        word: "memory",
        summary: "enough memory must be free",
        optional: false,
        applies: |_| true,
        looks: Looks::AtNode {
            passes: |node, demand| {
                node.used.memory_mib.saturating_add(demand.amounts.memory_mib) <= node.capacity.memory_mib
            },
            why: |node, demand| format!("need {} MiB, have {} MiB", demand.amounts.memory_mib, node.free().memory_mib),
        },
    },
    Rule {
        name: Filter::Disk,
        word: "disk",
        summary: "enough disk must be free",
        optional: false,
        applies: |_| true,
        looks: Looks::AtNode {
            passes: |node, demand| node.used.disk_gib.saturating_add(demand.amounts.disk_gib) <= node.capacity.disk_gib,
            why: |node, demand| format!("need {} GiB, have {} GiB", demand.amounts.disk_gib, node.free().disk_gib),
        },
    },
];

/// The properties that none of the node's aggregates has.
fn lacking<'a>(class: &'a Class, demand: &'a Demand) -> impl Iterator<Item = String> + 'a {
    let wanted = demand.needs.properties.iter();
    wanted
        .filter(|(key, value)| !class.properties.contains(&((*key).clone(), (*value).clone())))
        .map(|(key, value)| format!("{key}={value}"))
}

fn wanted_by_group(node: &Candidate, demand: &Demand) -> bool {
    let Some(group) = &demand.group else { return true };
    let here = group.on.get(&node.node).copied().unwrap_or(0);
    match group.policy {
        GroupPolicy::Affinity => here > 0 || group.on.is_empty(),
        GroupPolicy::AntiAffinity => here < group.most,
        GroupPolicy::SoftAffinity | GroupPolicy::SoftAntiAffinity => true,
    }
}

fn why_not_wanted(node: &Candidate, demand: &Demand) -> String {
    let Some(group) = &demand.group else { return String::new() };
    let here = group.on.get(&node.node).copied().unwrap_or(0);
    match group.policy {
        GroupPolicy::Affinity => "the other servers of its group are elsewhere".to_owned(),
        _ => format!("{here} of its group are there already, {} may be", group.most),
    }
}
