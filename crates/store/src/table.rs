//! All records of one kind in memory, with their indexes.
//!
//! A lock is held for a lookup or for one page, and by the committer once per batch; never across an await.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use nephos_types::{Error, Id, Page, Result};
use serde_json::Value;

use crate::{Kind, Query, Revision, backend::RawRecord, query::cut, record::Record, stored};

/// A record of any kind.
pub(crate) trait AnyRecord: Send + Sync {
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
    fn json(&self) -> Result<Value>;
}

impl<K: Kind> AnyRecord for Record<K> {
    fn as_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }

    fn json(&self) -> Result<Value> {
        let text = stored::encode(&self.meta, &self.body)?;
        let mut form: Value =
            serde_json::from_str(&text).map_err(|error| Error::internal("A stored form is not JSON", error))?;
        if K::SECRET {
            form["body"] = Value::Null;
        }
        Ok(form)
    }
}

/// A committed write on its way into the image.
pub(crate) struct Pending {
    pub(crate) bits: u64,
    pub(crate) revision: Revision,
    /// A `Record<K>` without its revision; `None` deletes.
    pub(crate) record: Option<Box<dyn Any + Send + Sync>>,
}

/// What a write replaced and what it left.
pub(crate) struct Outcome {
    pub(crate) before: Option<Arc<dyn AnyRecord>>,
    pub(crate) after: Option<Arc<dyn AnyRecord>>,
}

/// A [`Table`] of whatever kind.
pub(crate) trait AnyTable: Send + Sync {
    fn name(&self) -> &'static str;
    fn id_prefix(&self) -> &'static str;
    fn as_any(&self) -> &dyn Any;
    fn load(&self, raw: &RawRecord) -> Result<()>;
    fn decode(&self, id: &str, revision: Revision, data: &str) -> Result<Arc<dyn AnyRecord>>;
    /// What another process wrote, on its way into this table.
    fn pending(&self, id: &str, revision: Revision, data: Option<&str>) -> Result<Pending>;
    fn audited(&self) -> bool;
    fn version(&self) -> u32;
    fn apply(&self, writes: Vec<Pending>) -> Vec<Outcome>;
    fn contains(&self, id: &str) -> bool;
    fn len(&self) -> usize;
    /// What differs between memory and a stored record, and whether the indexes find it, in words.
    fn compare(&self, raw: &RawRecord) -> Vec<String>;
    /// How many index entries there are, and how many there should be.
    fn index_entries(&self) -> (usize, usize);
}

/// A list of ids is kept for each of these.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Posting {
    Project(u64),
    Index(&'static str, String),
    Label(String, String),
}

/// Where a record is to be found.
pub(crate) fn postings<K: Kind>(record: &Record<K>) -> Vec<Posting> {
    let mut all: Vec<Posting> = record.meta.project.iter().map(|project| Posting::Project(project.bits())).collect();
    all.extend(record.meta.labels.0.iter().map(|(key, value)| Posting::Label(key.clone(), value.clone())));
    for index in K::INDEXES {
        all.extend(K::index(record, index).into_iter().map(|value| Posting::Index(index, value)));
    }
    all
}

struct Rows<K: Kind> {
    records: BTreeMap<u64, Arc<Record<K>>>,
    postings: HashMap<Posting, BTreeSet<u64>>,
}

impl<K: Kind> Rows<K> {
    fn put(&mut self, record: Arc<Record<K>>) -> Option<Arc<Record<K>>> {
        let bits = record.meta.id.bits();
        let new = postings(&record);
        let before = self.records.insert(bits, record);
        let old = before.as_deref().map(postings).unwrap_or_default();
        if old != new {
            self.unlist(bits, old);
            for posting in new {
                self.postings.entry(posting).or_default().insert(bits);
            }
        }
        before
    }

