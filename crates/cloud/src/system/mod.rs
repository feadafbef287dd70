//! The cloud itself: who changed what, what changes now, and a copy of it all.

mod audit;
mod backup;
mod events;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_store::Store;

pub use backup::{RESTORED_BY, restore};

use crate::core::Handlers;

/// The family's state.
pub struct System {
    store: Store,
    data: PathBuf,
    /// The folder of images.
    images: PathBuf,
}

impl System {
    /// Registers the family's operations. `data` is the data folder, `images` that of images, which may be elsewhere.
    pub(crate) fn register(handlers: &mut Handlers, store: &Store, data: &Path, images: &Path) -> Arc<Self> {
        let system = Arc::new(Self { store: store.clone(), data: data.to_owned(), images: images.to_owned() });
        handlers.handle(&system, audit::list);
        handlers.handle(&system, events::watch);
        handlers.handle(&system, backup::back_up);
        system
    }
}
