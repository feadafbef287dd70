//! When a workflow starts by itself, again and again.
//!
//! [`due`] is a pure function of a schedule and the time; what it plans is carried out by [`crate::Engine::keep_schedules`]
//! through a [`ScheduleStore`]. A slot fires at most once: the run's id follows from schedule and slot, and the schedule
//! remembers the last slot that was dealt with in the same transaction that creates the run. Times are UTC.

use std::{collections::VecDeque, str::FromStr, sync::Arc, time::Duration};

use croner::parser::{CronParser, Seconds, Year};
use futures_util::future::BoxFuture;
use nephos_types::{Error, Id, ProjectId, Result, ScheduleId, Timestamp, WorkflowId};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    engine::derived_id,
    journal::{Revision, SaveError},
    run::Run,
};

/// The version of the stored form of [`Schedule`].
pub const SCHEDULE_VERSION: u32 = 1;
/// The most missed slots that are made up for.
pub const MAX_MADE_UP: u32 = 100;
/// A slot that is later than this counts as missed.
pub const TOLERANCE: Duration = Duration::from_secs(60);
/// The shortest interval.
pub const SHORTEST_INTERVAL: u64 = 1;

/// When slots are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Timing {
    /// Every so many seconds, counted from the epoch, so that restarts and late runs cause no drift.
    Interval {
        /// The period in seconds; at least 1.
        seconds: u64,
    },
    /// A cron expression of five fields (or `@hourly` and the like), in UTC.
    Cron {
        /// The expression.
        expression: String,
    },
}

/// What becomes of slots that passed while nobody was there to see to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// Nothing: the next slot is the next run.
    Skip,
    /// One run now, however many were missed.
    Once,
    /// One run for each, of the latest at most so many.
    All {
        /// At most [`MAX_MADE_UP`].
        at_most: u32,
    },
}

/// A schedule as stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its id.
    pub id: ScheduleId,
    /// When slots are.
    pub timing: Timing,
    /// What becomes of missed ones.
    pub missed: Missed,
    /// Whether a slot is taken even while the run of an earlier one is open. Else it is skipped.
    #[serde(default)]
    pub overlap: bool,
    /// No slot fires while paused, and those that pass count as dealt with once it is resumed.
    #[serde(default)]
    pub paused: bool,
    /// The workflow that is started.
    pub definition: Arc<str>,
    /// With what.
    pub input: Arc<Value>,
    /// The subject of the runs.
    #[serde(default)]
    pub subject: Arc<str>,
    /// The project of the runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project: Option<ProjectId>,
    /// Who made the schedule: the author of the runs.
    #[serde(default)]
    pub author: Arc<Value>,
    /// Slots up to this one are dealt with. When the schedule is made: that time.
    pub last_slot: Timestamp,
    /// The latest run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_run: Option<WorkflowId>,
}

/// What is to be done for a schedule at some time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Due {
    /// Slots to start a run for, oldest first.
    pub fire: Vec<Timestamp>,
    /// The latest slot that is thereby dealt with.
    pub last_slot: Option<Timestamp>,
    /// The next slot after now; none if there never is one.
    pub next: Option<Timestamp>,
}

impl Timing {
    /// Whether this can be used.
    ///
    /// # Errors
    /// If the interval is too short or the expression is not one.
    pub fn check(&self) -> Result<()> {
        self.next_after(Timestamp::from_micros(0)).map(|_| ())
    }

    /// The first slot after `time`; none if there is none.
    ///
    /// # Errors
    /// Like [`check`](Self::check).
    pub fn next_after(&self, time: Timestamp) -> Result<Option<Timestamp>> {
        match self {
            Self::Interval { seconds } => {
                let period = period(*seconds)?;
                Ok(time
                    .as_micros()
                    .div_euclid(period)
                    .checked_add(1)
                    .and_then(|n| n.checked_mul(period))
                    .map(Timestamp::from_micros))
            }
            Self::Cron { expression } => {
                let found = cron(expression)?.find_next_occurrence(&civil(time)?, false);
                Ok(found.ok().and_then(instant))
            }
        }
    }

