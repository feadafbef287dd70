//! Records as read, drafts of new ones, edits of existing ones.

use nephos_types::{Labels, Name, ProjectId, Timestamp};

use crate::{Kind, Revision};

/// What every record has, whatever its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta<I> {
    /// Unique within the kind, for ever.
    pub id: I,
    /// The project that owns it; `None` for what belongs to the cloud as a whole.
    pub project: Option<ProjectId>,
    /// The name; unique only where a claim says so.
    pub name: Option<Name>,
    /// Free labels, by which [`crate::Query::label`] finds it.
    pub labels: Labels,
    /// When it was last written; what an update must still find.
    pub revision: Revision,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last written.
    pub updated_at: Timestamp,
}

/// A record as it stood at its revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<K: Kind> {
    /// Identity, owner, name, labels, revision, times.
    pub meta: Meta<K::Id>,
    /// What the kind defines.
    pub body: K,
}

impl<K: Kind> Record<K> {
    /// The id.
    #[must_use]
    pub fn id(&self) -> K::Id {
        self.meta.id
    }

    /// Starts a change of body, name or labels; give it to [`crate::Transaction::save`].
    #[must_use]
    pub fn edit(&self) -> Edit<K> {
        Edit { record: self.clone() }
    }
}

/// A record to be created.
#[derive(Clone, Debug)]
pub struct Draft<K: Kind> {
    pub(crate) id: K::Id,
    pub(crate) project: Option<ProjectId>,
    pub(crate) name: Option<Name>,
    pub(crate) labels: Labels,
    pub(crate) body: K,
}

impl<K: Kind> Draft<K> {
    /// A draft with this id and body, without project, name and labels.
    #[must_use]
    pub fn new(id: K::Id, body: K) -> Self {
        Self { id, project: None, name: None, labels: Labels::default(), body }
    }

    /// Owned by a project (or by none).
    #[must_use]
    pub fn project(mut self, project: impl Into<Option<ProjectId>>) -> Self {
        self.project = project.into();
        self
    }

    /// With a name (or none).
    #[must_use]
    pub fn name(mut self, name: impl Into<Option<Name>>) -> Self {
        self.name = name.into();
        self
    }

    /// With these labels.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.labels = labels;
        self
    }
}

/// A change of a record as it was read.
#[derive(Clone, Debug)]
pub struct Edit<K: Kind> {
    pub(crate) record: Record<K>,
}

impl<K: Kind> Edit<K> {
    /// With this body.
    #[must_use]
    pub fn body(mut self, body: K) -> Self {
        self.record.body = body;
        self
    }

    /// With the body changed in place.
    #[must_use]
    pub fn modify(mut self, change: impl FnOnce(&mut K)) -> Self {
        change(&mut self.record.body);
        self
    }

    /// With this name (or none).
    #[must_use]
    pub fn name(mut self, name: impl Into<Option<Name>>) -> Self {
        self.record.meta.name = name.into();
        self
    }

    /// With these labels instead.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.record.meta.labels = labels;
        self
    }

    /// Owned by this project (or by none) from now on.
    #[must_use]
    pub fn project(mut self, project: impl Into<Option<ProjectId>>) -> Self {
        self.record.meta.project = project.into();
        self
    }
}
