//! Slows down guessing: after a few failures each further try has to wait, twice as long each time up to a bound.
//!
//! Nobody is locked out for ever: the wait ends, and it is per key (a user's name, a peer's address). Memory is bounded: when
//! full, keys that have nothing to wait for go first, then those whose wait ends soonest.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nephos_types::{Error, ErrorKind, Result};

/// How many failures are free, how long the waits are, how many keys are remembered.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Failures before the first wait.
    pub free: u32,
    /// The first wait; each further one doubles.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Keys remembered at most.
    pub capacity: usize,
}

impl Limits {
    /// For a user's name: people mistype.
    pub const USER: Self =
        Self { free: 5, first: Duration::from_secs(1), longest: Duration::from_secs(60), capacity: 20_000 };
    /// For a peer's address, behind which may be many people.
    pub const ADDRESS: Self =
        Self { free: 20, first: Duration::from_secs(1), longest: Duration::from_secs(60), capacity: 20_000 };
}

/// Counts failures per key. A key is kept as a keyed hash of 64 bits, so long names cost no memory.
pub struct Throttle {
    limits: Limits,
    hasher: RandomState,
    failures: Mutex<HashMap<u64, Failures>>,
}

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    until: Instant,
}

impl Throttle {
    /// With these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, hasher: RandomState::new(), failures: Mutex::default() }
    }

    /// Counts a try before it is made, as if it failed; refuses it while the key has to wait.
    ///
    /// Counting first means that many tries at once cannot slip past. A refused try does not lengthen the wait.
    pub fn attempt(&self, key: &impl Hash, now: Instant) -> Result<()> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let key = self.hasher.hash_one(key);
        let known = failures.get(&key).copied().filter(|known| now < self.forgotten(known));
        if let Some(known) = known
            && now < known.until
        {
            let seconds = known.until.duration_since(now).as_secs_f64().ceil();
            return Err(Error::new(ErrorKind::RateLimited, "too_many_attempts", "Too many failed logins")
                .detail(format!("try again in {seconds:.0} s"))
                .next(format!("wait {seconds:.0} s"), None));
        }
        if known.is_none() && failures.len() >= self.limits.capacity {
            self.make_room(&mut failures, now);
        }
        let count = known.map_or(1, |known| known.count.saturating_add(1));
        failures.insert(key, Failures { count, until: now + self.wait(count) });
        Ok(())
    }

    /// Forgets a key's failures, after a success.
    pub fn succeeded(&self, key: &impl Hash) {
        let key = self.hasher.hash_one(key);
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The wait after this many failures.
    fn wait(&self, count: u32) -> Duration {
        match count.checked_sub(self.limits.free) {
            None | Some(0) => Duration::ZERO,
            Some(over) => self
                .limits
                .first
                .saturating_mul(1u32.checked_shl(over - 1).unwrap_or(u32::MAX))
                .min(self.limits.longest),
        }
    }

    /// When failures no longer count: some time after their wait ended.
    fn forgotten(&self, failures: &Failures) -> Instant {
        failures.until + self.limits.longest * 5
    }

    fn make_room(&self, failures: &mut HashMap<u64, Failures>, now: Instant) {
        failures.retain(|_, known| now < self.forgotten(known));
        if failures.len() < self.limits.capacity {
            return;
        }
        // An eighth at once, so that the cost of finding them is spread over many calls.
        let mut ends: Vec<Instant> = failures.values().map(|known| known.until).collect();
        let place = (ends.len() / 8).min(ends.len().saturating_sub(1));
        let (_, limit, _) = ends.select_nth_unstable(place);
        let limit = *limit;
        failures.retain(|_, known| known.until > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { free: 2, first: Duration::from_secs(1), longest: Duration::from_secs(8), capacity: 16 };

    #[test]
    fn waits_double_up_to_the_bound_and_end() {
        let throttle = Throttle::new(LIMITS);
        let mut now = Instant::now();
        for wait in [0, 0, 1, 2, 4, 8, 8, 8] {
            throttle.attempt(&"alice", now).unwrap();
            if wait > 0 {
                let error = throttle.attempt(&"alice", now).unwrap_err();
                assert_eq!(error.kind, ErrorKind::RateLimited);
                assert!(error.detail.contains(&format!("{wait} s")), "{wait}: {}", error.detail);
            }
            now += Duration::from_secs(wait);
        }
        assert!(throttle.attempt(&"bob", now).is_ok());
        throttle.succeeded(&"alice");
        assert!(throttle.attempt(&"alice", now).is_ok() && throttle.attempt(&"alice", now).is_ok());
    }

    #[test]
    fn failures_are_forgotten_after_a_while() {
        let throttle = Throttle::new(LIMITS);
        let now = Instant::now();
        for _ in 0..3 {
            throttle.attempt(&"alice", now).unwrap();
        }
        let later = now + Duration::from_secs(60);
        assert!(throttle.attempt(&"alice", later).is_ok() && throttle.attempt(&"alice", later).is_ok());
    }

    #[test]
    fn memory_is_bounded_and_those_who_wait_longest_stay() {
        let throttle = Throttle::new(LIMITS);
        let now = Instant::now();
        for _ in 0..3 {
            throttle.attempt(&"guesser", now).unwrap();
        }
        for other in 0..10_000u32 {
            throttle.attempt(&other, now).unwrap();
        }
        assert!(throttle.failures.lock().unwrap().len() <= LIMITS.capacity);
        assert!(throttle.attempt(&"guesser", now).is_err());
    }
}
