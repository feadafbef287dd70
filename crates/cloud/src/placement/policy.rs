//! Which filters stand and how much weights count, as operators set them.

use std::collections::{BTreeMap, BTreeSet};

use nephos_ops::placement::{Filter, FilterSetting, Overcommit, Weight, WeightSetting};
use nephos_store::Kind;
use nephos_types::{Error, Id, PlacementId, Result};
use serde::{Deserialize, Serialize};

use super::{filter::RULES, weight::SCALES};

/// What operators decide; what is not said is as built in. There is one record of it, under [`Policy::id`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Filters that are switched off.
    #[serde(default)]
    pub(super) off: BTreeSet<Filter>,
    /// Multipliers of weights.
    #[serde(default)]
    pub(super) multipliers: BTreeMap<Weight, i32>,
    /// What nodes give out.
    #[serde(default)]
    pub(super) overcommit: Overcommit,
}

impl Kind for Policy {
    type Id = PlacementId;
    const NAME: &'static str = "placement";
}

/// What is given out of a node if nobody says anything: four virtual CPUs for each CPU.
const BUILT_IN: Overcommit = Overcommit { vcpus: Some(400), memory: Some(100), disk: Some(100) };

/// What the first says; what it leaves open, the second.
pub(crate) fn first_of(first: &Overcommit, second: &Overcommit) -> Overcommit {
    Overcommit {
        vcpus: first.vcpus.or(second.vcpus),
        memory: first.memory.or(second.memory),
        disk: first.disk.or(second.disk),
    }
}

impl Policy {
    /// Of the one record.
    #[must_use]
    pub fn id() -> PlacementId {
        PlacementId::from_bits(1)
    }

    pub(super) fn stands(&self, filter: Filter) -> bool {
        !self.off.contains(&filter)
    }

    pub(super) fn multiplier(&self, weight: Weight, built_in: i32) -> i32 {
        self.multipliers.get(&weight).copied().unwrap_or(built_in)
    }

    /// What nodes give out that leave it to the cloud.
    #[must_use]
    pub fn overcommit(&self) -> Overcommit {
        first_of(&self.overcommit, &BUILT_IN)
    }

    /// With other overcommitment, where it says something.
    pub(crate) fn overcommitted(mut self, by: &Overcommit) -> Self {
        self.overcommit = first_of(by, &self.overcommit);
        self
    }

    /// With a filter on or off.
    pub(crate) fn filtered(mut self, filter: Filter, enabled: bool) -> Result<Self> {
        let rule = RULES.iter().find(|rule| rule.name == filter);
        if !enabled && rule.is_none_or(|rule| !rule.optional) {
            let optional: Vec<&str> = RULES.iter().filter(|rule| rule.optional).map(|rule| rule.word).collect();
            return Err(Error::invalid("filter_required", "This filter cannot be switched off")
                .detail(format!("those that can: {}", optional.join(", "))));
        }
        if enabled {
            self.off.remove(&filter);
        } else {
            self.off.insert(filter);
        }
        Ok(self)
    }

    /// With another multiplier.
    pub(crate) fn weighed(mut self, weight: Weight, multiplier: i32) -> Self {
        self.multipliers.insert(weight, multiplier);
        self
    }

    /// All filters, for people.
    #[must_use]
    pub fn filters(&self) -> Vec<FilterSetting> {
        let setting = |rule: &super::filter::Rule| FilterSetting {
            name: rule.name,
            enabled: self.stands(rule.name),
            optional: rule.optional,
            summary: rule.summary.to_owned(),
        };
        RULES.iter().map(setting).collect()
    }

    /// All weights, for people.
    #[must_use]
    pub fn weights(&self) -> Vec<WeightSetting> {
        let setting = |scale: &super::weight::Scale| WeightSetting {
            name: scale.name,
            multiplier: self.multiplier(scale.name, scale.multiplier),
            summary: scale.summary.to_owned(),
        };
        SCALES.iter().map(setting).collect()
    }
}
