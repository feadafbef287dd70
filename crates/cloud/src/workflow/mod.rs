//! Workflows as people see them: listing, following, cancelling, and operations called by schedule.
//!
//! Must not know: what any workflow does.

mod handlers;

use std::sync::Arc;

use nephos_store::Store;
use nephos_types::Result;

pub use handlers::view;

use crate::{core::Handlers, journal::Engine};

/// The family's state.
pub struct Workflows {
    store: Store,
    engine: Engine,
}

impl Workflows {
    /// Registers the family's operations and its workflow.
    pub fn register(handlers: &mut Handlers, store: &Store, engine: &Engine) -> Result<Arc<Self>> {
        let workflows = Arc::new(Self { store: store.clone(), engine: engine.clone() });
        handlers::register(handlers, &workflows);
        Ok(workflows)
    }
}