    fn remove(&mut self, bits: u64) -> Option<Arc<Record<K>>> {
        let before = self.records.remove(&bits)?;
        self.unlist(bits, postings(&before));
        Some(before)
    }

    fn unlist(&mut self, bits: u64, old: Vec<Posting>) {
        for posting in old {
            if let Some(ids) = self.postings.get_mut(&posting) {
                ids.remove(&bits);
                if ids.is_empty() {
                    self.postings.remove(&posting);
                }
            }
        }
    }

    /// The records that satisfy a query, without its limit.
    fn select<'a>(&'a self, query: &Query) -> Box<dyn Iterator<Item = &'a Arc<Record<K>>> + 'a> {
        let Some((low, high)) = query.range::<K::Id>() else { return Box::new(std::iter::empty()) };
        let mut lists = vec![];
        for condition in conditions::<K>(query) {
            match self.postings.get(&condition) {
                Some(ids) => lists.push(ids),
                None => return Box::new(std::iter::empty()),
            }
        }
        lists.sort_by_key(|ids| ids.len());
        let Some((rarest, others)) = lists.split_first() else {
            return Box::new(self.records.range(low..=high).map(|(_, record)| record));
        };
        let others = others.to_vec();
        Box::new(
            rarest
                .range(low..=high)
                .filter(move |bits| others.iter().all(|ids| ids.contains(bits)))
                .filter_map(|bits| self.records.get(bits)),
        )
    }
}

fn conditions<K: Kind>(query: &Query) -> Vec<Posting> {
    let mut all: Vec<Posting> = query.project.iter().map(|project| Posting::Project(project.bits())).collect();
    for (index, value) in &query.indexes {
        // An index nobody declared has no entries, so the list would silently be empty.
        debug_assert!(K::INDEXES.contains(index), "kind `{}` declares no index `{index}`", K::NAME);
        if !K::INDEXES.contains(index) {
            tracing::error!(kind = K::NAME, index, "query by an index that the kind does not declare");
        }
        all.push(Posting::Index(index, value.clone()));
    }
    all.extend(query.labels.iter().map(|(key, value)| Posting::Label(key.clone(), value.clone())));
    all
}

/// All records of one kind.
pub(crate) struct Table<K: Kind> {
    rows: RwLock<Rows<K>>,
    generation: AtomicU64,
}

impl<K: Kind> Default for Table<K> {
    fn default() -> Self {
        let rows = RwLock::new(Rows { records: BTreeMap::new(), postings: HashMap::new() });
        Self { rows, generation: AtomicU64::new(0) }
    }
}

impl<K: Kind> Table<K> {
    /// Another number after each change of a record.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    // A panic while the lock is held can only come from `Kind::index`; what it leaves is still memory-safe and
    // `verify` would show it, so reads go on.
    fn read(&self) -> RwLockReadGuard<'_, Rows<K>> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows<K>> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, id: K::Id) -> Option<Arc<Record<K>>> {
        self.read().records.get(&id.bits()).cloned()
    }

    pub(crate) fn list(&self, query: &Query) -> Page<Arc<Record<K>>> {
        let limit = query.limit.unwrap_or(usize::MAX);
        let items = self.read().select(query).take(limit.saturating_add(1)).cloned().collect();
        cut(items, limit, |record: &Arc<Record<K>>| record.meta.id.to_string())
    }

    pub(crate) fn count(&self, query: &Query) -> usize {
        let rows = self.read();
        let everything = Query { limit: None, ..query.clone() };
        let mut conditions = conditions::<K>(query);
        let whole = query.range::<K::Id>() == Some((0, u64::MAX));
        match (whole, conditions.len()) {
            (true, 0) => rows.records.len(),
            (true, 1) => conditions.pop().and_then(|only| rows.postings.get(&only)).map_or(0, BTreeSet::len),
            _ => rows.select(&everything).count(),
        }
    }
}

