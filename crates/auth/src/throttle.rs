//! Slows down guessing: after a few failures each further try has to wait, twice as long each time up to a bound.
//!
//! Nobody is locked out for ever: the wait ends, and it is per key (a user, a peer's address). This is the arithmetic
//! alone; where failures are kept, so that all processes count the same ones, is for the caller to say.

use std::time::Duration;

use nephos_types::{Error, ErrorKind, Timestamp};
use serde::{Deserialize, Serialize};

/// How many failures are free, how long the waits are, how many tries go on together.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Failures before the first wait.
    pub free: u32,
    /// The first wait; each further one doubles.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Tries of one key that may be under way together, in all processes.
    pub at_once: usize,
    /// Whether a try counts as a failure until it has succeeded, once failures are no longer free: then those who try
    /// at the same time, in whatever process, get one try after each wait.
    pub one_by_one: bool,
}

impl Limits {
    /// For a user: people mistype.
    pub const USER: Self = Self {
        free: 5,
        first: Duration::from_secs(1),
        longest: Duration::from_secs(60),
        at_once: 32,
        one_by_one: true,
    };
    /// For a peer's address, behind which may be many people.
    pub const ADDRESS: Self = Self { free: 30, at_once: 128, one_by_one: false, ..Self::USER };

    /// The wait after this many failures.
    fn wait(&self, count: u32) -> Duration {
        match count.checked_sub(self.free) {
            None | Some(0) => Duration::ZERO,
            Some(over) => self.first.saturating_mul(1u32.checked_shl(over - 1).unwrap_or(u32::MAX)).min(self.longest),
        }
    }
}

/// The failures of one key. Part of a stored form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many there were.
    pub count: u32,
    /// Until when the next try has to wait.
    pub until: Timestamp,
}

impl Failures {
    /// One more.
    #[must_use]
    pub fn and_one(self, limits: &Limits, now: Timestamp) -> Self {
        let count = self.now(limits, now).count.saturating_add(1);
        Self { count, until: now.plus(limits.wait(count)) }
    }

    /// What of them still counts.
    #[must_use]
    pub fn now(self, limits: &Limits, now: Timestamp) -> Self {
        if self.are_forgotten(limits, now) { Self::default() } else { self }
    }

    /// Whether they no longer count: some time after their wait ended.
    #[must_use]
    pub fn are_forgotten(self, limits: &Limits, now: Timestamp) -> bool {
        now.since(self.until) >= limits.longest * 5
    }

    /// How long the next try has to wait. Never longer than the longest wait, should a clock have been wrong.
    #[must_use]
    pub fn wait(self, limits: &Limits, now: Timestamp) -> Duration {
        self.until.since(now).min(limits.longest)
    }
}

/// The refusal of a try that has to wait.
#[must_use]
pub fn too_many_attempts(wait: Duration) -> Error {
    let seconds = wait.as_secs_f64().ceil();
    Error::new(ErrorKind::RateLimited, "too_many_attempts", "Too many failed logins")
        .detail(format!("try again in {seconds:.0} s"))
        .next(format!("wait {seconds:.0} s"), None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { free: 2, longest: Duration::from_secs(8), ..Limits::USER };

    #[test]
    fn waits_double_up_to_the_bound_and_end() {
        let mut failures = Failures::default();
        let mut now = Timestamp::now();
        for wait in [0, 0, 1, 2, 4, 8, 8, 8] {
            failures = failures.and_one(&LIMITS, now);
            assert_eq!(failures.wait(&LIMITS, now), Duration::from_secs(wait));
            now = now.plus(Duration::from_secs(wait));
            assert_eq!(failures.wait(&LIMITS, now), Duration::ZERO);
        }
        assert!(too_many_attempts(Duration::from_millis(3500)).detail.contains("4 s"));
    }

    #[test]
    fn failures_are_forgotten_after_a_while() {
        let mut failures = Failures::default();
        let now = Timestamp::now();
        for _ in 0..3 {
            failures = failures.and_one(&LIMITS, now);
        }
        let later = now.plus(Duration::from_secs(60));
        assert!(!failures.are_forgotten(&LIMITS, now.plus(Duration::from_secs(40))));
        assert!(failures.are_forgotten(&LIMITS, later));
        assert_eq!(failures.and_one(&LIMITS, later).count, 1);
    }

    #[test]
    fn a_clock_that_was_wrong_locks_nobody_out() {
        let now = Timestamp::now();
        let failures = Failures { count: 9, until: now.plus(Duration::from_secs(1 << 30)) };
        assert_eq!(failures.wait(&LIMITS, now), LIMITS.longest);
    }
}
