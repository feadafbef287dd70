//! What servers have used, as measured: of each server a ring of the last hour, sample by sample, in memory, and a ring
//! of the last week, a sample a minute, in a file of fixed size.
//!
//! They are kept where they are measured: the cost of measuring grows with the machines that pay it, any process of the
//! control plane can ask for them, and a restart of the control plane loses none. A restart of the agent loses the last
//! hour's single samples, not its minutes. What a killed machine had not written is lost; nothing rests on it.
//!
//! Invariants: memory is bounded for each server and in all; a file's size is bounded; what a file holds is checked
//! before it is believed.

use std::{
    collections::{HashMap, VecDeque},
    fs, io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_driver::Usage;
use nephos_node_api::{Resolution, UsageQuery, UsageSample};
use nephos_types::{Bytes, Result, ServerId, Timestamp};

use crate::records::private_folder;

/// Samples of one server in memory: an hour of seconds.
const MOST_SAMPLES: usize = 3600;
/// Minutes of one server: a week.
const MINUTES: usize = 7 * 24 * 60;
const MINUTE: i64 = 60_000_000;
/// A file begins with this, and holds slots for minutes after it: minute number `n` is in slot `n % MINUTES`.
const MAGIC: &[u8; 8] = b"NPHUSE\0\x01";
/// Numbers in a slot: a check, the time, and what was used.
const NUMBERS: usize = 12;
const SLOT: usize = NUMBERS * 8;
/// What the check of a slot with nothing but zeros is.
const CHECK: u64 = 0x6e65_7068_6f73_0001;

pub(crate) struct Rings {
    /// Where minutes are kept; in memory without.
    folder: Option<Arc<PathBuf>>,
    /// Samples in memory, of all servers.
    budget: usize,
    rings: Mutex<HashMap<ServerId, Ring>>,
    /// Held while anything is written or removed, so that what is forgotten stays so.
    changing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Ring {
    samples: VecDeque<UsageSample>,
    /// The last minute that has its sample.
    minute: Option<i64>,
    /// The minutes' samples, where there is no folder for them.
    minutes: VecDeque<UsageSample>,
}

impl Rings {
    /// Rings with at most this many samples in memory; files in the folder `usage` below the agent's own.
    pub(crate) fn open(data: Option<&Path>, budget: usize) -> Result<Self> {
        let folder = data.map(|data| data.join("usage"));
        if let Some(folder) = &folder {
            private_folder(folder)?;
        }
        Ok(Self {
            folder: folder.map(Arc::new),
            budget,
            rings: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
        })
    }

    fn rings(&self) -> MutexGuard<'_, HashMap<ServerId, Ring>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the samples of servers that are still `wanted`; others may have been forgotten meanwhile.
    pub(crate) async fn record(
        &self,
        mut samples: Vec<(ServerId, UsageSample)>,
        wanted: impl Fn(ServerId) -> bool + Send,
    ) {
        let _changing = self.changing.lock().await;
        samples.retain(|(server, _)| wanted(*server));
        let mut minutes = vec![];
        {
            let mut rings = self.rings();
            let servers = rings.len().max(samples.len()).max(1);
            let share = self.budget / servers;
            for (server, sample) in samples {
                let ring = rings.entry(server).or_default();
                push(&mut ring.samples, sample, share.min(MOST_SAMPLES));
                let minute = sample.at.as_micros().div_euclid(MINUTE);
                if ring.minute.is_none_or(|last| last < minute) {
                    ring.minute = Some(minute);
                    if self.folder.is_some() {
                        minutes.push((server, sample));
                    } else {
                        push(&mut ring.minutes, sample, share.min(MINUTES));
                    }
                }
            }
        }
        let (Some(folder), false) = (self.folder.clone(), minutes.is_empty()) else { return };
        let written = tokio::task::spawn_blocking(move || {
            minutes.iter().try_for_each(|(server, sample)| write(&file(&folder, *server), sample))
        });
        if let Ok(Err(error)) = written.await {
            tracing::warn!(%error, "what servers have used cannot be written down");
        }
    }

    /// The newest samples that a query asks for, oldest first.
    pub(crate) async fn read(&self, server: ServerId, query: UsageQuery) -> Result<Vec<UsageSample>> {
        let memory = {
            let rings = self.rings();
            let ring = rings.get(&server);
            match query.resolution {
                Resolution::Second => ring.map(|ring| select(ring.samples.iter().copied(), &query)),
                Resolution::Minute => ring.map(|ring| select(ring.minutes.iter().copied(), &query)),
            }
        };
        match (query.resolution, self.folder.clone()) {
            (Resolution::Minute, Some(folder)) => {
                let read = tokio::task::spawn_blocking(move || read(&file(&folder, server)));
                let failed = |error| nephos_types::Error::internal("What a server has used cannot be read", error);
                let mut all = read.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)?;
                all.sort_by_key(|sample| sample.at);
                Ok(select(all.into_iter(), &query))
            }
            _ => Ok(memory.unwrap_or_default()),
        }
    }

    /// Forgets what a server has used.
    pub(crate) async fn forget(&self, server: ServerId) {
        let _changing = self.changing.lock().await;
        self.rings().remove(&server);
        let Some(folder) = self.folder.clone() else { return };
        let removed = tokio::task::spawn_blocking(move || fs::remove_file(file(&folder, server))).await;
        match removed {
            Ok(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%server, %error, "what a server has used cannot be removed");
            }
            _ => {}
        }
    }
}

