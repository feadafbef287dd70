//! Whether memory and disk agree: what tests and `nephos` check after crashes, restores and upgrades.

use std::collections::BTreeMap;

use crate::{Revision, backend::Loaded, image::Image};

/// What [`crate::Store::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// How many records there are.
    pub records: usize,
    /// How many claims there are.
    pub claims: usize,
    /// What is wrong, in words; empty when all is well.
    pub problems: Vec<String>,
    /// Claims whose owner is an id of a registered kind without a record. Right only for what is about to be created.
    pub ownerless_claims: Vec<(String, String)>,
}

impl Report {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.problems.is_empty()
    }
}

/// A comparison under way.
pub(crate) struct Comparison<'a> {
    image: &'a Image,
    newest: Revision,
    report: Report,
    per_kind: BTreeMap<&'static str, usize>,
    counters: usize,
}

impl<'a> Comparison<'a> {
    pub(crate) fn new(image: &'a Image, newest: Revision) -> Self {
        Self { image, newest, report: Report::default(), per_kind: BTreeMap::new(), counters: 0 }
    }

    /// One chunk of what is on disk.
    pub(crate) fn add(&mut self, chunk: Vec<Loaded>) {
        for item in chunk {
            match item {
                Loaded::Position { newest, .. } if newest != self.newest => {
                    self.problem(format!("newest revision: memory {}, disk {newest}", self.newest));
                }
                Loaded::Position { .. } => {}
                Loaded::Record(raw) => match self.image.table_by_name(&raw.kind) {
                    Some(table) => {
                        self.report.records += 1;
                        *self.per_kind.entry(table.name()).or_default() += 1;
                        if raw.revision > self.newest {
                            self.problem(format!(
                                "{} {}: revision {} is in the future",
                                raw.kind, raw.id, raw.revision
                            ));
                        }
                        self.report.problems.extend(table.compare(&raw));
                    }
                    None => self.problem(format!("{} {}: unknown kind", raw.kind, raw.id)),
                },
                Loaded::Claim { key, owner } => {
                    self.report.claims += 1;
                    let held = self.image.owner(&key);
                    if held.as_ref() != Some(&owner) {
                        self.problem(format!("claim {key}: memory {held:?}, disk {owner}"));
                    }
                    if self.names_nothing(&owner) {
                        self.report.ownerless_claims.push((key, owner));
                    }
                }
                Loaded::Counter { key, value } => {
                    self.counters += 1;
                    let held = self.image.counter(&key);
                    if held != value {
                        self.problem(format!("counter {key}: memory {held}, disk {value}"));
                    }
                }
            }
        }
    }

    /// What is in memory only.
    pub(crate) fn finish(mut self) -> Report {
        for table in self.image.tables() {
            let disk = self.per_kind.get(table.name()).copied().unwrap_or(0);
            if table.len() != disk {
                let memory = table.len();
                self.report.problems.push(format!("{}: {memory} records in memory, {disk} on disk", table.name()));
            }
            let (listed, due) = table.index_entries();
            if listed != due {
                self.report.problems.push(format!("{}: {listed} index entries, {due} expected", table.name()));
            }
        }
        let claims = self.image.claims("", None, usize::MAX).len();
        if claims != self.report.claims {
            let disk = self.report.claims;
            self.problem(format!("{claims} claims in memory, {disk} on disk"));
        }
        let counters = self.image.counters("", None, usize::MAX).len();
        if counters != self.counters {
            let disk = self.counters;
            self.problem(format!("{counters} counters in memory, {disk} on disk"));
        }
        self.report
    }

    fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    /// Whether the text has the form of a registered kind's id and no record of such a kind has it.
    fn names_nothing(&self, owner: &str) -> bool {
        let mut is_id = false;
        for table in self.image.tables() {
            if owner.strip_prefix(table.id_prefix()).is_some_and(|rest| rest.starts_with('-')) {
                if table.contains(owner) {
                    return false;
                }
                is_id = true;
            }
        }
        is_id
    }
}