    /// The slots in `(after, until]`, oldest first, only the latest `at_most` of them.
    fn latest(&self, after: Timestamp, until: Timestamp, at_most: usize) -> Result<Vec<Timestamp>> {
        let mut slots = VecDeque::new();
        match self {
            Self::Interval { seconds } => {
                let period = period(*seconds)?;
                let mut slot = until.as_micros().div_euclid(period).saturating_mul(period);
                while slot > after.as_micros() && slots.len() < at_most {
                    slots.push_front(Timestamp::from_micros(slot));
                    slot = slot.saturating_sub(period);
                }
            }
            Self::Cron { expression } => {
                let cron = cron(expression)?;
                let (mut from, mut inclusive) = (civil(until)?, true);
                while slots.len() < at_most {
                    let Ok(slot) = cron.find_previous_occurrence(&from, inclusive) else { break };
                    let Some(time) = instant(slot).filter(|time| *time > after) else { break };
                    slots.push_front(time);
                    (from, inclusive) = (slot, false);
                }
            }
        }
        Ok(slots.into())
    }
}

fn period(seconds: u64) -> Result<i64> {
    let micros = seconds.checked_mul(1_000_000).and_then(|micros| i64::try_from(micros).ok());
    micros.filter(|_| seconds >= SHORTEST_INTERVAL).ok_or_else(|| {
        Error::invalid("invalid_interval", "The interval cannot be used")
            .detail(format!("{seconds} seconds; at least {SHORTEST_INTERVAL} is possible"))
    })
}

fn cron(expression: &str) -> Result<croner::Cron> {
    let wrong = |why: String| {
        Error::invalid("invalid_cron_expression", "Not a cron expression")
            .detail(format!("`{}`: {why}", expression.chars().take(100).collect::<String>()))
            .next("write five fields: minute, hour, day of month, month, day of week; e.g. `*/15 * * * *`", None)
    };
    if expression.len() > 256 {
        return Err(wrong("it is longer than 256 bytes".into()));
    }
    let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
    parser.parse(expression).map_err(|error| wrong(error.to_string()))
}

fn civil(time: Timestamp) -> Result<jiff::civil::DateTime> {
    jiff::Timestamp::from_microsecond(time.as_micros())
        .map(|time| jiff::tz::TimeZone::UTC.to_datetime(time))
        .map_err(|error| Error::internal("A time is out of range", error))
}

fn instant(time: jiff::civil::DateTime) -> Option<Timestamp> {
    let time = jiff::tz::TimeZone::UTC.to_timestamp(time).ok()?;
    Timestamp::from_str(&time.to_string()).ok()
}

/// What is to be done for this schedule now.
///
/// # Errors
/// If its timing is wrong.
pub fn due(schedule: &Schedule, now: Timestamp) -> Result<Due> {
    let timing = &schedule.timing;
    let next = timing.next_after(now.max(schedule.last_slot))?;
    let at_most = match schedule.missed {
        Missed::Skip | Missed::Once => 1,
        Missed::All { at_most } => at_most.clamp(1, MAX_MADE_UP) as usize,
    };
    let mut fire = timing.latest(schedule.last_slot, now, at_most)?;
    let last_slot = fire.last().copied();
    if schedule.missed == Missed::Skip {
        fire.retain(|slot| now.since(*slot) <= TOLERANCE);
    }
    if schedule.paused {
        fire.clear();
    }
    Ok(Due { fire, last_slot, next })
}

/// The id of the run for a slot: always the same.
#[must_use]
pub fn slot_run_id(schedule: ScheduleId, slot: Timestamp) -> WorkflowId {
    /// Like all ids: milliseconds since 2024 above 22 bits.
    const EPOCH_MS: i64 = 1_704_067_200_000;
    let millis = u64::try_from(slot.as_micros() / 1000 - EPOCH_MS).unwrap_or(0);
    derived_id(millis << 22, (schedule.bits(), slot))
}

