//! From what a caller wrote (a name, an id, a unique prefix of an id) to the record, within what the caller may see.
//!
//! What a caller may not see is not found, in the same words as what does not exist.

use std::{fmt, sync::Arc};

use nephos_store::{Kind, Query, Record};
use nephos_types::{Error, ErrorKind, Id, Name, Reference, Result};

use crate::{
    identity::kinds::Project,
    session::{Session, Visible},
};

/// The names of kinds that belong to the cloud as a whole are unique in this space.
pub const CLOUD: &str = "-";

/// How many digits of an id must be given at least.
const MIN_PREFIX: usize = 4;
/// Records read at a time.
const CHUNK: usize = 100;

/// Kinds that callers refer to by name.
pub trait Named: Kind {
    /// What people call it: `server`; also the noun of its operations.
    const NOUN: &'static str;

    /// Where names are looked up: the parts of the claim `name/<kind>/<space>/<name>` between kind and name; the first
    /// space that knows the name wins. By default the project of the caller's token; with none, a name is looked for in
    /// all projects that the caller may see, and has to be the only one. Kinds of the whole cloud say [`CLOUD`].
    fn spaces(session: &Session) -> Vec<String> {
        session.identity().ok().and_then(|identity| identity.project()).map(|id| id.to_string()).into_iter().collect()
    }

    /// Whether the caller may see this record. By default, what belongs to a project is seen from that project, and
    /// what belongs to none by everyone who may call.
    fn visible(session: &Session, record: &Record<Self>) -> bool {
        record.meta.project.is_none_or(|project| session.sees(project))
    }
}

/// The unique claim that holds a name. `space` is a project's or domain's id, or [`CLOUD`].
#[must_use]
pub fn name_claim<K: Kind>(space: impl fmt::Display, name: impl fmt::Display) -> String {
    format!("name/{}/{space}/{name}", K::NAME)
}

/// The name of a record whose kind always has one.
pub(crate) fn name_of<K: Kind>(record: &Record<K>) -> Result<Name> {
    record.meta.name.clone().ok_or_else(|| Error::bug(format!("{} {} has no name", K::NAME, record.meta.id)))
}

/// An id that stands where none is known; only for records that a defect left without one.
pub(crate) fn no_id<I: Id>() -> I {
    I::from_bits(0)
}

impl Session {
    /// Whether resources of this project are visible to the caller.
    #[must_use]
    pub fn sees(&self, project: nephos_types::ProjectId) -> bool {
        match self.visible() {
            Visible::Everything => true,
            Visible::Project(own) => own == project,
            Visible::Domain(domain) => {
                self.store().get::<Project>(project).is_some_and(|project| project.body.domain == domain)
            }
            Visible::Nothing => false,
        }
    }

    /// The record that the caller means.
    pub fn find<K: Named>(&self, reference: &Reference) -> Result<Arc<Record<K>>> {
        let spaces = K::spaces(self);
        if spaces.is_empty() { self.find_anywhere(reference) } else { self.find_in(&spaces, reference) }
    }

    /// The record that the caller means, with names looked up in these spaces; the first that knows the name wins.
    pub fn find_in<K: Named>(&self, spaces: &[String], reference: &Reference) -> Result<Arc<Record<K>>> {
        let text = reference.as_str();
        if let Some(record) = self.by_id::<K>(text) {
            return Ok(record);
        }
        match spaces.iter().find_map(|space| self.by_name::<K>(space, text)) {
            Some(record) => Ok(record),
            None => self.by_prefix(text),
        }
    }

    /// The record that the caller means, of a kind that belongs to projects, with a token that is not for one.
    fn find_anywhere<K: Named>(&self, reference: &Reference) -> Result<Arc<Record<K>>> {
        let text = reference.as_str();
        if let Some(record) = self.by_id::<K>(text) {
            return Ok(record);
        }
        let mut found: Option<Arc<Record<K>>> = None;
        let mut query = Query::all().limit(CHUNK);
        loop {
            let projects = self.store().list::<Project>(&query);
            for project in &projects.items {
                let Some(record) = self.by_name::<K>(&project.meta.id.to_string(), text) else { continue };
                if let Some(first) = found {
                    return Err(ambiguous::<K>(text, &first, &record));
                }
                found = Some(record);
            }
            match projects.items.last() {
                Some(last) if projects.next.is_some() => query = query.after(last.meta.id),
                _ => break,
            }
        }
        match found {
            Some(record) => Ok(record),
            None => self.by_prefix(text),
        }
    }

    fn by_id<K: Named>(&self, text: &str) -> Option<Arc<Record<K>>> {
        let record = self.store().get::<K>(text.parse().ok()?)?;
        K::visible(self, &record).then_some(record)
    }

    fn by_name<K: Named>(&self, space: &str, name: &str) -> Option<Arc<Record<K>>> {
        self.by_id(&self.store().owner(&name_claim::<K>(space, name))?)
    }

    /// By the beginning of an id, where only one visible record has it.
    fn by_prefix<K: Named>(&self, text: &str) -> Result<Arc<Record<K>>> {
        let absent = || Error::not_found(K::NOUN, text);
        if !may_be_prefix::<K::Id>(text) {
            return Err(absent());
        }
        let mut found: Option<Arc<Record<K>>> = None;
        let mut query = Query::all().id_prefix(text).limit(CHUNK);
        loop {
            let page = self.store().list::<K>(&query);
            for record in page.items.iter().filter(|record| K::visible(self, record)) {
                if let Some(first) = found {
                    return Err(ambiguous::<K>(text, &first, record));
                }
                found = Some(Arc::clone(record));
            }
            match page.items.last() {
                Some(last) if page.next.is_some() => query = query.after(last.meta.id),
                _ => return found.ok_or_else(absent),
            }
        }
    }
}

/// Whether the text is meant as the beginning of an id of this kind: its prefix, the dash and some digits.
fn may_be_prefix<I: Id>(text: &str) -> bool {
    let digits = text.strip_prefix(I::PREFIX).and_then(|rest| rest.strip_prefix('-'));
    digits.is_some_and(|digits| digits.len() >= MIN_PREFIX)
}

fn ambiguous<K: Named>(text: &str, one: &Record<K>, other: &Record<K>) -> Error {
    Error::new(ErrorKind::Conflict, "ambiguous_reference", format!("More than one {} is meant by `{text}`", K::NOUN))
        .detail(format!("{} and {} among others", one.meta.id, other.meta.id))
        .next("give the whole id", None)
}
