//! Deciding a batch: each transaction against what the database holds, as those before it leave it.

use std::collections::HashMap;

use crate::{
    Revision,
    backend::{Accepted, RawClaim, RawTransaction, Refusal},
    change::Action,
};

/// A record as it stands while a batch is decided.
#[derive(Clone, Copy)]
pub(super) struct Current<'a> {
    pub(super) revision: u64,
    /// Its stored form, if this batch wrote it; otherwise the database has it.
    pub(super) data: Option<&'a str>,
}

/// What the database holds of all that a batch names; changed by each transaction that is accepted.
pub(super) struct View<'a> {
    pub(super) newest: u64,
    pub(super) records: HashMap<(&'a str, &'a str), Current<'a>>,
    pub(super) claims: HashMap<&'a str, String>,
    pub(super) counters: HashMap<&'a str, i64>,
}

/// The rows of the change log that a batch adds, by column.
#[derive(Default)]
pub(super) struct Log<'a> {
    pub(super) revision: Vec<i64>,
    pub(super) together: Vec<i64>,
    pub(super) at: Vec<i64>,
    pub(super) actor: Vec<String>,
    pub(super) source: Vec<String>,
    pub(super) operation: Vec<String>,
    pub(super) request: Vec<String>,
    pub(super) kind: Vec<&'a str>,
    pub(super) id: Vec<&'a str>,
    pub(super) project: Vec<Option<&'a str>>,
    pub(super) action: Vec<i16>,
    pub(super) audited: Vec<bool>,
    pub(super) before_revision: Vec<Option<i64>>,
    /// Where this batch wrote the record before; `None`: what the database has.
    pub(super) before: Vec<Option<&'a str>>,
    pub(super) after: Vec<Option<&'a str>>,
}

/// What a batch will write.
#[derive(Default)]
pub(super) struct Plan<'a> {
    pub(super) results: Vec<Result<Accepted, Refusal>>,
    pub(super) log: Log<'a>,
    /// The records that were written, and at which revision they end; `None`: deleted.
    pub(super) records: HashMap<(&'a str, &'a str), Option<i64>>,
    /// New owners of claims; `None` frees.
    pub(super) claims: HashMap<&'a str, Option<&'a str>>,
    /// New values of counters.
    pub(super) counters: HashMap<&'a str, i64>,
}

impl Plan<'_> {
    /// Whether nothing is to be written.
    pub(super) fn is_empty(&self) -> bool {
        self.log.revision.is_empty() && self.claims.is_empty() && self.counters.is_empty()
    }
}

impl<'a> View<'a> {
    pub(super) fn decide(&mut self, batch: &[&'a RawTransaction]) -> Plan<'a> {
        let mut plan = Plan::default();
        for transaction in batch {
            let result = match self.check(transaction) {
                Ok((claims, counters)) => Ok(self.accept(&mut plan, transaction, claims, counters)),
                Err(refusal) => Err(refusal),
            };
            plan.results.push(result);
        }
        plan
    }

    /// What becomes of claims and counters, or what stands against the transaction.
    fn check(
        &self,
        transaction: &'a RawTransaction,
    ) -> Result<(HashMap<&'a str, Option<&'a str>>, HashMap<&'a str, i64>), Refusal> {
        let at = |kind: &str, id: &str| self.records.get(&(kind, id)).map(|record| record.revision);
        for expectation in &transaction.expectations {
            if at(expectation.kind, &expectation.id) != Some(expectation.revision.0) {
                return Err(Refusal::Conflict { kind: expectation.kind.to_owned(), id: expectation.id.clone() });
            }
        }
        for write in &transaction.writes {
            match (write.action, at(write.kind, &write.id)) {
                (Action::Created, None) => {}
                (Action::Created, Some(_)) => {
                    return Err(Refusal::Exists { kind: write.kind.to_owned(), id: write.id.clone() });
                }
                (_, Some(revision)) if revision == write.expected.0 => {}
                _ => return Err(Refusal::Conflict { kind: write.kind.to_owned(), id: write.id.clone() }),
            }
        }

        let mut claims: HashMap<&str, Option<&str>> = HashMap::new();
        for step in &transaction.claims {
            let (RawClaim::Take { key, owner: by } | RawClaim::Release { key, owner: by }) = step;
            let held = match claims.get(key.as_str()) {
                Some(planned) => *planned,
                None => self.claims.get(key.as_str()).map(String::as_str),
            };
            match (step, held) {
                (RawClaim::Take { .. }, Some(held)) if held != by => {
                    return Err(Refusal::Taken { key: key.clone(), owner: held.to_owned() });
                }
                (RawClaim::Take { .. }, None) => drop(claims.insert(key, Some(by))),
                (RawClaim::Release { .. }, Some(held)) if held == by => drop(claims.insert(key, None)),
                _ => {}
            }
        }

        let mut counters: HashMap<&str, i64> = HashMap::new();
        for step in &transaction.adds {
            let planned = counters.get(step.key.as_str()).or_else(|| self.counters.get(step.key.as_str()));
            let now = planned.copied().unwrap_or(0);
            match step.bound.step(now, step.amount) {
                Ok(new) => counters.insert(&step.key, new),
                Err(limit) => {
                    let (counter, amount) = (step.key.clone(), step.amount);
                    return Err(Refusal::Exceeded { counter, value: now, amount, limit });
                }
            };
        }
        Ok((claims, counters))
    }

    fn accept(
        &mut self,
        plan: &mut Plan<'a>,
        transaction: &'a RawTransaction,
        claims: HashMap<&'a str, Option<&'a str>>,
        counters: HashMap<&'a str, i64>,
    ) -> Accepted {
        let together = super::signed(self.newest + transaction.writes.len() as u64);
        let log = &mut plan.log;
        for write in &transaction.writes {
            self.newest += 1;
            let revision = super::signed(self.newest);
            let key = (write.kind, write.id.as_str());
            let before = match &write.data {
                Some(data) => self.records.insert(key, Current { revision: self.newest, data: Some(data) }),
                None => self.records.remove(&key),
            };
            plan.records.insert(key, write.data.as_ref().map(|_| revision));
            let author = &transaction.author;
            log.revision.push(revision);
            log.together.push(together);
            log.at.push(transaction.at.as_micros());
            log.actor.push(text(&author.actor));
            log.source.push(text(&author.source));
            log.operation.push(text(&author.operation));
            log.request.push(text(&author.request));
            log.kind.push(write.kind);
            log.id.push(&write.id);
            log.project.push(write.project.as_deref());
            log.action.push(i16::try_from(write.action.code()).unwrap_or_default());
            log.audited.push(write.audited);
            log.before_revision.push(before.map(|before| super::signed(before.revision)));
            log.before.push(before.and_then(|before| before.data));
            log.after.push(write.data.as_deref());
        }
        for (key, owner) in claims {
            match owner {
                Some(owner) => self.claims.insert(key, owner.to_owned()),
                None => self.claims.remove(key),
            };
            plan.claims.insert(key, owner);
        }
        for (key, value) in counters {
            self.counters.insert(key, value);
            plan.counters.insert(key, value);
        }
        Accepted { last: Revision(self.newest) }
    }
}

/// PostgreSQL's texts cannot hold a NUL, and what callers say of themselves is not checked for it.
fn text(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}
