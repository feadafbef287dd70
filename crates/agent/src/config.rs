//! How an agent behaves; the defaults are what a real machine wants.

use std::{path::PathBuf, time::Duration};

use nephos_node_api::{Inventory, PortRange};
use nephos_types::Bytes;

use crate::upgrade::Program;

/// Settings of one agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// The agent's folder: what the node should run, and cached images. `None` keeps everything in memory and fetches
    /// no images, for simulated nodes.
    pub data: Option<PathBuf>,
    /// Version reported to the control plane.
    pub version: String,
    /// This process's program, if the agent may replace it when the control plane asks for that.
    pub program: Option<Program>,
    /// Inventory to report instead of the machine's own, for simulated nodes.
    pub inventory: Option<Inventory>,
    /// Ports of the node's loopback for forwards.
    pub forward_ports: PortRange,
    /// Memory that guests cannot have; `None` for 256 MiB and 2 % of the machine's.
    pub reserved_memory: Option<Bytes>,
    /// Disk that guests cannot have.
    pub reserved_disk: Bytes,
    /// How large the image cache may grow; what guests use is kept even beyond.
    pub image_cache: Bytes,
    /// How many servers are worked on at the same time.
    pub parallel: usize,
    /// How long a poll for what should be is held open.
    pub poll: Duration,
    /// How often everything is looked at even if nothing seems to have happened.
    pub sweep: Duration,
    /// How often everything is reported even if nothing has changed.
    pub full_report: Duration,
    /// How long a starting agent waits for the control plane before it goes by what it remembers.
    pub patience: Duration,
    /// Delays between attempts that fail, and before crashed guests are restarted.
    pub retry: Backoff,
    /// How many samples of what servers use are kept in memory, of all servers together; none are taken if zero. One
    /// takes about 110 bytes.
    pub usage_samples: usize,
    /// A guest that has run this long has recovered: its next crash is a first one again.
    pub stable_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            program: None,
            inventory: None,
            forward_ports: PortRange { first: 20_000, last: 29_999 },
            reserved_memory: None,
            reserved_disk: Bytes::mib(1024),
            image_cache: Bytes::mib(20 * 1024),
            parallel: 32,
            poll: Duration::from_secs(25),
            sweep: Duration::from_secs(30),
            full_report: Duration::from_secs(60),
            patience: Duration::from_secs(5),
            retry: Backoff { first: Duration::from_millis(500), most: Duration::from_secs(60) },
            // An hour of seconds for each of 250 servers.
            usage_samples: 900_000,
            stable_after: Duration::from_secs(600),
        }
    }
}

/// Delays that double, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the second attempt.
    pub first: Duration,
    /// The longest.
    pub most: Duration,
}

impl Backoff {
    /// The delay after this many failures (1 is the first): between half and all of `first * 2^(failures-1)`, so that
    /// many nodes that fail together do not come back together.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        let doubled = self.first.saturating_mul(1u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.most).mul_f64(rand::random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let backoff = Backoff { first: Duration::from_millis(100), most: Duration::from_secs(3) };
        for (failures, most) in [(1, 100), (2, 200), (3, 400), (6, 3000), (40, 3000), (u32::MAX, 3000)] {
            let delay = backoff.after(failures);
            let most = Duration::from_millis(most);
            assert!(delay <= most && delay >= most / 2, "{failures}: {delay:?}");
        }
    }
}
