//! Faults and delays to order: which call they hit, and what they do to it.

use std::{ops::RangeInclusive, time::Duration};

use nephos_types::{Error, ServerId};

/// The calls of the driver trait that a script can aim at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    List,
    Observe,
    Define,
    Start,
    Stop,
    Reboot,
    Remove,
    Console,
    ConsoleLog,
    Usage,
    Pause,
    Suspend,
    Snapshot,
    Ask,
}

impl Verb {
    /// How many there are.
    pub(super) const COUNT: usize = 14;
}

/// What happens to a call that a [`Rule`] hits.
#[derive(Clone, Debug)]
pub enum Effect {
    /// It fails with this error and changes nothing.
    Fail(Error),
    /// It never returns and changes nothing.
    Hang,
    /// It takes this much longer.
    Delay(Duration),
    /// The guest crashes this long after a successful start (only on [`Verb::Start`]).
    CrashAfter(Duration),
    /// The guest does not react to its power button, so that a soft stop takes its whole grace (only on [`Verb::Stop`]
    /// and [`Verb::Reboot`]).
    IgnorePowerButton,
    /// The driver cannot find out what the guest is (only on [`Verb::Observe`]).
    Unknown(String),
}

/// An [`Effect`] and the calls that it hits.
#[derive(Clone, Debug)]
pub struct Rule {
    verb: Verb,
    guest: Option<ServerId>,
    calls: RangeInclusive<u64>,
    effect: Effect,
    seen: u64,
}

impl Rule {
    /// Hits every call of this verb, on every guest.
    #[must_use]
    pub fn every(verb: Verb, effect: Effect) -> Self {
        Self { verb, guest: None, calls: 1..=u64::MAX, effect, seen: 0 }
    }

    /// Hits only the `n`th call of this verb, counted from one and from when the rule was given.
    #[must_use]
    pub fn nth(verb: Verb, n: u64, effect: Effect) -> Self {
        Self { calls: n..=n, ..Self::every(verb, effect) }
    }

    /// Hits the first `n` calls of this verb, counted from when the rule was given.
    #[must_use]
    pub fn first(verb: Verb, n: u64, effect: Effect) -> Self {
        Self { calls: 1..=n, ..Self::every(verb, effect) }
    }

    /// Counts and hits only calls on this guest.
    #[must_use]
    pub fn on(mut self, guest: ServerId) -> Self {
        self.guest = Some(guest);
        self
    }

    /// Counts the call, and says what is to happen to it.
    pub(super) fn hit(&mut self, verb: Verb, guest: Option<ServerId>) -> Option<Effect> {
        if self.verb != verb || (self.guest.is_some() && self.guest != guest) {
            return None;
        }
        self.seen += 1;
        self.calls.contains(&self.seen).then(|| self.effect.clone())
    }

    /// Whether it can hit nothing any more.
    pub(super) fn spent(&self) -> bool {
        self.seen >= *self.calls.end()
    }
}

/// How long calls of one verb take, and how often they fail by chance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Behaviour {
    /// The least time that a call takes.
    pub latency: Duration,
    /// Up to this much more, by chance.
    pub jitter: Duration,
    /// Of a million calls, this many fail.
    pub failures_per_million: u32,
}

/// A number that depends on nothing but its arguments, evenly spread (SplitMix64's finaliser).
pub(super) fn chance(seed: u64, verb: Verb, call: u64, purpose: u64) -> u64 {
    let mut x = seed
        .wrapping_add((verb as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
        .wrapping_add(call.wrapping_mul(0xd1b5_4a32_d192_ed03))
        .wrapping_add(purpose.wrapping_mul(0x8cb9_2ba7_2f3d_8dd7));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
