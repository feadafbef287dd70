//! How the machine is: what somebody should look at before servers suffer from it.
//!
//! Messages hold no figures that change: what is said is written down by the control plane each time it differs.

use std::{fs, path::PathBuf, sync::Mutex, sync::PoisonError, time::Duration};

use nephos_node_api::Condition;
use tokio::time::Instant;

/// How often it is looked.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Less of the disk than one part in this is nearly full.
const NEARLY_FULL: u64 = 20;
/// Work that waits for memory during this part of a minute, in percent, is under pressure.
const PRESSURE: f64 = 20.0;

/// Looks at the machine, now and then.
pub(crate) struct Health {
    data: Option<PathBuf>,
    seen: Mutex<Option<(Instant, Vec<Condition>)>>,
}

impl Health {
    /// Of the machine that has this folder; of a simulated one without.
    pub(crate) fn new(data: Option<PathBuf>) -> Self {
        Self { data, seen: Mutex::default() }
    }

    /// What is so, at most [`LOOK_EVERY`] old.
    pub(crate) fn look(&self) -> Vec<Condition> {
        let Some(data) = &self.data else { return vec![] };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, conditions)) = &*seen
            && at.elapsed() < LOOK_EVERY
        {
            return conditions.clone();
        }
        let disk = nix::sys::statvfs::statvfs(data).ok();
        let blocks = disk.map(|disk| (disk.blocks_available(), disk.blocks()));
        let pressure = fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
        let conditions = conditions(blocks, &pressure);
        *seen = Some((Instant::now(), conditions.clone()));
        conditions
    }
}

/// From free and all blocks of the disk, and the text of `/proc/pressure/memory`.
fn conditions(blocks: Option<(u64, u64)>, pressure: &str) -> Vec<Condition> {
    let disk = blocks.filter(|(free, all)| free.saturating_mul(NEARLY_FULL) < *all).map(|_| Condition {
        code: "disk_nearly_full".to_owned(),
        message:
            "less than 5 % of the disk with the agent's folder is free; make room before servers' disks cannot grow"
                .to_owned(),
    });
    let memory = stalled(pressure).filter(|percent| *percent > PRESSURE).map(|_| Condition {
        code: "memory_pressure".to_owned(),
        message: "programs wait for memory most of the time; move servers away or overcommit less".to_owned(),
    });
    [disk, memory].into_iter().flatten().collect()
}

/// For how much of the last minute something waited for memory, in percent.
fn stalled(pressure: &str) -> Option<f64> {
    let some = pressure.lines().find_map(|line| line.strip_prefix("some "))?;
    some.split_whitespace().find_map(|field| field.strip_prefix("avg60=")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_waiting_for_memory_are_noticed() {
        let codes = |blocks, pressure: &str| {
            conditions(blocks, pressure).into_iter().map(|condition| condition.code).collect::<Vec<_>>()
        };
        let pressure = |percent: &str| {
            format!(
                "some avg10=0.00 avg60={percent} avg300=0.41 total=1\nfull avg10=99.00 avg60=99.00 avg300=99.00 total=1\n"
            )
        };
        assert!(codes(Some((5, 100)), &pressure("20.00")).is_empty());
        assert_eq!(codes(Some((4, 100)), &pressure("20.01")), ["disk_nearly_full", "memory_pressure"]);
        assert!(codes(None, "").is_empty());
        assert!(codes(None, "some avg60=x").is_empty());
    }
}
