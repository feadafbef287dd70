//! What kind of node a node is: all that a demand asks of it which does not change with each server.

use std::collections::BTreeSet;

use nephos_driver::{Capabilities, DiskFormat, Feature};
use nephos_types::Name;

use super::Demand;

/// The most drivers of one node that placement looks at.
const DRIVERS: usize = 4;

/// A kind of node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Class {
    /// The availability zone.
    pub zone: Name,
    /// What it is and has.
    pub traits: BTreeSet<String>,
    /// Properties of its aggregates.
    pub properties: BTreeSet<(String, String)>,
    /// What its drivers can do.
    pub abilities: Abilities,
}

/// What the drivers of one node can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Abilities([Ability; DRIVERS]);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
    pub(super) fn suit(&self, demand: &Demand) -> bool {
        let format = demand.format.map_or(0, format_bit);
        let features = feature_bits(&demand.features);
        demand.format.is_none() && features == 0
            || self.0.iter().any(|able| able.formats & format == format && able.features & features == features)
    }

    /// Whether one driver boots the format.
    pub(super) fn boot(&self, format: DiskFormat) -> bool {
        self.0.iter().any(|able| able.formats & format_bit(format) != 0)
    }
}
