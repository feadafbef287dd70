//! Kinds: Rust types whose stored form is frozen and versioned, and the registry that the store is opened with.

use std::{
    any::TypeId,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use nephos_types::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    record::Record,
    table::{AnyTable, Table},
};

/// A kind of resource: the type of a record's body.
///
/// The stored form is the type's JSON. It is frozen: a change that old JSON does not fit raises [`Kind::VERSION`] and
/// adds a step to [`Kind::migrate`]. Adding a field with `#[serde(default)]` needs neither.
pub trait Kind: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The typed id.
    type Id: nephos_types::Id;
    /// The name under which records are stored, e.g. `server`. Never changes.
    const NAME: &'static str;
    /// The version of the stored form.
    const VERSION: u32 = 1;
    /// Whether the change log keeps what was before and is kept for the audit's time. Off for what changes all the
    /// time and interests nobody later, such as a node's last report.
    const AUDITED: bool = true;
    /// Whether the body holds secrets, so that nobody who reads the change log sees it: [`crate::Change::after_json`]
    /// leaves it out.
    const SECRET: bool = false;
    /// The declared indexes, by which [`crate::Query::index`] finds records.
    const INDEXES: &'static [&'static str] = &[];

    /// The values under which a record appears in a declared index. Must depend on nothing but the record.
    #[must_use]
    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        let _ = (record, index);
        vec![]
    }

    /// Turns a body of `version` into one of `version + 1`; called until [`Kind::VERSION`] is reached.
    fn migrate(version: u32, body: serde_json::Value) -> Result<serde_json::Value> {
        let _ = body;
        Err(Error::bug(format!("Records of kind `{}` cannot be read from version {version}", Self::NAME)))
    }
}

/// The kinds a store knows.
#[derive(Default)]
pub struct Kinds {
    pub(crate) by_type: HashMap<TypeId, Arc<dyn AnyTable>>,
    pub(crate) by_name: HashMap<&'static str, Arc<dyn AnyTable>>,
    pub(crate) twice: Vec<&'static str>,
}

impl Kinds {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Their names and the versions of their stored forms.
    #[must_use]
    pub fn versions(&self) -> BTreeMap<&'static str, u32> {
        self.by_name.iter().map(|(name, table)| (*name, table.version())).collect()
    }

    /// And this one. Two types with one name make [`crate::Store::open`] fail.
    #[must_use]
    pub fn with<K: Kind>(mut self) -> Self {
        let table: Arc<dyn AnyTable> = Arc::new(Table::<K>::default());
        let new = self.by_type.insert(TypeId::of::<K>(), table.clone()).is_none();
        if self.by_name.insert(K::NAME, table).is_some() && new {
            self.twice.push(K::NAME);
        }
        self
    }
}
