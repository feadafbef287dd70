//! How often and how fast a failed attempt is repeated.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

/// Exponential backoff with jitter and a bound.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// How many attempts in all; 0 means without end.
    pub attempts: u32,
    /// The delay after the first failed attempt.
    pub first: Duration,
    /// By what the delay grows each time.
    pub factor: f64,
    /// The longest delay.
    pub longest: Duration,
}

impl Default for Retry {
    /// Five attempts within about six seconds.
    fn default() -> Self {
        Self { attempts: 5, first: Duration::from_millis(200), factor: 2.5, longest: Duration::from_secs(30) }
    }
}

impl Retry {
    /// One attempt only.
    #[must_use]
    pub fn never() -> Self {
        Self { attempts: 1, ..Self::default() }
    }

    /// Without end, at last every 30 seconds.
    #[must_use]
    pub fn forever() -> Self {
        Self { attempts: 0, ..Self::default() }
    }

    /// This many attempts.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self { attempts, ..Self::default() }
    }

    /// For undoing, which must not give up soon: ten attempts within about two minutes.
    #[must_use]
    pub fn undo() -> Self {
        Self::attempts(10)
    }

    /// Whether there is an attempt after this one (the first is 1).
    #[must_use]
    pub fn allows_after(&self, attempt: u32) -> bool {
        self.attempts == 0 || attempt < self.attempts
    }

    /// The delay after this failed attempt (the first is 1): half of it certain, half spread by `seed`, so that what
    /// failed together is not repeated together.
    #[must_use]
    pub fn delay(&self, attempt: u32, seed: impl Hash) -> Duration {
        let exponent = i32::try_from(attempt.saturating_sub(1).min(64)).unwrap_or(64);
        let longest = self.longest.as_secs_f64();
        let full = (self.first.as_secs_f64() * self.factor.max(1.0).powi(exponent)).min(longest);
        let mut hasher = DefaultHasher::new();
        (seed, attempt).hash(&mut hasher);
        let spread = (hasher.finish() >> 11) as f64 / (1u64 << 53) as f64;
        Duration::try_from_secs_f64(full * (0.5 + spread / 2.0)).unwrap_or(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_within_their_bounds_and_spread() {
        let retry = Retry::forever();
        for attempt in 1..200 {
            let full = (0.2 * 2.5f64.powi(attempt.min(60) as i32 - 1)).min(30.0);
            let delay = retry.delay(attempt, "run").as_secs_f64();
            assert!(delay >= full / 2.0 - 1e-6 && delay <= full + 1e-6, "attempt {attempt}: {delay} of {full}");
        }
        let distinct: std::collections::HashSet<_> = (0..100).map(|run| retry.delay(3, run)).collect();
        assert!(distinct.len() > 90);
    }

    #[test]
    fn attempts_are_counted_from_one() {
        assert!(!Retry::never().allows_after(1));
        assert!(Retry::attempts(2).allows_after(1));
        assert!(!Retry::attempts(2).allows_after(2));
        assert!(Retry::forever().allows_after(u32::MAX));
    }
}
