//! The cloud itself: who changed what, what changes now, and a copy of it all.

mod audit;
mod backup;
mod events;

use std::{path::PathBuf, sync::Arc};

use nephos_store::Store;

pub use backup::{RESTORED_BY, restore};

use crate::core::Handlers;

/// The family's state.
pub struct System {
    store: Store,
    data: PathBuf,
}

impl System {
    /// Registers the family's operations. `data` is the data folder.
    pub(crate) fn register(handlers: &mut Handlers, store: &Store, data: impl Into<PathBuf>) -> Arc<Self> {
        let system = Arc::new(Self { store: store.clone(), data: data.into() });
        handlers.handle(&system, audit::list);
        handlers.handle(&system, events::watch);
        handlers.handle(&system, backup::back_up);
        system
    }
}
