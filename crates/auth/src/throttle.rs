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
    /// Tries of one key that may be under way together.
    pub at_once: u32,
    /// Keys remembered at most.
    pub capacity: usize,
}

impl Limits {
    /// For a user's name: people mistype.
    pub const USER: Self = Self {
        free: 5,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        at_once: 32,
        capacity: 20_000,
    };
    /// For a peer's address, behind which may be many people.
    pub const ADDRESS: Self = Self { free: 30, at_once: 128, ..Self::USER };
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
    under_way: u32,
    until: Instant,
}

/// A try under way. Dropped without a verdict it counts neither way.
#[must_use]
pub struct Attempt<'a> {
    throttle: &'a Throttle,
    key: u64,
}

impl Attempt<'_> {
    /// The try failed: the next ones wait.
    pub fn failed(self, now: Instant) {
        let throttle = self.throttle;
        throttle.change(self.key, |known| {
            known.count = known.count.saturating_add(1);
            known.until = now + throttle.wait(known.count);
        });
    }

    /// The try succeeded: earlier failures are forgotten.
    pub fn succeeded(self) {
        self.throttle.change(self.key, |known| known.count = 0);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let mut failures = self.throttle.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = failures.get_mut(&self.key) {
            known.under_way = known.under_way.saturating_sub(1);
            if known.under_way == 0 && known.count == 0 {
                failures.remove(&self.key);
            }
        }
    }
}

impl Throttle {
    /// With these limits.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, hasher: RandomState::new(), failures: Mutex::default() }
    }

    /// Begins a try; refuses it while the key has to wait, or has too many under way. A refusal lengthens nothing.
    pub fn attempt(&self, key: &impl Hash, now: Instant) -> Result<Attempt<'_>> {
        let key = self.hasher.hash_one(key);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if !failures.contains_key(&key) && failures.len() >= self.limits.capacity {
            self.make_room(&mut failures, now);
        }
        let known = failures.entry(key).or_insert(Failures { count: 0, under_way: 0, until: now });
        if now >= self.forgotten(known) {
            known.count = 0;
        }
        let wait = if known.under_way >= self.limits.at_once {
            self.limits.first
        } else {
            known.until.saturating_duration_since(now)
        };
        if !wait.is_zero() {
            let seconds = wait.as_secs_f64().ceil();
            return Err(Error::new(ErrorKind::RateLimited, "too_many_attempts", "Too many failed logins")
                .detail(format!("try again in {seconds:.0} s"))
                .next(format!("wait {seconds:.0} s"), None));
        }
        known.under_way += 1;
        Ok(Attempt { throttle: self, key })
    }

    fn change(&self, key: u64, change: impl FnOnce(&mut Failures)) {
        // Where the key was forgotten to make room, its failures do not count.
        if let Some(known) = self.failures.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&key) {
            change(known);
        }
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
        Limits { free: 2, first: Duration::from_secs(1), longest: Duration::from_secs(8), at_once: 3, capacity: 16 };

    fn fail(throttle: &Throttle, key: impl Hash, now: Instant) {
        throttle.attempt(&key, now).unwrap().failed(now);
    }

    fn refused(throttle: &Throttle, key: impl Hash, now: Instant) -> bool {
        throttle.attempt(&key, now).is_err()
    }

    #[test]
    fn waits_double_up_to_the_bound_and_end() {
        let throttle = Throttle::new(LIMITS);
        let mut now = Instant::now();
        for wait in [0, 0, 1, 2, 4, 8, 8, 8] {
            fail(&throttle, "alice", now);
            if wait > 0 {
                let error = throttle.attempt(&"alice", now).err().unwrap();
                assert_eq!(error.kind, ErrorKind::RateLimited);
                assert!(error.detail.contains(&format!("{wait} s")), "{wait}: {}", error.detail);
            }
            assert!(!refused(&throttle, "bob", now));
            now += Duration::from_secs(wait);
        }
        throttle.attempt(&"alice", now).unwrap().succeeded();
        fail(&throttle, "alice", now);
        fail(&throttle, "alice", now);
        assert!(!refused(&throttle, "alice", now));
    }

    #[test]
    fn failures_are_forgotten_after_a_while() {
        let throttle = Throttle::new(LIMITS);
        let now = Instant::now();
        for _ in 0..3 {
            fail(&throttle, "alice", now);
        }
        assert!(refused(&throttle, "alice", now));
        let later = now + Duration::from_secs(60);
        fail(&throttle, "alice", later);
        fail(&throttle, "alice", later);
        assert!(!refused(&throttle, "alice", later));
    }

    #[test]
    fn tries_under_way_are_bounded_and_successes_leave_nothing() {
        let throttle = Throttle::new(LIMITS);
        let now = Instant::now();
        let tries: Vec<_> = (0..3).map(|_| throttle.attempt(&"alice", now).unwrap()).collect();
        assert!(refused(&throttle, "alice", now));
        tries.into_iter().for_each(Attempt::succeeded);
        assert!(throttle.failures.lock().unwrap().is_empty());
    }

    #[test]
    fn memory_is_bounded_and_those_who_wait_longest_stay() {
        let throttle = Throttle::new(LIMITS);
        let now = Instant::now();
        for _ in 0..3 {
            fail(&throttle, "guesser", now);
        }
        for other in 0..10_000u32 {
            fail(&throttle, other, now);
        }
        assert!(throttle.failures.lock().unwrap().len() <= LIMITS.capacity);
        assert!(refused(&throttle, "guesser", now));
    }
}
