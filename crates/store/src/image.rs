//! The whole database in memory: a table per kind, the claims, the counters. Reads are served from here.
//!
//! It is changed by the committer alone, after the disk has the change. Within one table the writes of a transaction
//! appear at once; between tables a reader may be in the middle. Records appear before the claims that name them.

use std::{
    any::TypeId,
    collections::{BTreeMap, HashMap},
    ops::Bound::{Excluded, Unbounded},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    Kind,
    backend::{RawAdd, RawClaim},
    kind::Kinds,
    table::{AnyTable, Table},
};

pub(crate) struct Image {
    by_type: HashMap<TypeId, Arc<dyn AnyTable>>,
    by_name: HashMap<&'static str, Arc<dyn AnyTable>>,
    claims: RwLock<BTreeMap<String, String>>,
    counters: RwLock<BTreeMap<String, i64>>,
}

impl Image {
    pub(crate) fn new(kinds: Kinds) -> Self {
        Self { by_type: kinds.by_type, by_name: kinds.by_name, claims: RwLock::default(), counters: RwLock::default() }
    }

    /// The table of a kind; `None` (and an entry in the log) if the store was opened without it.
    pub(crate) fn table<K: Kind>(&self) -> Option<&Table<K>> {
        let table = self.by_type.get(&TypeId::of::<K>()).and_then(|table| table.as_any().downcast_ref());
        debug_assert!(table.is_some(), "kind `{}` is not registered with `Kinds`", K::NAME);
        if table.is_none() {
            tracing::error!(kind = K::NAME, "the store was opened without this kind");
        }
        table
    }

    pub(crate) fn table_by_name(&self, kind: &str) -> Option<&Arc<dyn AnyTable>> {
        self.by_name.get(kind)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<dyn AnyTable>> {
        self.by_name.values()
    }

    pub(crate) fn owner(&self, key: &str) -> Option<String> {
        self.claims.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    pub(crate) fn counter(&self, key: &str) -> i64 {
        self.counters.read().unwrap_or_else(PoisonError::into_inner).get(key).copied().unwrap_or(0)
    }

    pub(crate) fn claims(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, String)> {
        within(&self.claims.read().unwrap_or_else(PoisonError::into_inner), prefix, after, limit)
    }

    pub(crate) fn counters(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, i64)> {
        within(&self.counters.read().unwrap_or_else(PoisonError::into_inner), prefix, after, limit)
    }

    /// Applies steps that the backend has accepted.
    pub(crate) fn apply_claims<'a>(&self, steps: impl Iterator<Item = &'a RawClaim>) {
        let mut steps = steps.peekable();
        if steps.peek().is_none() {
            return;
        }
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        for step in steps {
            match step {
                RawClaim::Take { key, owner } => {
                    claims.insert(key.clone(), owner.clone());
                }
                RawClaim::Release { key, owner } => {
                    if claims.get(key) == Some(owner) {
                        claims.remove(key);
                    }
                }
            }
        }
    }

    /// Applies steps that the backend has accepted.
    pub(crate) fn apply_adds<'a>(&self, steps: impl Iterator<Item = &'a RawAdd>) {
        let mut steps = steps.peekable();
        if steps.peek().is_none() {
            return;
        }
        let mut counters = self.counters.write().unwrap_or_else(PoisonError::into_inner);
        for step in steps {
            let value = counters.get(&step.key).copied().unwrap_or(0).saturating_add(step.amount);
            if value == 0 {
                counters.remove(&step.key);
            } else {
                counters.insert(step.key.clone(), value);
            }
        }
    }

    /// Sets claims as another process left them.
    pub(crate) fn set_claims(&self, all: Vec<(String, Option<String>)>) {
        if all.is_empty() {
            return;
        }
        let mut claims = self.claims.write().unwrap_or_else(PoisonError::into_inner);
        for (key, owner) in all {
            match owner {
                Some(owner) => claims.insert(key, owner),
                None => claims.remove(&key),
            };
        }
    }

    /// Sets counters as another process left them.
    pub(crate) fn set_counters(&self, all: Vec<(String, i64)>) {
        if all.is_empty() {
            return;
        }
        let mut counters = self.counters.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in all {
            if value == 0 {
                counters.remove(&key);
            } else {
                counters.insert(key, value);
            }
        }
    }
}

/// The entries whose key begins with `prefix`, after a key.
fn within<V: Clone>(map: &BTreeMap<String, V>, prefix: &str, after: Option<&str>, limit: usize) -> Vec<(String, V)> {
    let from = match after {
        Some(after) if after >= prefix => Excluded(after),
        _ => std::ops::Bound::Included(prefix),
    };
    map.range::<str, _>((from, Unbounded))
        .take_while(|(key, _)| key.starts_with(prefix))
        .take(limit)
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