/// Adds a sample, so that there are at most so many.
fn push(ring: &mut VecDeque<UsageSample>, sample: UsageSample, most: usize) {
    // A clock that was set back would leave samples out of order.
    while ring.back().is_some_and(|last| last.at >= sample.at) {
        ring.pop_back();
    }
    while !ring.is_empty() && ring.len() >= most {
        ring.pop_front();
    }
    if most > 0 {
        ring.push_back(sample);
    }
    if ring.capacity() > 2 * most.max(MOST_SAMPLES / 8) {
        ring.shrink_to(most);
    }
}

fn select(samples: impl DoubleEndedIterator<Item = UsageSample>, query: &UsageQuery) -> Vec<UsageSample> {
    let most = usize::try_from(query.most).unwrap_or(usize::MAX).min(MINUTES + 1);
    let wanted = |sample: &UsageSample| {
        query.from.is_none_or(|from| sample.at >= from) && query.until.is_none_or(|until| sample.at <= until)
    };
    let mut found: Vec<_> = samples.rev().filter(wanted).take(most).collect();
    found.reverse();
    found
}

fn file(folder: &Path, server: ServerId) -> PathBuf {
    folder.join(server.to_string())
}

fn slot(at: Timestamp) -> u64 {
    // Less than MINUTES.
    let number = at.as_micros().div_euclid(MINUTE).rem_euclid(MINUTES as i64);
    MAGIC.len() as u64 + number.unsigned_abs() * SLOT as u64
}

fn write(path: &Path, sample: &UsageSample) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    if file.metadata()?.len() < MAGIC.len() as u64 {
        file.write_all_at(MAGIC, 0)?;
    }
    file.write_all_at(&encode(sample), slot(sample.at))
}

/// The samples that a file holds, in no order; of one that is not there or not one of these, none.
fn read(path: &Path) -> io::Result<Vec<UsageSample>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let Some(slots) = bytes.strip_prefix(MAGIC) else { return Ok(vec![]) };
    let place = |index: usize| (MAGIC.len() + index * SLOT) as u64;
    let samples = slots.chunks_exact(SLOT).enumerate().filter_map(|(index, bytes)| {
        let sample = decode(bytes)?;
        (slot(sample.at) == place(index)).then_some(sample)
    });
    let samples: Vec<_> = samples.collect();
    // What is older than a week was left in its slot while the server did not run.
    let newest = samples.iter().map(|sample| sample.at).max().unwrap_or_default();
    let week = Duration::from_secs(60 * MINUTES as u64);
    Ok(samples.into_iter().filter(|sample| newest.since(sample.at) < week).collect())
}

fn check(numbers: &[u64]) -> u64 {
    numbers.iter().fold(CHECK, |sum, number| sum.rotate_left(7) ^ number)
}

