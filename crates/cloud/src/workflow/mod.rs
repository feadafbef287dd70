//! Workflows as people see them: listing, following, cancelling, how long they are kept, and operations
//! called by schedule.
//!
//! Must not know: what any workflow does.

mod call;
mod handlers;
mod retention;
mod schedule;

use std::sync::{Arc, OnceLock};

use nephos_ops::Cloud;
use nephos_store::{Kinds, Store};
use nephos_types::Result;

pub use handlers::view;
pub use retention::Retention;
pub(crate) use retention::sweep;
pub use schedule::StoredSchedule;
pub(crate) use schedule::{MOST_SCHEDULES, schedules_counter};

use crate::{
    core::Handlers,
    identity::{Authority, ProjectUse},
    journal::Engine,
};

/// The family's state.
pub struct Workflows {
    store: Store,
    engine: Engine,
    authority: Arc<Authority>,
    /// What scheduled operations are called through; there once the core is.
    cloud: OnceLock<Cloud>,
}

/// The kinds that this family keeps, except for runs.
#[must_use]
pub fn kinds(kinds: Kinds) -> Kinds {
    kinds.with::<StoredSchedule>()
}

/// What of this family stands against deleting a project.
#[must_use]
pub fn project_use() -> ProjectUse {
    ProjectUse {
        what: "schedules",
        count: |store, project| u64::try_from(store.counter(&schedules_counter(project))).unwrap_or(0),
        counter: Some(schedules_counter),
    }
}

impl Workflows {
    /// Registers the family's operations and its workflow.
    pub(crate) fn register(
        handlers: &mut Handlers,
        store: &Store,
        engine: &Engine,
        authority: &Arc<Authority>,
    ) -> Result<Arc<Self>> {
        let workflows = Arc::new(Self {
            store: store.clone(),
            engine: engine.clone(),
            authority: Arc::clone(authority),
            cloud: OnceLock::new(),
        });
        engine.register(call::definition(&workflows))?;
        handlers::register(handlers, &workflows);
        schedule::register(handlers, &workflows);
        Ok(workflows)
    }

    /// Begins to keep schedules, calling operations through this handle.
    pub fn begin(self: &Arc<Self>, cloud: Cloud) {
        let _ = self.cloud.set(cloud);
        self.engine.keep_schedules(Arc::new(schedule::Kept(self.store.clone())));
    }
}
