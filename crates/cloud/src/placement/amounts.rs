//! Amounts of what nodes have and servers take.

use nephos_ops::placement::Overcommit;
use serde::{Deserialize, Serialize};

/// Amounts of what nodes have and servers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amounts {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

impl Amounts {
    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
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

    /// What is given out of this, in percent; what is not said is given out as it is.
    #[must_use]
    pub fn overcommitted(self, by: &Overcommit) -> Self {
        let times = |amount: u64, percent: Option<u32>| {
            let product = u128::from(amount) * u128::from(percent.unwrap_or(100)) / 100;
            u64::try_from(product).unwrap_or(u64::MAX)
        };
        Self {
            vcpus: times(self.vcpus, by.vcpus),
            memory_mib: times(self.memory_mib, by.memory),
            disk_gib: times(self.disk_gib, by.disk),
        }
    }

    /// How often `one` fits into this.
    #[must_use]
    pub fn holds(self, one: Self) -> u64 {
        let times = |have: u64, need: u64| have.checked_div(need).unwrap_or(u64::MAX);
        times(self.vcpus, one.vcpus).min(times(self.memory_mib, one.memory_mib)).min(times(self.disk_gib, one.disk_gib))
    }
}
