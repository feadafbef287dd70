//! A clock that stands still until it is moved.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_types::Timestamp;
use tokio::sync::watch;

use crate::clock::Clock;

/// See the module. Clones show the same time.
#[derive(Clone, Debug)]
pub struct ManualClock {
    now: watch::Sender<Timestamp>,
    sleepers: Arc<Mutex<Vec<Timestamp>>>,
}

impl ManualClock {
    /// A clock at this time.
    #[must_use]
    pub fn at(now: Timestamp) -> Self {
        Self { now: watch::Sender::new(now), sleepers: Arc::default() }
    }

    /// Moves the clock, never backwards.
    pub fn advance_to(&self, time: Timestamp) {
        self.now.send_if_modified(|now| {
            let later = time > *now;
            *now = time.max(*now);
            later
        });
    }

    /// Moves the clock.
    pub fn advance(&self, by: Duration) {
        self.advance_to(self.now().plus(by));
    }

    /// When the first of those that sleep wakes.
    #[must_use]
    pub fn next_sleeper(&self) -> Option<Timestamp> {
        let now = self.now();
        self.sleepers().iter().filter(|until| **until > now).min().copied()
    }

    fn sleepers(&self) -> MutexGuard<'_, Vec<Timestamp>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for ManualClock {
    /// A clock at the start of 2030.
    fn default() -> Self {
        Self::at(Timestamp::from_micros(1_893_456_000_000_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        *self.now.borrow()
    }

    fn sleep_until(&self, time: Timestamp) -> BoxFuture<'static, ()> {
        struct Sleeper(ManualClock, Timestamp);
        impl Drop for Sleeper {
            fn drop(&mut self) {
                let mut sleepers = self.0.sleepers();
                if let Some(place) = sleepers.iter().position(|until| *until == self.1) {
                    sleepers.swap_remove(place);
                }
            }
        }
        let clock = self.clone();
        Box::pin(async move {
            let mut now = clock.now.subscribe();
            clock.sleepers().push(time);
            let _sleeper = Sleeper(clock.clone(), time);
            // The sender lives as long as `clock`, so waiting cannot fail.
            let _ = now.wait_for(|now| *now >= time).await;
        })
    }
}
