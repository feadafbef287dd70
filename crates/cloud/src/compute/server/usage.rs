//! What servers use, as their nodes have measured and kept it.

use std::{sync::Arc, time::Duration};

use nephos_node_api::{Resolution, StreamPurpose, UsageQuery, UsageSample, frame};
use nephos_ops::compute::{ListUsage, ServerUsage, UsageResolution};
use nephos_types::{Bytes, Error, ErrorKind, Page, Result};

use super::Server;
use crate::{compute::Compute, core::Handlers, session::Session};

/// How many samples are given when nobody says otherwise.
const SAMPLES: u32 = 60;
/// How long a node may take to send them.
const WITHIN: Duration = Duration::from_secs(30);

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, list);
}

async fn list(compute: Arc<Compute>, session: Session, input: ListUsage) -> Result<Page<ServerUsage>> {
    let record = session.find::<Server>(&input.server)?;
    // What is on no node has used nothing yet, or has left what it had.
    let Some(node) = record.body.node else { return Ok(Page { items: vec![], next: None }) };
    let (resolution, gap) = match input.resolution {
        UsageResolution::Second => (Resolution::Second, Duration::from_secs(10)),
        UsageResolution::Minute => (Resolution::Minute, Duration::from_secs(150)),
    };
    let most = input.limit.map_or(SAMPLES, nephos_types::Number::get_u32);
    // An interval has two ends.
    let query = UsageQuery { resolution, from: input.from, until: input.until, most: most.saturating_add(1) };
    let purpose = StreamPurpose::Usage { server: record.meta.id, query };
    let reading = async {
        let mut stream = compute.nodes.open_stream(node, purpose).await?;
        frame::read::<Vec<UsageSample>>(&mut stream).await
    };
    let samples = tokio::time::timeout(WITHIN, reading).await.map_err(|_| {
        Error::new(ErrorKind::Timeout, "node_silent", "The node did not send what the server has used in time")
    })??;
    Ok(Page { items: intervals(&samples, gap), next: None })
}

/// What was used between samples. None where the server did not run in between, as a gap shows.
fn intervals(samples: &[UsageSample], gap: Duration) -> Vec<ServerUsage> {
    let pairs = samples.iter().zip(samples.iter().skip(1));
    pairs.filter_map(|(before, after)| interval(before, after, gap)).collect()
}

fn interval(before: &UsageSample, after: &UsageSample, gap: Duration) -> Option<ServerUsage> {
    let length = after.at.since(before.at);
    if length.is_zero() || length > gap {
        return None;
    }
    let (old, new) = (&before.usage, &after.usage);
    // Counters begin anew when a guest is started again.
    let restarted = new.cpu < old.cpu;
    let grown = |old: u64, new: u64| if restarted || new < old { new } else { new - old };
    let bytes = |old: Bytes, new: Bytes| Bytes(grown(old.0, new.0));
    let cpu = if restarted { new.cpu } else { new.cpu.saturating_sub(old.cpu) };
    let seconds = length.as_secs_f64();
    Some(ServerUsage {
        at: after.at,
        seconds,
        cpu_seconds: cpu.as_secs_f64(),
        cpu_percent: (cpu.as_secs_f64() / seconds * 1000.0).round() / 10.0,
        memory_bytes: new.memory,
        disk_read_bytes: bytes(old.disk_read, new.disk_read),
        disk_written_bytes: bytes(old.disk_written, new.disk_written),
        disk_reads: grown(old.disk_reads, new.disk_reads),
        disk_writes: grown(old.disk_writes, new.disk_writes),
        network_received_bytes: bytes(old.network_received, new.network_received),
        network_sent_bytes: bytes(old.network_sent, new.network_sent),
        packets_received: grown(old.packets_received, new.packets_received),
        packets_sent: grown(old.packets_sent, new.packets_sent),
    })
}

#[cfg(test)]
mod tests {
    use nephos_driver::Usage;
    use nephos_types::Timestamp;

    use super::*;

    fn sample(second: i64, cpu_ms: u64, written: u64) -> UsageSample {
        let usage = Usage { cpu: Duration::from_millis(cpu_ms), disk_written: Bytes(written), ..Usage::default() };
        UsageSample { at: Timestamp::from_micros(second * 1_000_000), usage }
    }

    #[test]
    fn intervals_are_what_lies_between_samples() {
        let gap = Duration::from_secs(10);
        let samples = [sample(1, 100, 5), sample(2, 350, 6), sample(4, 350, 10), sample(60, 900, 90)];
        let found = intervals(&samples, gap);
        let seen: Vec<_> = found.iter().map(|one| (one.seconds, one.cpu_percent, one.disk_written_bytes.0)).collect();
        assert_eq!(seen, [(1.0, 25.0, 1), (2.0, 0.0, 4)]);
        let again = intervals(&[sample(1, 5000, 500), sample(2, 300, 20)], gap);
        assert_eq!((again[0].cpu_seconds, again[0].disk_written_bytes), (0.3, Bytes(20)));
        assert!(intervals(&[], gap).is_empty() && intervals(&samples[..1], gap).is_empty());
    }
}
