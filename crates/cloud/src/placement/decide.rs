//! The decision: one look at each node, counting why nodes are refused and keeping the best ones.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use nephos_ops::placement::{Filter, PlacementReasons, Refused, RunnerUp, Weighed};
use nephos_types::Error;

use super::{
    Candidate, Class, Demand, Policy, explain,
    filter::{Looks, RULES, Rule},
    weight::{SCALES, Scale},
};

/// How many nodes are remembered besides the best one.
const RUNNERS_UP: usize = 3;

/// All nodes, in order of id, each with the number of its kind.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    pub(super) candidates: Vec<Candidate>,
    /// The number of each candidate's class.
    numbers: Vec<u32>,
    classes: Vec<Arc<Class>>,
}

impl Nodes {
    /// Of these.
    #[must_use]
    pub fn new(mut candidates: Vec<Candidate>) -> Self {
        candidates.sort_by_key(|candidate| candidate.node);
        let (mut classes, mut known) = (vec![], HashMap::new());
        let number = |candidate: &Candidate| {
            *known.entry(Arc::as_ptr(&candidate.class)).or_insert_with(|| {
                classes.push(Arc::clone(&candidate.class));
                u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
            })
        };
        let numbers = candidates.iter().map(number).collect();
        Self { candidates, numbers, classes }
    }

    /// The nodes.
    #[must_use]
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Notes a demand on the node of this number, and shows it.
    pub(crate) fn taken(&mut self, index: usize, amounts: super::Amounts) -> Option<&Candidate> {
        let candidate = self.candidates.get_mut(index)?;
        candidate.used = candidate.used.plus(amounts);
        Some(candidate)
    }

    /// The node of this id, to be changed.
    pub(crate) fn find_mut(&mut self, node: nephos_types::NodeId) -> Option<&mut Candidate> {
        let index = self.candidates.binary_search_by_key(&node, |candidate| candidate.node).ok()?;
        self.candidates.get_mut(index)
    }
}

/// The best node, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Its number.
    pub index: usize,
    /// Why it, and why not the others.
    pub reasons: PlacementReasons,
}

/// What a demand comes to under a policy: the rules that have to do with it.
pub(super) struct Question<'a> {
    demand: &'a Demand,
    /// For each class the first rule that refuses it: its place in [`RULES`].
    classes: Vec<Option<usize>>,
    at_nodes: Vec<(usize, fn(&Candidate, &Demand) -> bool)>,
    scales: Vec<(&'static Scale, i32)>,
}

/// The rules that have to do with a demand.
pub(super) fn rules<'a>(policy: &'a Policy, demand: &'a Demand) -> impl Iterator<Item = (usize, &'static Rule)> + 'a {
    RULES.iter().enumerate().filter(|(_, rule)| policy.stands(rule.name) && (rule.applies)(demand))
}

impl<'a> Question<'a> {
    pub(super) fn new(nodes: &Nodes, policy: &Policy, demand: &'a Demand) -> Self {
        let (mut at_nodes, mut at_classes) = (vec![], vec![]);
        for (place, rule) in rules(policy, demand) {
            match rule.looks {
                Looks::AtNode { passes, .. } => at_nodes.push((place, passes)),
                Looks::AtClass { passes, .. } => at_classes.push((place, passes)),
            }
        }
        let refused =
            |class: &Arc<Class>| at_classes.iter().find(|(_, passes)| !passes(class, demand)).map(|(place, _)| *place);
        let scales = SCALES.iter().filter(|scale| (scale.applies)(demand));
        let scales = scales.map(|scale| (scale, policy.multiplier(scale.name, scale.multiplier)));
        Self {
            demand,
            classes: nodes.classes.iter().map(refused).collect(),
            at_nodes,
            scales: scales.filter(|(_, multiplier)| *multiplier != 0).collect(),
        }
    }

    /// The first rule that stands against a node.
    fn refusal(&self, class: u32, candidate: &Candidate) -> Option<usize> {
        let of_class = self.classes.get(class as usize).copied().flatten();
        let of_node = self.at_nodes.iter().find(|(_, passes)| !passes(candidate, self.demand)).map(|(place, _)| *place);
        match (of_class, of_node) {
            (Some(class), Some(node)) => Some(class.min(node)),
            (class, node) => class.or(node),
        }
    }

    fn score(&self, candidate: &Candidate) -> i64 {
        let weigh = |(scale, multiplier): &(&Scale, i32)| {
            i64::from((scale.share)(candidate, self.demand)) * i64::from(*multiplier)
        };
        self.scales.iter().map(weigh).sum()
    }
}

/// Whether each node can take a demand, in the order of [`Nodes::candidates`]; without the reasons that [`choose`] gives.
#[must_use]
pub fn fitting(nodes: &Nodes, policy: &Policy, demand: &Demand) -> Vec<bool> {
    let question = Question::new(nodes, policy, demand);
    let all = nodes.candidates.iter().zip(&nodes.numbers);
    all.map(|(candidate, class)| question.refusal(*class, candidate).is_none()).collect()
}

/// The best node for a demand, or why none can take it.
///
/// # Errors
/// Of kind `Capacity`, with the number of nodes that each filter refused and the nodes that miss by the least.
pub fn choose(nodes: &Nodes, policy: &Policy, demand: &Demand) -> Result<Decision, Error> {
    let question = Question::new(nodes, policy, demand);
    let mut refused = [0u64; RULES_MOST];
    let mut fitting = 0;
    // The best first. Of equals the first one in order of id, so that decisions can be repeated.
    let mut best: Vec<(i64, usize)> = Vec::with_capacity(RUNNERS_UP + 2);
    for (index, (candidate, class)) in nodes.candidates.iter().zip(&nodes.numbers).enumerate() {
        match question.refusal(*class, candidate) {
            Some(place) => refused[place] += 1,
            None => {
                fitting += 1;
                let score = question.score(candidate);
                if best.len() > RUNNERS_UP && best.last().is_some_and(|(last, _)| score <= *last) {
                    continue;
                }
                let place = best.partition_point(|(other, _)| other.cmp(&score) != Ordering::Less);
                best.insert(place, (score, index));
                best.truncate(RUNNERS_UP + 1);
            }
        }
    }
    let refused: Vec<Refused> = RULES
        .iter()
        .zip(refused)
        .filter(|(_, count)| *count > 0)
        .map(|(rule, nodes)| Refused { filter: rule.name, nodes })
        .collect();
    let Some((score, index)) = best.first().copied() else {
        return Err(explain::nothing_fits(nodes, policy, demand, &refused));
    };
    let chosen = &nodes.candidates[index];
    let weigh = |(scale, multiplier): &(&'static Scale, i32)| Weighed {
        weight: scale.name,
        multiplier: *multiplier,
        share: (scale.share)(chosen, demand),
    };
    let reasons = PlacementReasons {
        nodes: nodes.candidates.len() as u64,
        fitting,
        refused,
        weights: question.scales.iter().map(weigh).collect(),
        score,
        runners_up: best
            .iter()
            .skip(1)
            .map(|(score, index)| RunnerUp { name: nodes.candidates[*index].name.clone(), score: *score })
            .collect(),
    };
    Ok(Decision { index, reasons })
}

/// One more than the number of the last filter.
const RULES_MOST: usize = Filter::Disk as usize + 1;
