//! What the handlers of this family have in common: lists of what may be seen, refusals to delete what is in use,
//! renaming.

use std::sync::Arc;

use nephos_store::{Kind, Query, Record, Transaction};
use nephos_types::{Error, Name, Number, Page, PageRequest, Result, Text};

use crate::{Named, Session, name_claim};

/// The text given, or none.
pub(super) fn text<const MAX: usize>(text: Option<Text<MAX>>) -> String {
    text.map(|text| text.as_str().to_owned()).unwrap_or_default()
}

/// How many items the caller wants on a page.
pub(super) fn page_limit(limit: Option<Number<1, 1000>>) -> usize {
    PageRequest { limit, after: None }.limit()
}

/// One page of those records under a query that the caller may see and that fit.
pub(super) fn visible<K: Named, V>(
    session: &Session,
    query: Query,
    after: Option<K::Id>,
    limit: usize,
    fits: impl Fn(&Record<K>) -> bool,
    view: impl Fn(&Record<K>) -> Result<V>,
) -> Result<Page<V>> {
    filtered(session, query, after, limit, |record| K::visible(session, record) && fits(record), view)
}

/// One page of those records under a query that fit.
pub(super) fn filtered<K: Kind, V>(
    session: &Session,
    query: Query,
    after: Option<K::Id>,
    limit: usize,
    fits: impl Fn(&Record<K>) -> bool,
    view: impl Fn(&Record<K>) -> Result<V>,
) -> Result<Page<V>> {
    let mut query = query.limit(limit + 1);
    if let Some(after) = after {
        query = query.after(after);
    }
    let mut found: Vec<Arc<Record<K>>> = vec![];
    loop {
        let page = session.store().list::<K>(&query);
        found.extend(page.items.iter().filter(|record| fits(record)).map(Arc::clone));
        match page.items.last() {
            Some(last) if page.next.is_some() && found.len() <= limit => query = query.after(last.meta.id),
            _ => break,
        }
    }
    let more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| more).map(|last| last.meta.id.to_string());
    Ok(Page { items: found.iter().map(|record| view(record)).collect::<Result<_>>()?, next })
}

/// Refuses to delete what still holds something, and says what.
pub(super) fn refuse_contents<'a>(
    noun: &str,
    name: &Name,
    contents: impl IntoIterator<Item = (&'a str, u64)>,
) -> Result<()> {
    let mut error = Error::conflict("not_empty", format!("The {noun} `{name}` is not empty"));
    for (what, count) in contents {
        if count > 0 {
            error = error.reason(what, "empty", format!("{count} {what} are in it"));
        }
    }
    if error.reasons.is_empty() { Ok(()) } else { Err(error.next("delete what is in it first", None)) }
}

/// Moves the claim on a name, where it is to change.
pub(super) fn rename<K: Kind>(
    transaction: Transaction,
    space: impl ToString,
    id: K::Id,
    old: &Name,
    new: Option<&Name>,
) -> Transaction {
    let space = space.to_string();
    match new {
        Some(new) => transaction.release(name_claim::<K>(&space, old), id).claim(name_claim::<K>(&space, new), id),
        None => transaction,
    }
}
