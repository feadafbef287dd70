//! Placement in words: why a node was chosen, and why none could be.

use nephos_driver::DiskFormat;
use nephos_ops::placement::{PlacementReasons, Refused};
use nephos_types::{Error, ErrorKind};

use super::{
    Amounts, Candidate, Demand, Nodes, Policy,
    decide::rules,
    filter::{Looks, RULES, Rule},
};

/// How many nodes a refusal names one by one.
const NAMED_NODES: usize = 20;

/// Why a node cannot take a server: all that stands against it.
pub(super) fn refusals(policy: &Policy, candidate: &Candidate, demand: &Demand) -> Vec<(&'static Rule, String)> {
    let refusal = |rule: &'static Rule| match &rule.looks {
        Looks::AtNode { passes, why } => (!passes(candidate, demand)).then(|| why(candidate, demand)),
        Looks::AtClass { passes, why } => (!passes(&candidate.class, demand)).then(|| why(&candidate.class, demand)),
    };
    rules(policy, demand).filter_map(|(_, rule)| Some((rule, refusal(rule)?))).collect()
}

fn word(refused: &Refused) -> &'static str {
    RULES.iter().find(|rule| rule.name == refused.filter).map_or("", |rule| rule.word)
}

fn counted(refused: &[Refused]) -> String {
    let counts: Vec<String> = refused.iter().map(|refused| format!("{} {}", word(refused), refused.nodes)).collect();
    counts.join(", ")
}

/// How far a node is from taking a server: by how many filters, then by what share of the need it is short of.
fn miss(policy: &Policy, candidate: &Candidate, demand: &Demand) -> (usize, u64) {
    let against = rules(policy, demand).filter(|(_, rule)| match &rule.looks {
        Looks::AtNode { passes, .. } => !passes(candidate, demand),
        Looks::AtClass { passes, .. } => !passes(&candidate.class, demand),
    });
    let short = demand.amounts.minus(candidate.free());
    let share = |short: u64, need: u64| short.saturating_mul(1000) / need.max(1);
    let amounts = demand.amounts;
    let short = share(short.vcpus, amounts.vcpus)
        + share(short.memory_mib, amounts.memory_mib)
        + share(short.disk_gib, amounts.disk_gib);
    (against.count(), short)
}

/// The refusal when no node can take a server: how many nodes each filter refused, and the nearest misses.
pub(super) fn nothing_fits(nodes: &Nodes, policy: &Policy, demand: &Demand, refused: &[Refused]) -> Error {
    let candidates = nodes.candidates();
    let error = Error::new(ErrorKind::Capacity, "no_placement", "No node can take the server");
    if candidates.is_empty() {
        return error.detail("there is no node yet").next("add a machine", Some("nephos node join-token".to_owned()));
    }
    let mut nearest: Vec<_> = candidates.iter().map(|candidate| (miss(policy, candidate, demand), candidate)).collect();
    nearest.sort_by_key(|(miss, candidate)| (*miss, candidate.node));
    let mut error = error;
    let mut nearest_words = String::new();
    for (place, (_, candidate)) in nearest.iter().take(NAMED_NODES).enumerate() {
        for (rule, why) in refusals(policy, candidate, demand) {
            if place == 0 {
                let separator = if nearest_words.is_empty() { "" } else { "; " };
                nearest_words.push_str(&format!("{separator}{why}"));
            }
            error = error.reason(candidate.name.as_str(), rule.word, why);
        }
    }
    if let Some(format) =
        demand.format.filter(|format| !candidates.iter().any(|node| node.class.abilities.boot(*format)))
    {
        return no_driver(error, format);
    }
    let Amounts { vcpus, memory_mib, disk_gib } = demand.amounts;
    let mut detail = format!(
        "it needs {vcpus} vCPU, {memory_mib} MiB of memory and {disk_gib} GiB of disk; of {} node{} refused: {}",
        candidates.len(),
        if candidates.len() == 1 { "" } else { "s" },
        counted(refused),
    );
    if let Some((_, first)) = nearest.first() {
        detail.push_str(&format!("; nearest: {} ({nearest_words})", first.name));
    }
    if candidates.len() > NAMED_NODES {
        detail.push_str(&format!("; the nearest {NAMED_NODES} are named here"));
    }
    error
        .detail(detail)
        .next("use a smaller flavor", Some("nephos flavor list".to_owned()))
        .next("see what there is room for", Some("nephos capacity list".to_owned()))
        .next("add a machine", Some("nephos node join-token".to_owned()))
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

/// A decision in a sentence.
pub(crate) fn summary(name: &str, reasons: &PlacementReasons) -> String {
    let mut text = format!("{name}: best of {} of {} nodes", reasons.fitting, reasons.nodes);
    if reasons.fitting == 1 {
        text = format!("{name}: the only one of {} that fits", reasons.nodes);
    }
    if !reasons.refused.is_empty() {
        text.push_str(&format!("; refused: {}", counted(&reasons.refused)));
    }
    let weights: Vec<String> = reasons
        .weights
        .iter()
        .map(|weighed| format!("{:?} {} %", weighed.weight, weighed.share / 10_000).to_lowercase())
        .collect();
    if !weights.is_empty() {
        text.push_str(&format!("; {}", weights.join(", ")));
    }
    text
}
