//! The durable workflow engine.
//!
//! A [`Definition`] is a list of named steps, in sequence or in parallel groups, each with an undo, a retry policy and
//! limits. A [`Run`] is one execution of it: a record that is saved with each step, together with the step's *effects*,
//! through the [`Journal`]. The [`Engine`] drives runs: it calls steps until they are done, undoes them in reverse when
//! the whole cannot succeed, and resumes after a crash where the record stands.
//!
//! What holds: a run ends as succeeded (each step done), failed or cancelled (each step that began undone), or stuck,
//! which is visible and waits for an operator; never silently in between. Effects happen exactly once. Whatever else a
//! step does may happen more than once, so steps look at the world first; [`faults`] checks that they do.
//!
//! Must not know: any resource, store, driver or protocol.

pub mod bench;
mod clock;
mod context;
mod definition;
mod engine;
pub mod faults;
mod journal;
mod observe;
mod outcome;
mod retry;
mod run;
mod schedule;
mod transition;

pub mod testing;

pub use clock::{Clock, SystemClock};
pub use context::{ChildStart, StepContext};
pub use definition::{AnyCall, Builder, Definition, Direction, Slot, StepBuilder, StepFunction};
pub use engine::{Config, Engine, Holders, Recovered};
pub use journal::{Journal, Revision, SaveError, Stored};
pub use observe::{Event, Observer, Point};
pub use outcome::{Done, Failure, Keys};
pub use retry::Retry;
pub use run::{
    Ending, Lease, MAX_INPUT, MAX_KEYS, MAX_NAME, MAX_OUTPUT, MAX_STEPS, Parent, Progress, RUN_VERSION, Run, RunState,
    StepRecord, StepState, Wait, settled_key,
};
pub use schedule::{
    Due, MAX_MADE_UP, Missed, SCHEDULE_VERSION, SHORTEST_INTERVAL, Schedule, ScheduleStore, TOLERANCE, Timing, due,
    slot_run_id,
};
