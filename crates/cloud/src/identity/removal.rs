//! Deleting what hangs on something, before the thing itself.
//!
//! There may be more of it than one transaction holds, so it goes in parts. A crash in between leaves less hanging on a
//! thing that still exists, and the deletion can be repeated.

use std::sync::Arc;

use nephos_store::{CommitError, Query, Record, Store, Transaction};
use nephos_types::{Error, ErrorKind, Result};

use super::kinds::{
    AccessKey, AccessKeySecret, ApplicationCredential, ApplicationCredentialSecret, Assignment, Membership,
};
use crate::{Session, name_claim};

/// Things deleted in one transaction; each takes a few writes, of which a transaction holds a thousand.
const CHUNK: usize = 200;

/// How often parts are tried; bounds the work where others keep adding.
const MAX_PARTS: usize = 10_000;

/// What deletes one thing.
pub(super) type Removal = Box<dyn FnOnce(Transaction, &Store) -> Transaction + Send>;

/// Deletes what `find` finds (at most [`CHUNK`] at a time) until it finds nothing.
pub(super) async fn all(session: &Session, mut find: impl FnMut(&Store) -> Vec<Removal> + Send) -> Result<()> {
    for _ in 0..MAX_PARTS {
        let part = find(session.store());
        if part.is_empty() {
            return Ok(());
        }
        let transaction =
            part.into_iter().fold(session.transaction(), |transaction, removal| removal(transaction, session.store()));
        match session.commit(transaction).await {
            // Somebody else changed or deleted one of them: look again.
            Ok(_) | Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(Error::new(ErrorKind::Unavailable, "contended", "Others keep adding to what is to be deleted")
        .next("try again", None))
}

fn assignment(record: &Arc<Record<Assignment>>) -> Removal {
    let record = Arc::clone(record);
    Box::new(move |transaction, _| transaction.release(record.body.claim(), record.meta.id).delete(&record))
}

fn membership(record: &Arc<Record<Membership>>) -> Removal {
    let record = Arc::clone(record);
    Box::new(move |transaction, _| {
        let claim = Membership::claim(record.body.group, record.body.user);
        transaction.release(claim, record.meta.id).delete(&record)
    })
}

/// An application credential with its secret. An access key made with it is void without it, and removed with its user.
pub(super) fn credential(record: &Arc<Record<ApplicationCredential>>) -> Removal {
    let record = Arc::clone(record);
    Box::new(move |mut transaction, store| {
        if let Some(name) = &record.meta.name {
            transaction =
                transaction.release(name_claim::<ApplicationCredential>(record.body.user, name), record.meta.id);
        }
        if let Some(secret) = store.get::<ApplicationCredentialSecret>(record.meta.id) {
            transaction = transaction.delete(&secret);
        }
        transaction.delete(&record)
    })
}

pub(super) fn access_key(record: &Arc<Record<AccessKey>>) -> Removal {
    let record = Arc::clone(record);
    Box::new(move |mut transaction, store| {
        if let Some(secret) = store.get::<AccessKeySecret>(record.meta.id) {
            transaction = transaction.delete(&secret);
        }
        transaction.delete(&record)
    })
}

/// Access keys under a query.
pub(super) fn access_keys(store: &Store, query: &Query) -> Vec<Removal> {
    store.list::<AccessKey>(&query.clone().limit(CHUNK)).items.iter().map(access_key).collect()
}

/// Application credentials under a query.
pub(super) fn credentials(store: &Store, query: &Query) -> Vec<Removal> {
    store.list::<ApplicationCredential>(&query.clone().limit(CHUNK)).items.iter().map(credential).collect()
}

/// Assignments under a query.
pub(super) fn assignments(store: &Store, query: &Query) -> Vec<Removal> {
    store.list::<Assignment>(&query.clone().limit(CHUNK)).items.iter().map(assignment).collect()
}

/// Memberships under a query.
pub(super) fn memberships(store: &Store, query: &Query) -> Vec<Removal> {
    store.list::<Membership>(&query.clone().limit(CHUNK)).items.iter().map(membership).collect()
}
