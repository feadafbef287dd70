//! Placement against a model that is too simple to be wrong: look at each node, ask everything, take the best.

use std::{collections::BTreeMap, sync::Arc};

use nephos_ops::placement::{Filter, GroupPolicy, Weight};
use nephos_types::{ErrorKind, Id, NodeId};
use proptest::prelude::*;

use super::*;

fn class(zone: &str, traits: &[&str], properties: &[(&str, &str)], format: Option<DiskFormat>) -> Arc<Class> {
    let driver = nephos_driver::Capabilities {
        driver: "d".to_owned(),
        version: "1".to_owned(),
        accelerator: nephos_driver::Accelerator::None,
        disk_formats: format.into_iter().collect(),
        console: true,
        soft_stop: true,
        features: [].into(),
    };
    Arc::new(Class {
        zone: zone.parse().unwrap(),
        traits: traits.iter().map(|name| (*name).to_owned()).collect(),
        properties: properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        abilities: Abilities::of(&[driver]),
    })
}

fn candidate(number: u64, memory_mib: u64) -> Candidate {
    Candidate {
        node: NodeId::from_bits(number),
        name: format!("n{number}").parse().unwrap(),
        up: true,
        disabled: None,
        class: class(DEFAULT_ZONE, &[], &[], Some(DiskFormat::Qcow2)),
        capacity: Amounts { vcpus: 8, memory_mib, disk_gib: 100 },
        used: Amounts::default(),
    }
}

fn demand(memory_mib: u64) -> Demand {
    let amounts = Amounts { vcpus: 1, memory_mib, disk_gib: 1 };
    Demand { amounts, format: Some(DiskFormat::Qcow2), ..Demand::default() }
}

fn decide(candidates: &[Candidate], demand: &Demand) -> Result<Decision, nephos_types::Error> {
    choose(&Nodes::new(candidates.to_vec()), &Policy::default(), demand)
}

fn look(candidates: Vec<Candidate>) -> Look<impl Fn() -> (Vec<Candidate>, Policy)> {
    Look { version: 1, draw: move || (candidates.clone(), Policy::default()) }
}

#[test]
fn servers_spread() {
    let candidates = Candidates::default();
    let look = look(vec![candidate(1, 1024), candidate(2, 1024)]);
    let first = candidates.place(&look, &demand(256)).unwrap().node;
    let second = candidates.place(&look, &demand(256)).unwrap().node;
    assert_ne!(first, second);
}

#[test]
fn a_refusal_counts_by_filter_and_names_the_nearest_first() {
    let mut down = candidate(1, 128);
    down.up = false;
    let mut disabled = candidate(2, 4096);
    disabled.disabled = Some("new disk".to_owned());
    let mut other = candidate(3, 128);
    other.class = class(DEFAULT_ZONE, &[], &[], None);
    let small = candidate(4, 128);
    let smaller = candidate(5, 64);
    let error = decide(&[down, disabled, other, small, smaller], &demand(256)).unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Capacity, "no_placement"));
    let reasons: Vec<_> = error.reasons.iter().map(|r| (r.subject.as_str(), r.constraint.as_str())).collect();
    let expected = [
        ("n2", "enabled"),
        ("n4", "memory"),
        ("n5", "memory"),
        ("n1", "up"),
        ("n1", "memory"),
        ("n3", "format"),
        ("n3", "memory"),
    ];
    assert_eq!(reasons, expected);
    assert_eq!(error.reasons[1].detail, "need 256 MiB, have 128 MiB");
    assert!(error.detail.contains("of 5 nodes refused: up 1, enabled 1, format 1, memory 2"), "{}", error.detail);
    assert!(error.detail.contains("nearest: n2 (the node is disabled: new disk)"), "{}", error.detail);
}

