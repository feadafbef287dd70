//! Entries of the change log: who changed which record, from where, by which operation, and how it was before.

use std::sync::Arc;

use nephos_types::{ProjectId, RequestId, Result, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Kind, Revision,
    backend::{ChangeFilter, RawChange},
    image::Image,
    record::Record,
    table::AnyRecord,
};

/// Who makes a change. Texts longer than 255 characters are cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// A user's id, or the part of the cloud that acts by itself: `scheduler`, `workflow`.
    pub actor: String,
    /// Where the request came from: an address and a front end.
    pub source: String,
    /// The operation: `server.create`.
    pub operation: String,
    /// The request's id, as it appears in log and answer.
    pub request: String,
}

impl Author {
    /// A user's id, or the name of a part of the cloud that acts by itself.
    #[must_use]
    pub fn new(actor: impl ToString) -> Self {
        Self { actor: cut(actor), ..Self::default() }
    }

    /// Where the request came from.
    #[must_use]
    pub fn source(mut self, source: impl ToString) -> Self {
        self.source = cut(source);
        self
    }

    /// The operation.
    #[must_use]
    pub fn operation(mut self, operation: impl ToString) -> Self {
        self.operation = cut(operation);
        self
    }

    /// The request.
    #[must_use]
    pub fn request(mut self, request: RequestId) -> Self {
        self.request = request.to_string();
        self
    }
}

fn cut(text: impl ToString) -> String {
    let mut text = text.to_string();
    if let Some((end, _)) = text.char_indices().nth(255) {
        text.truncate(end);
    }
    text
}

/// What was done to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It did not exist before.
    Created,
    /// It existed before and after.
    Updated,
    /// It does not exist after.
    Deleted,
}

impl Action {
    /// How SQL tables hold it.
    pub(crate) fn code(self) -> i64 {
        match self {
            Self::Created => 0,
            Self::Updated => 1,
            Self::Deleted => 2,
        }
    }

    /// From how SQL tables hold it.
    pub(crate) fn from_code(code: i64) -> Self {
        match code {
            0 => Self::Created,
            1 => Self::Updated,
            _ => Self::Deleted,
        }
    }
}

/// A record's state in a change, typed if its kind is known.
#[derive(Clone)]
pub(crate) enum Snapshot {
    Typed(Arc<dyn AnyRecord>),
    /// Of a kind that this program no longer has.
    Unknown(Value),
}

/// One record's change.
#[derive(Clone)]
pub struct Change {
    /// Its place in the total order.
    pub revision: Revision,
    /// The place of the last change of the same transaction: changes with equal `commit` happened together.
    pub commit: Revision,
    /// When.
    pub at: Timestamp,
    /// By whom.
    pub author: Arc<Author>,
    /// The kind's name.
    pub kind: String,
    /// The id, as text.
    pub id: String,
    /// The project that owns the record (before it was deleted).
    pub project: Option<ProjectId>,
    /// What was done.
    pub action: Action,
    /// Another process made it, or may have (of a change that is read from disk that is not known). Always so when a
    /// backend is not shared and the change is read from disk, too: for what must not be missed, not for counting.
    pub elsewhere: bool,
    pub(crate) before: Option<Snapshot>,
    pub(crate) after: Option<Snapshot>,
}

impl std::fmt::Debug for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {} {}", self.revision, self.action, self.kind, self.id)
    }
}

impl Change {
    /// Whether it concerns a record of this kind.
    #[must_use]
    pub fn is<K: Kind>(&self) -> bool {
        self.kind == K::NAME
    }

    /// The id, if the record is of this kind.
    #[must_use]
    pub fn id<K: Kind>(&self) -> Option<K::Id> {
        self.is::<K>().then(|| self.id.parse().ok()).flatten()
    }

    /// The record before; `None` if it was created, is of another kind, or of a kind that is not audited.
    #[must_use]
    pub fn before<K: Kind>(&self) -> Option<Arc<Record<K>>> {
        typed(self.before.as_ref())
    }

