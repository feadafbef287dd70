//! Writing a batch: one SQL transaction, in which each of ours is checked before any of its writes.

use std::{collections::HashMap, sync::Arc};

use nephos_types::{Error, Result};
use rusqlite::{Connection, ErrorCode, OptionalExtension, TransactionBehavior, params};

use super::{failed, writer::State};
use crate::{
    Revision,
    backend::{Accepted, Applied, RawClaim, RawTransaction, RawWrite, Refusal, Sequence},
    change::Action,
};

/// What a checked transaction will do.
struct Plan<'a> {
    /// The row of each write that has one.
    places: Vec<Option<i64>>,
    /// New owners of claims; `None` frees.
    claims: HashMap<&'a str, Option<&'a str>>,
    /// New values of counters.
    counters: HashMap<&'a str, i64>,
}

impl State {
    pub(super) fn apply(&mut self, batch: &[Arc<RawTransaction>]) -> Result<Applied> {
        let broken = failed("The database cannot be written");
        let mut newest = self.newest;
        let sql = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(&broken)?;
        let mut results = Vec::with_capacity(batch.len());
        for transaction in batch {
            let result = match plan(&sql, transaction).map_err(&broken)? {
                Ok(plan) => {
                    write(&sql, transaction, &plan, newest).map_err(&broken)?;
                    newest += transaction.writes.len() as u64;
                    Ok(Accepted { last: Revision(newest) })
                }
                Err(refusal) => Err(refusal),
            };
            results.push(result);
        }
        if newest != self.newest {
            sql.prepare_cached("UPDATE position SET newest = ?1")
                .and_then(|mut statement| statement.execute([signed(newest)]))
                .map_err(&broken)?;
        }
        // Without a change this costs no flush.
        match sql.commit() {
            Ok(()) => {
                self.newest = newest;
                Ok(Applied { results, follows: Sequence::default(), sequence: None })
            }
            Err(error) => Err(self.not_committed(error)),
        }
    }

    /// A commit that fails for want of space was undone by the engine; any other failure is a disk nobody can trust.
    pub(super) fn not_committed(&mut self, error: rusqlite::Error) -> Error {
        if error.sqlite_error_code() == Some(ErrorCode::DiskFull) {
            return failed("The database cannot be written")(error);
        }
        self.give_up(error)
    }
}

/// Checks everything a transaction expects, against the database as the transactions before it leave it.
fn plan<'a>(sql: &Connection, transaction: &'a RawTransaction) -> rusqlite::Result<Result<Plan<'a>, Refusal>> {
    let mut find = sql.prepare_cached("SELECT place, revision FROM record WHERE kind = ?1 AND id = ?2")?;
    let mut find = |kind: &str, id: &str| -> rusqlite::Result<Option<(i64, u64)>> {
        find.query_row([kind, id], |row| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()))).optional()
    };
    for expectation in &transaction.expectations {
        let found = find(expectation.kind, &expectation.id)?;
        if found.is_none_or(|(_, revision)| revision != expectation.revision.0) {
            return Ok(Err(Refusal::Conflict { kind: expectation.kind.to_owned(), id: expectation.id.clone() }));
        }
    }
    let mut places = Vec::with_capacity(transaction.writes.len());
    for RawWrite { kind, id, action, expected, .. } in &transaction.writes {
        match (action, find(kind, id)?) {
            (Action::Created, None) => places.push(None),
            (Action::Created, Some(_)) => {
                return Ok(Err(Refusal::Exists { kind: (*kind).to_owned(), id: id.clone() }));
            }
            (_, Some((place, revision))) if revision == expected.0 => places.push(Some(place)),
            _ => return Ok(Err(Refusal::Conflict { kind: (*kind).to_owned(), id: id.clone() })),
        }
    }

    let mut owner = sql.prepare_cached("SELECT owner FROM claim WHERE key = ?1")?;
    let mut before: HashMap<&str, Option<String>> = HashMap::new();
    let mut claims: HashMap<&str, Option<&str>> = HashMap::new();
    for step in &transaction.claims {
        let (RawClaim::Take { key, owner: by } | RawClaim::Release { key, owner: by }) = step;
        if !before.contains_key(key.as_str()) {
            before.insert(key, owner.query_row([key], |row| row.get(0)).optional()?);
        }
        let held = match claims.get(key.as_str()) {
            Some(planned) => *planned,
            None => before.get(key.as_str()).and_then(Option::as_deref),
        };
        match (step, held) {
            (RawClaim::Take { .. }, Some(held)) if held != by => {
                return Ok(Err(Refusal::Taken { key: key.clone(), owner: held.to_owned() }));
            }
            (RawClaim::Take { .. }, None) => drop(claims.insert(key, Some(by))),
            (RawClaim::Release { .. }, Some(held)) if held == by => drop(claims.insert(key, None)),
            _ => {}
        }
    }

    let mut value = sql.prepare_cached("SELECT value FROM counter WHERE key = ?1")?;
    let mut counters: HashMap<&str, i64> = HashMap::new();
    for step in &transaction.adds {
        let now = match counters.get(step.key.as_str()) {
            Some(planned) => *planned,
            None => value.query_row([&step.key], |row| row.get(0)).optional()?.unwrap_or(0),
        };
        match step.bound.step(now, step.amount) {
            Ok(new) => counters.insert(&step.key, new),
            Err(limit) => {
                let (counter, amount) = (step.key.clone(), step.amount);
                return Ok(Err(Refusal::Exceeded { counter, value: now, amount, limit }));
            }
        };
    }
    Ok(Ok(Plan { places, claims, counters }))
}