fn encode(sample: &UsageSample) -> [u8; SLOT] {
    let usage = &sample.usage;
    let mut numbers = [
        0,
        sample.at.as_micros().cast_unsigned(),
        u64::try_from(usage.cpu.as_micros()).unwrap_or(u64::MAX),
        usage.memory.0,
        usage.disk_read.0,
        usage.disk_written.0,
        usage.network_received.0,
        usage.network_sent.0,
        usage.disk_reads,
        usage.disk_writes,
        usage.packets_received,
        usage.packets_sent,
    ];
    numbers[0] = check(&numbers[1..]);
    let mut bytes = [0; SLOT];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

fn decode(bytes: &[u8]) -> Option<UsageSample> {
    let mut numbers = [0; NUMBERS];
    for (number, bytes) in numbers.iter_mut().zip(bytes.chunks_exact(8)) {
        *number = u64::from_be_bytes(bytes.try_into().ok()?);
    }
    let [sum, at, cpu, memory, read, written, received, sent, reads, writes, packets_received, packets_sent] = numbers;
    if sum != check(&numbers[1..]) {
        return None;
    }
    let usage = Usage {
        cpu: Duration::from_micros(cpu),
        memory: Bytes(memory),
        disk_read: Bytes(read),
        disk_written: Bytes(written),
        network_received: Bytes(received),
        network_sent: Bytes(sent),
        disk_reads: reads,
        disk_writes: writes,
        packets_received,
        packets_sent,
    };
    Some(UsageSample { at: Timestamp::from_micros(at.cast_signed()), usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(second: i64) -> UsageSample {
        let usage = Usage { cpu: Duration::from_millis(second.unsigned_abs()), disk_reads: 7, ..Usage::default() };
        UsageSample { at: Timestamp::from_micros(1_700_000_040_000_000 + second * 1_000_000), usage }
    }

    fn query(resolution: Resolution, most: u32) -> UsageQuery {
        UsageQuery { resolution, from: None, until: None, most }
    }

    #[tokio::test]
    async fn rings_keep_the_newest_and_minutes_outlive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let rings = Rings::open(Some(folder.path()), 100_000).unwrap();
        let server = ServerId::new();
        for second in 0..5000 {
            rings.record(vec![(server, sample(second))], |_| true).await;
        }
        let all = rings.read(server, query(Resolution::Second, 100_000)).await.unwrap();
        assert_eq!((all.len(), all[0], all[3599]), (3600, sample(1400), sample(4999)));
        let last = rings.read(server, query(Resolution::Second, 2)).await.unwrap();
        assert_eq!(last, [sample(4998), sample(4999)]);
        let range =
            UsageQuery { from: Some(sample(2000).at), until: Some(sample(2002).at), ..query(Resolution::Second, 100) };
        assert_eq!(rings.read(server, range).await.unwrap(), [sample(2000), sample(2001), sample(2002)]);

        let rings = Rings::open(Some(folder.path()), 100_000).unwrap();
        assert!(rings.read(server, query(Resolution::Second, 100)).await.unwrap().is_empty());
        let minutes = rings.read(server, query(Resolution::Minute, 100_000)).await.unwrap();
        assert_eq!((minutes.len(), minutes[0], minutes[83]), (84, sample(0), sample(83 * 60)));

        rings.forget(server).await;
        assert!(rings.read(server, query(Resolution::Minute, 10)).await.unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path().join("usage")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_file_holds_a_week_and_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        for minute in [0, 1, 2, 10_000, 10_080, 10_081] {
            write(&path, &sample(minute * 60)).unwrap();
        }
        let mut held = read(&path).unwrap();
        held.sort_by_key(|sample| sample.at);
        assert_eq!(held, [2, 10_000, 10_080, 10_081].map(|minute| sample(minute * 60)));
        write(&path, &sample(30_000 * 60)).unwrap();
        assert_eq!(read(&path).unwrap(), [sample(30_000 * 60)], "what is older is not shown");
        assert!(fs::metadata(&path).unwrap().len() <= (MAGIC.len() + MINUTES * SLOT) as u64);
    }

    #[test]
    fn what_is_not_whole_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        assert!(read(&path).unwrap().is_empty());
        write(&path, &sample(0)).unwrap();
        let whole = encode(&sample(0));
        assert_eq!(decode(&whole), Some(sample(0)));
        for place in 0..SLOT {
            let mut broken = whole;
            broken[place] ^= 0x40;
            assert_eq!(decode(&broken), None, "byte {place}");
        }
        let length = fs::metadata(&path).unwrap().len();
        for shorter in [1, SLOT as u64, length - 1, length] {
            fs::File::options().write(true).open(&path).unwrap().set_len(length - shorter).unwrap();
            assert!(read(&path).unwrap().is_empty());
        }
        fs::write(&path, vec![0xff; 4000]).unwrap();
        assert!(read(&path).unwrap().is_empty());
    }

    #[tokio::test]
    async fn memory_is_shared_by_all() {
        let rings = Rings::open(None, 100).unwrap();
        let servers: Vec<ServerId> = (0..10).map(|_| ServerId::new()).collect();
        rings.record((0..50).map(|second| (servers[0], sample(second))).collect(), |_| true).await;
        for second in 50..100 {
            rings.record(servers.iter().map(|server| (*server, sample(second))).collect(), |_| true).await;
        }
        for server in servers {
            let held = rings.read(server, query(Resolution::Second, 1000)).await.unwrap();
            assert_eq!((held.len(), held[9]), (10, sample(99)));
        }
        let none = Rings::open(None, 0).unwrap();
        none.record(vec![(ServerId::new(), sample(1))], |_| true).await;
    }

    #[tokio::test]
    async fn a_clock_that_is_set_back_leaves_samples_in_order() {
        let rings = Rings::open(None, 100).unwrap();
        let server = ServerId::new();
        for second in [1, 2, 3, 2] {
            rings.record(vec![(server, sample(second))], |_| true).await;
        }
        let held = rings.read(server, query(Resolution::Second, 1000)).await.unwrap();
        assert_eq!(held, [sample(1), sample(2)]);
    }
}
