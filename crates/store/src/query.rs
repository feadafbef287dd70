//! Which records are wanted, and which page of them.

use nephos_types::{Error, Id, Page, PageRequest, ProjectId, Result};

use crate::Kind;

/// Conditions that hold together, and a page. Lists are ordered by id, which is by age.
///
/// Cost: with conditions, that of the rarest one; without, that of the page.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    pub(crate) project: Option<ProjectId>,
    pub(crate) indexes: Vec<(&'static str, String)>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) id_prefix: Option<String>,
    pub(crate) after: Option<u64>,
    pub(crate) limit: Option<usize>,
}

impl Query {
    /// All records of the kind.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only those the project owns.
    #[must_use]
    pub fn project(mut self, project: ProjectId) -> Self {
        self.project = Some(project);
        self
    }

    /// Only those found under a value of an index that the kind declares.
    #[must_use]
    pub fn index(mut self, index: &'static str, value: impl ToString) -> Self {
        self.indexes.push((index, value.to_string()));
        self
    }

    /// Only those with this label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Only those whose id's text begins so (with the kind's prefix and dash); for references by a unique prefix.
    #[must_use]
    pub fn id_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.id_prefix = Some(prefix.into());
        self
    }

    /// Only those after this id, which need not exist any more.
    #[must_use]
    pub fn after(mut self, id: impl Id) -> Self {
        self.after = Some(id.bits());
        self
    }

    /// At most this many. Without a limit, all.
    #[must_use]
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The page that a caller asked for; refuses a marker that is not an id of the kind.
    pub fn page<K: Kind>(mut self, request: &PageRequest) -> Result<Self> {
        if let Some(marker) = &request.after {
            let id: K::Id = marker.parse().map_err(|error: Error| {
                Error::invalid("invalid_marker", "Not a place in this list")
                    .detail(error.detail)
                    .next("pass the `next` of the page before as `after`", None)
            })?;
            self.after = Some(id.bits());
        }
        self.limit = Some(request.limit());
        Ok(self)
    }

    /// The ids in question as their bits, both ends included; `None` if there can be none.
    pub(crate) fn range<I: Id>(&self) -> Option<(u64, u64)> {
        let (mut low, mut high) = (0, u64::MAX);
        if let Some(prefix) = &self.id_prefix {
            (low, high) = prefix_range::<I>(prefix)?;
        }
        if let Some(after) = self.after {
            low = low.max(after.checked_add(1)?);
        }
        (low <= high).then_some((low, high))
    }
}

/// The ids whose text begins with `prefix`: filled up with the lowest and the highest digit.
fn prefix_range<I: Id>(prefix: &str) -> Option<(u64, u64)> {
    let whole = I::from_bits(0).to_string();
    if whole.starts_with(prefix) && prefix.len() <= I::PREFIX.len() + 1 {
        return Some((0, u64::MAX));
    }
    let missing = whole.len().checked_sub(prefix.len())?;
    let low: I = format!("{prefix}{}", "0".repeat(missing)).parse().ok()?;
    let high: I = format!("{prefix}{}", "z".repeat(missing)).parse().ok()?;
    Some((low.bits(), high.bits()))
}

/// A page out of one item more than fits.
pub(crate) fn cut<T>(mut items: Vec<T>, limit: usize, id: impl Fn(&T) -> String) -> Page<T> {
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more { items.last().map(id) } else { None };
    Page { items, next }
}

#[cfg(test)]
mod tests {
    use nephos_types::ServerId;

    use super::*;

    #[test]
    fn a_prefix_covers_exactly_its_ids() {
        let id = ServerId::from_bits(0x0123_4567_89ab_cdef);
        let text = id.to_string();
        for length in 0..=text.len() {
            let (low, high) = prefix_range::<ServerId>(&text[..length]).unwrap();
            assert!(low <= id.bits() && id.bits() <= high, "{}", &text[..length]);
            if length > 4 {
                assert!(ServerId::from_bits(low).to_string().starts_with(&text[..length]));
                assert!(ServerId::from_bits(high).to_string().starts_with(&text[..length]));
            }
        }
        for wrong in ["img-", "srv-u", "srv-z", "x", &format!("{text}0")] {
            assert_eq!(prefix_range::<ServerId>(wrong), None, "{wrong}");
        }
    }
}