impl<K: Kind> AnyTable for Table<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn id_prefix(&self) -> &'static str {
        K::Id::PREFIX
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn load(&self, raw: &RawRecord) -> Result<()> {
        let record = stored::decode::<K>(&raw.id, raw.revision, &raw.data)?;
        self.write().put(Arc::new(record));
        Ok(())
    }

    fn decode(&self, id: &str, revision: Revision, data: &str) -> Result<Arc<dyn AnyRecord>> {
        Ok(Arc::new(stored::decode::<K>(id, revision, data)?))
    }

    fn pending(&self, id: &str, revision: Revision, data: Option<&str>) -> Result<Pending> {
        let bits = id.parse::<K::Id>()?.bits();
        let record = data.map(|data| stored::decode::<K>(id, revision, data)).transpose()?;
        Ok(Pending { bits, revision, record: record.map(|record| -> Box<dyn Any + Send + Sync> { Box::new(record) }) })
    }

    fn version(&self) -> u32 {
        K::VERSION
    }

    fn audited(&self) -> bool {
        K::AUDITED
    }

    fn apply(&self, writes: Vec<Pending>) -> Vec<Outcome> {
        let erase = |record: Arc<Record<K>>| -> Arc<dyn AnyRecord> { record };
        let mut rows = self.write();
        // Under the lock: whoever reads what is written here has this number or an older one.
        self.generation.fetch_add(1, Ordering::Release);
        writes
            .into_iter()
            .map(|write| match write.record.map(<Box<dyn Any + Send + Sync>>::downcast::<Record<K>>) {
                Some(Ok(mut record)) => {
                    record.meta.revision = write.revision;
                    let record: Arc<Record<K>> = Arc::new(*record);
                    let before = rows.put(record.clone()).map(erase);
                    Outcome { before, after: Some(erase(record)) }
                }
                // `Write<K>` puts nothing but its own `Record<K>` here.
                Some(Err(_)) => Outcome { before: None, after: None },
                None => Outcome { before: rows.remove(write.bits).map(erase), after: None },
            })
            .collect()
    }

    fn contains(&self, id: &str) -> bool {
        id.parse::<K::Id>().is_ok_and(|id| self.read().records.contains_key(&id.bits()))
    }

    fn len(&self) -> usize {
        self.read().records.len()
    }

    fn compare(&self, raw: &RawRecord) -> Vec<String> {
        let what = format!("{} {}", raw.kind, raw.id);
        let stored = match stored::decode::<K>(&raw.id, raw.revision, &raw.data) {
            Ok(stored) => stored,
            Err(error) => return vec![format!("{what}: {}", error.chain())],
        };
        let rows = self.read();
        let bits = stored.meta.id.bits();
        let Some(record) = rows.records.get(&bits) else { return vec![format!("{what}: on disk but not in memory")] };
        let mut problems = vec![];
        if record.meta != stored.meta {
            problems.push(format!("{what}: memory {:?}, disk {:?}", record.meta, stored.meta));
        }
        match (stored::encode(&record.meta, &record.body), stored::encode(&stored.meta, &stored.body)) {
            (Ok(memory), Ok(disk)) if memory == disk => {}
            (Ok(memory), Ok(disk)) => problems.push(format!("{what}: memory {memory}, disk {disk}")),
            (Err(error), _) | (_, Err(error)) => problems.push(format!("{what}: {}", error.chain())),
        }
        for posting in postings(&stored) {
            if !rows.postings.get(&posting).is_some_and(|ids| ids.contains(&bits)) {
                problems.push(format!("{what}: missing in index {posting:?}"));
            }
        }
        problems
    }

    fn index_entries(&self) -> (usize, usize) {
        let rows = self.read();
        let listed = rows.postings.values().map(BTreeSet::len).sum();
        let due = rows
            .records
            .values()
            .map(|record| postings(record).into_iter().collect::<std::collections::HashSet<_>>().len())
            .sum();
        (listed, due)
    }
}