/// Where schedules are stored.
pub trait ScheduleStore: Send + Sync + 'static {
    /// All schedules.
    fn load(&self) -> BoxFuture<'_, Result<Vec<(Schedule, Revision)>>>;
    /// Replaces the schedule, which must be at `expected`, and creates the runs, which must not exist: all or nothing.
    fn fire(&self, schedule: Schedule, expected: Revision, runs: Vec<Run>) -> BoxFuture<'_, Result<(), SaveError>>;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn schedule(timing: Timing, missed: Missed, last: &str) -> Schedule {
        Schedule {
            id: ScheduleId::from_bits(7),
            timing,
            missed,
            overlap: false,
            paused: false,
            definition: "wf".into(),
            input: Arc::default(),
            subject: "".into(),
            project: None,
            author: Arc::default(),
            last_slot: at(last),
            last_run: None,
        }
    }

    fn cron(expression: &str) -> Timing {
        Timing::Cron { expression: expression.into() }
    }

    #[test]
    fn the_missed_run_rule_decides() {
        let now = at("2026-03-01T12:50:30Z");
        let fire = |missed| due(&schedule(cron("*/15 * * * *"), missed, "2026-03-01T10:00:00Z"), now).unwrap();
        assert_eq!(fire(Missed::Skip).fire, []);
        assert_eq!(fire(Missed::Skip).last_slot, Some(at("2026-03-01T12:45:00Z")));
        assert_eq!(fire(Missed::Once).fire, [at("2026-03-01T12:45:00Z")]);
        let last_three = [at("2026-03-01T12:15:00Z"), at("2026-03-01T12:30:00Z"), at("2026-03-01T12:45:00Z")];
        assert_eq!(fire(Missed::All { at_most: 3 }).fire, last_three);
        assert_eq!(fire(Missed::All { at_most: 50 }).fire.len(), 11);
        assert_eq!(fire(Missed::Skip).next, Some(at("2026-03-01T13:00:00Z")));
    }

    #[test]
    fn a_slot_in_time_fires_under_every_rule_and_only_once() {
        for missed in [Missed::Skip, Missed::Once, Missed::All { at_most: 5 }] {
            for timing in [cron("0 * * * *"), Timing::Interval { seconds: 3600 }] {
                let mut schedule = schedule(timing, missed, "2026-03-01T12:00:00Z");
                let now = at("2026-03-01T13:00:01Z");
                let first = due(&schedule, now).unwrap();
                assert_eq!(first.fire, [at("2026-03-01T13:00:00Z")]);
                schedule.last_slot = first.last_slot.unwrap();
                assert_eq!(due(&schedule, now).unwrap().fire, []);
                // The clock steps back: still not twice.
                assert_eq!(due(&schedule, at("2026-03-01T12:30:00Z")).unwrap().fire, []);
            }
        }
    }

    #[test]
    fn wrong_timings_are_refused_with_help() {
        for expression in ["", "nonsense", "61 * * * *", "* * * *", "* * * * * *", &"*".repeat(300)] {
            assert_eq!(cron(expression).check().unwrap_err().code, "invalid_cron_expression", "{expression}");
        }
        assert_eq!(Timing::Interval { seconds: 0 }.check().unwrap_err().code, "invalid_interval");
        assert_eq!(Timing::Interval { seconds: u64::MAX }.check().unwrap_err().code, "invalid_interval");
    }

    #[test]
    fn days_that_do_not_exist_are_passed_over() {
        let next = cron("0 0 31 * *").next_after(at("2026-03-31T00:00:00Z")).unwrap();
        assert_eq!(next, Some(at("2026-05-31T00:00:00Z")));
        assert_eq!(cron("0 0 30 2 *").next_after(at("2026-01-01T00:00:00Z")).unwrap_or(None), None);
    }

    proptest! {
        #[test]
        fn interval_slots_are_exactly_those_between(seconds in 1u64..100_000, last in 0i64..1 << 41, gap in 0u64..1 << 37) {
            let timing = Timing::Interval { seconds };
            let (after, until) = (Timestamp::from_micros(last), Timestamp::from_micros(last).plus(Duration::from_micros(gap)));
            let slots = timing.latest(after, until, 1000).unwrap();
            let expected = until.as_micros().div_euclid(seconds as i64 * 1_000_000) - after.as_micros().div_euclid(seconds as i64 * 1_000_000);
            prop_assert_eq!(slots.len() as i64, expected.min(1000));
            prop_assert!(slots.iter().all(|slot| *slot > after && *slot <= until));
            prop_assert_eq!(slots.last().copied(), (expected > 0).then(|| timing.next_after(after).unwrap().unwrap().max(*slots.last().unwrap_or(&after))));
        }
    }

    #[test]
    fn a_slots_run_id_is_its_own() {
        let (one, two) = (ScheduleId::from_bits(1), ScheduleId::from_bits(2));
        let slot = at("2026-03-01T13:00:00Z");
        assert_eq!(slot_run_id(one, slot), slot_run_id(one, slot));
        assert_ne!(slot_run_id(one, slot), slot_run_id(two, slot));
        assert_ne!(slot_run_id(one, slot), slot_run_id(one, at("2026-03-01T14:00:00Z")));
    }
}