#[test]
fn a_decision_says_why() {
    let mut full = candidate(1, 1024);
    full.used.memory_mib = 1024;
    let decision = decide(&[full, candidate(2, 1024), candidate(3, 2048)], &demand(256)).unwrap();
    assert_eq!(decision.index, 2);
    let reasons = decision.reasons;
    assert_eq!((reasons.nodes, reasons.fitting), (3, 2));
    assert_eq!(reasons.refused.iter().map(|r| (r.filter, r.nodes)).collect::<Vec<_>>(), [(Filter::Memory, 1)]);
    assert_eq!(reasons.runners_up.iter().map(|other| other.name.as_str()).collect::<Vec<_>>(), ["n2"]);
    assert!(reasons.score > reasons.runners_up[0].score);
    let memory = reasons.weights.iter().find(|weighed| weighed.weight == Weight::Memory).unwrap();
    assert_eq!(memory.share, 875_000);
    let sum: i64 = reasons.weights.iter().map(|w| i64::from(w.share) * i64::from(w.multiplier)).sum();
    assert_eq!(sum, reasons.score);
    let summary = explain::summary("n3", &reasons);
    assert!(summary.starts_with("n3: best of 2 of 3 nodes; refused: memory 1; memory 87 %"), "{summary}");
}

#[test]
fn what_is_asked_of_a_node_is_kept() {
    let mut here = candidate(1, 1024);
    here.class = class("east", &["CUSTOM_GOLD"], &[("disk", "nvme")], Some(DiskFormat::Qcow2));
    let nodes = [here, candidate(2, 4096)];
    let with = |change: fn(&mut Demand)| {
        let mut demand = demand(256);
        change(&mut demand);
        decide(&nodes, &demand).map(|decision| decision.index)
    };
    assert_eq!(with(|_| {}).unwrap(), 1);
    assert_eq!(with(|d| d.needs.zone = Some("east".parse().unwrap())).unwrap(), 0);
    assert_eq!(with(|d| d.needs.required = ["CUSTOM_GOLD".to_owned()].into()).unwrap(), 0);
    assert_eq!(with(|d| d.needs.properties = [("disk".to_owned(), "nvme".to_owned())].into()).unwrap(), 0);
    assert_eq!(with(|d| d.only = Some(NodeId::from_bits(1))).unwrap(), 0);
    assert_eq!(with(|d| d.not = Some(NodeId::from_bits(2))).unwrap(), 0);
    let error = with(|d| {
        d.needs.zone = Some("east".parse().unwrap());
        d.needs.forbidden.insert("CUSTOM_GOLD".to_owned());
    })
    .unwrap_err();
    let reasons: Vec<_> = error.reasons.iter().map(|r| (r.subject.as_str(), r.constraint.as_str())).collect();
    assert_eq!(reasons, [("n1", "traits"), ("n2", "zone")]);
    let off = Policy::default().filtered(Filter::Zone, false).unwrap();
    let mut elsewhere = demand(256);
    elsewhere.needs.zone = Some("nowhere".parse().unwrap());
    assert!(choose(&Nodes::new(nodes.to_vec()), &off, &elsewhere).is_ok());
    assert_eq!(Policy::default().filtered(Filter::Memory, false).unwrap_err().code, "filter_required");
}

#[test]
fn weights_turn_the_other_way() {
    let mut half = candidate(1, 1024);
    half.used = Amounts { vcpus: 4, memory_mib: 512, disk_gib: 50 };
    let nodes = Nodes::new(vec![half, candidate(2, 1024)]);
    let packed = Policy::default().weighed(Weight::Memory, -1000);
    assert_eq!(choose(&nodes, &Policy::default(), &demand(256)).unwrap().index, 1);
    assert_eq!(choose(&nodes, &packed, &demand(256)).unwrap().index, 0);
}

#[test]
fn what_is_given_back_can_be_placed_again() {
    let candidates = Candidates::default();
    let full = std::cell::Cell::new(false);
    let look = Look {
        version: 1,
        draw: || {
            let mut only = candidate(1, 256);
            only.used.memory_mib = if full.get() { 256 } else { 0 };
            (vec![only], Policy::default())
        },
    };
    let node = candidates.place(&look, &demand(256)).unwrap().node;
    full.set(true);
    assert!(candidates.place(&look, &demand(256)).is_err());
    candidates.give_back(node, demand(256).amounts);
    assert!(candidates.place(&look, &demand(256)).is_ok());
}

/// One node of the model, in numbers.
type Drawn = (u64, u64, bool, bool, u8, u8);

fn drawn() -> impl Strategy<Value = Drawn> {
    (0u64..2048, 0u64..10, prop::bool::weighted(0.9), prop::bool::weighted(0.9), 0u8..3, 0u8..4)
}