    /// The record after; `None` if it was deleted or is of another kind.
    #[must_use]
    pub fn after<K: Kind>(&self) -> Option<Arc<Record<K>>> {
        typed(self.after.as_ref())
    }

    /// The record before in its stored form (`project`, `name`, `labels`, `body`, …), whatever its kind; the
    /// body of a [`Kind::SECRET`] is left out.
    pub fn before_json(&self) -> Result<Option<Value>> {
        self.before.as_ref().map(json).transpose()
    }

    /// The record after in its stored form, likewise.
    pub fn after_json(&self) -> Result<Option<Value>> {
        self.after.as_ref().map(json).transpose()
    }

    /// From a row of the log.
    pub(crate) fn decode(image: &Image, raw: RawChange) -> Result<Self> {
        let table = image.table_by_name(&raw.kind);
        let snapshot = |revision: Revision, data: Option<String>| -> Result<Option<Snapshot>> {
            let Some(data) = data else { return Ok(None) };
            Ok(Some(match table {
                Some(table) => Snapshot::Typed(table.decode(&raw.id, revision, &data)?),
                None => Snapshot::Unknown(serde_json::from_str(&data).unwrap_or(Value::String(data))),
            }))
        };
        Ok(Self {
            before: snapshot(raw.before_revision.unwrap_or_default(), raw.before)?,
            after: snapshot(raw.revision, raw.after)?,
            revision: raw.revision,
            commit: raw.commit,
            at: raw.at,
            author: Arc::new(raw.author),
            project: raw.project.map(|project| project.parse()).transpose()?,
            kind: raw.kind,
            id: raw.id,
            action: raw.action,
            elsewhere: true,
        })
    }
}

fn typed<K: Kind>(snapshot: Option<&Snapshot>) -> Option<Arc<Record<K>>> {
    match snapshot? {
        Snapshot::Typed(record) => record.clone().as_any().downcast().ok(),
        Snapshot::Unknown(_) => None,
    }
}

fn json(snapshot: &Snapshot) -> Result<Value> {
    match snapshot {
        Snapshot::Typed(record) => record.json(),
        Snapshot::Unknown(value) => Ok(value.clone()),
    }
}

/// Which entries of the change log are wanted; at most 1,000 at once.
#[derive(Clone, Debug, Default)]
pub struct ChangeQuery {
    pub(crate) filter: ChangeFilter,
}

impl ChangeQuery {
    /// The most entries in one answer.
    pub const MAX_LIMIT: usize = 1000;

    /// The 100 oldest kept ones.
    #[must_use]
    pub fn new() -> Self {
        Self { filter: ChangeFilter { limit: 100, ..ChangeFilter::default() } }
    }

    /// Only those later than this.
    #[must_use]
    pub fn after(mut self, revision: Revision) -> Self {
        self.filter.after = revision;
        self
    }

    /// Only those earlier than this.
    #[must_use]
    pub fn before(mut self, revision: Revision) -> Self {
        self.filter.before = Some(revision);
        self
    }

    /// Only of one kind, by name.
    #[must_use]
    pub fn kind(mut self, kind: impl Into<String>) -> Self {
        self.filter.kind = Some(kind.into());
        self
    }

    /// Only of one record.
    #[must_use]
    pub fn id(mut self, id: impl ToString) -> Self {
        self.filter.id = Some(id.to_string());
        self
    }

    /// Only of what a project owns.
    #[must_use]
    pub fn project(mut self, project: ProjectId) -> Self {
        self.filter.project = Some(project.to_string());
        self
    }

    /// Only by one actor.
    #[must_use]
    pub fn actor(mut self, actor: impl ToString) -> Self {
        self.filter.actor = Some(actor.to_string());
        self
    }

    /// The newest first.
    #[must_use]
    pub fn newest_first(mut self) -> Self {
        self.filter.newest_first = true;
        self
    }

    /// At most this many, 1 to 1,000.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.filter.limit = limit.clamp(1, Self::MAX_LIMIT);
        self
    }
}