/// Writes a checked transaction; its revisions follow `newest`.
fn write(sql: &Connection, transaction: &RawTransaction, plan: &Plan<'_>, newest: u64) -> rusqlite::Result<()> {
    let together = signed(newest + transaction.writes.len() as u64);
    for ((write, place), revision) in transaction.writes.iter().zip(&plan.places).zip(newest + 1..) {
        let revision = signed(revision);
        log(sql, transaction, write, *place, revision, together)?;
        match (write.action, place) {
            (Action::Updated, Some(place)) => sql
                .prepare_cached("UPDATE record SET revision = ?2, data = ?3 WHERE place = ?1")?
                .execute(params![place, revision, write.data])?,
            (Action::Deleted, Some(place)) => {
                sql.prepare_cached("DELETE FROM record WHERE place = ?1")?.execute([place])?
            }
            _ => sql
                .prepare_cached("INSERT INTO record (kind, id, revision, data) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![write.kind, write.id, revision, write.data])?,
        };
    }
    for (key, owner) in &plan.claims {
        match owner {
            Some(owner) => sql
                .prepare_cached(
                    "INSERT INTO claim (key, owner) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET owner = ?2",
                )?
                .execute([key, owner])?,
            None => sql.prepare_cached("DELETE FROM claim WHERE key = ?1")?.execute([key])?,
        };
    }
    for (key, value) in &plan.counters {
        if *value == 0 {
            sql.prepare_cached("DELETE FROM counter WHERE key = ?1")?.execute([key])?;
        } else {
            sql.prepare_cached(
                "INSERT INTO counter (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2",
            )?
            .execute(params![key, value])?;
        }
    }
    Ok(())
}

/// Adds a row to the change log, while the record still is as it was before.
fn log(
    sql: &Connection,
    transaction: &RawTransaction,
    write: &RawWrite,
    place: Option<i64>,
    revision: i64,
    together: i64,
) -> rusqlite::Result<()> {
    // The subqueries find nothing for a record that is being created.
    sql.prepare_cached(
        "INSERT INTO change (revision, together, at, actor, source, operation, request, kind, id, project, action,
                             audited, before_revision, before, after)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 
                 (SELECT revision FROM record WHERE place = ?13),
                 (SELECT data FROM record WHERE place = ?13 AND ?12), ?14)",
    )?
    .execute(params![
        revision,
        together,
        transaction.at.as_micros(),
        transaction.author.actor,
        transaction.author.source,
        transaction.author.operation,
        transaction.author.request,
        write.kind,
        write.id,
        write.project,
        write.action.code(),
        write.audited,
        place,
        write.data,
    ])?;
    Ok(())
}

/// SQL's integers are signed; revisions stay far below the half.
pub(super) fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}