fn real((memory, vcpus, up, enabled, zone, traits): Drawn, number: u64) -> Candidate {
    let names: &[&str] = [&[][..], &["CUSTOM_A"], &["CUSTOM_B"], &["CUSTOM_A", "CUSTOM_B"]][usize::from(traits)];
    Candidate {
        up,
        disabled: (!enabled).then(String::new),
        class: class(["default", "east", "west"][usize::from(zone)], names, &[], Some(DiskFormat::Qcow2)),
        capacity: Amounts { vcpus, memory_mib: memory, disk_gib: 30 },
        ..candidate(number, 0)
    }
}

/// One server of the model: memory, zone, required and forbidden trait, whether it is in the group.
type Wanted = (u64, Option<u8>, bool, bool, bool);

fn wanted() -> impl Strategy<Value = Wanted> {
    (1u64..1024, prop::option::weighted(0.3, 0u8..3), any::<bool>(), prop::bool::weighted(0.2), any::<bool>())
}

fn policy() -> impl Strategy<Value = GroupPolicy> {
    prop_oneof![
        Just(GroupPolicy::Affinity),
        Just(GroupPolicy::AntiAffinity),
        Just(GroupPolicy::SoftAffinity),
        Just(GroupPolicy::SoftAntiAffinity),
    ]
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_model(
        nodes in prop::collection::vec(drawn(), 1..8),
        servers in prop::collection::vec(wanted(), 1..30),
        policy in policy(),
        most in 1u64..3,
    ) {
        let mut all: Vec<Candidate> = nodes.iter().zip(1..).map(|(drawn, number)| real(*drawn, number)).collect();
        let mut on: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (memory, zone, requires, forbids, grouped) in servers {
            let mut demand = demand(memory);
            demand.needs.zone = zone.map(|zone| ["default", "east", "west"][usize::from(zone)].parse().unwrap());
            if requires {
                demand.needs.required.insert("CUSTOM_A".to_owned());
            }
            if forbids {
                demand.needs.forbidden.insert("CUSTOM_B".to_owned());
            }
            demand.group = grouped.then(|| Together { policy, most, on: on.clone() });
            let fits = |node: &Candidate| {
                let here = on.get(&node.node).copied().unwrap_or(0);
                let group = !grouped || match policy {
                    GroupPolicy::Affinity => here > 0 || on.is_empty(),
                    GroupPolicy::AntiAffinity => here < most,
                    _ => true,
                };
                node.up && node.disabled.is_none() && group
                    && demand.needs.zone.as_ref().is_none_or(|zone| *zone == node.class.zone)
                    && (!requires || node.class.traits.contains("CUSTOM_A"))
                    && (!forbids || !node.class.traits.contains("CUSTOM_B"))
                    && node.used.memory_mib + memory <= node.capacity.memory_mib
                    && node.used.vcpus < node.capacity.vcpus
                    && node.used.disk_gib < node.capacity.disk_gib
            };
            let fitting: Vec<usize> = (0..all.len()).filter(|index| fits(&all[*index])).collect();
            match decide(&all, &demand) {
                Ok(Decision { index, reasons }) => {
                    prop_assert!(fitting.contains(&index));
                    prop_assert_eq!(reasons.fitting, fitting.len() as u64);
                    let refused: u64 = reasons.refused.iter().map(|refused| refused.nodes).sum();
                    prop_assert_eq!(refused + reasons.fitting, all.len() as u64);
                    let here = |index: usize| on.get(&all[index].node).copied().unwrap_or(0);
                    match policy {
                        GroupPolicy::SoftAffinity if grouped => {
                            prop_assert_eq!(here(index), fitting.iter().map(|other| here(*other)).max().unwrap());
                        }
                        GroupPolicy::SoftAntiAffinity if grouped => {
                            prop_assert_eq!(here(index), fitting.iter().map(|other| here(*other)).min().unwrap());
                        }
                        _ => {}
                    }
                    prop_assert!(reasons.runners_up.iter().all(|other| other.score <= reasons.score));
                    if grouped {
                        *on.entry(all[index].node).or_default() += 1;
                    }
                    all[index].used = all[index].used.plus(demand.amounts);
                }
                Err(error) => {
                    prop_assert!(fitting.is_empty());
                    // Each node is named with all that stands against it.
                    for node in &all {
                        prop_assert!(error.reasons.iter().any(|reason| reason.subject == node.name.as_str()));
                    }
                }
            }
        }
    }
}
