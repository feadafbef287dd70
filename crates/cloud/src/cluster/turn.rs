//! Whose turn it is: processes of one version work together, those of another wait until these have ended.
//!
//! An older program loses what it does not know when it writes a record that a newer one wrote, and ends where it cannot
//! read one. So versions follow each other. That two never write is seen to by the store ([`Turn`]); here it is found out
//! whether those who wrote last have ended: whoever's record does not change for longer than it takes the others to
//! give it up.

use std::{collections::HashMap, time::Duration};

use nephos_store::{Kind, Kinds, Postgres, Revision, Turn};
use nephos_types::{Error, ErrorKind, Result};
use ring::digest;
use serde_json::Value;

use super::Controller;

/// Looks without a new beat after which a process counts as dead; its beats are three apart.
const SILENT: u32 = 15;

/// What was found in the database.
#[derive(Debug)]
pub enum Succession {
    /// It is this process's turn.
    Now(Turn),
    /// These are still at work, in words.
    After(Vec<String>),
}

/// Looks at a database that others of another version may be working on, again and again.
pub struct Successor {
    database: String,
    forms: String,
    take_over: bool,
    /// Of each process its latest beat, and for how many looks there was no other.
    seen: HashMap<String, (Revision, u32)>,
}

impl Successor {
    /// With `take_over` nobody is waited for: those of another version end when this one first writes.
    #[must_use]
    pub fn new(database: &str, take_over: bool) -> Self {
        let forms = forms(&crate::control::kinds());
        Self { database: database.to_owned(), forms, take_over, seen: HashMap::new() }
    }

    /// How long to wait between two looks.
    pub const EVERY: Duration = Duration::from_secs(1);

    /// Looks once.
    ///
    /// # Errors
    /// When the database cannot be reached, or holds what only a newer version can read.
    pub async fn look(&mut self) -> Result<Succession> {
        let Some(found) = Postgres::look(&self.database, Controller::NAME).await? else {
            return Ok(Succession::Now(Turn::new(self.forms.as_str(), None)));
        };
        let turn = Turn::new(self.forms.as_str(), found.forms.clone());
        if self.take_over || found.forms.as_ref() == Some(&self.forms) {
            return Ok(Succession::Now(turn));
        }
        if let Some(newer) = found.forms.as_deref().and_then(number).filter(|last| Some(*last) > number(&self.forms)) {
            let (major, minor, patch) = newer;
            return Err(Error::new(ErrorKind::Unsupported, "newer_data", "The database was written by a newer Nephos")
                .detail(format!("by {major}.{minor}.{patch}; this is {}", env!("CARGO_PKG_VERSION")))
                .next("start that version, or a later one", None)
                .next("restore a backup of this version's time", None));
        }
        let mut living = vec![];
        let mut seen = HashMap::new();
        for record in found.records {
            let silent = match self.seen.get(&record.id) {
                Some((beat, silent)) if *beat == record.revision => silent.saturating_add(1),
                _ => 0,
            };
            if silent < SILENT {
                living.push(describe(&record.data));
            }
            seen.insert(record.id, (record.revision, silent));
        }
        self.seen = seen;
        if living.is_empty() { Ok(Succession::Now(turn)) } else { Ok(Succession::After(living)) }
    }
}

/// The version in forms.
fn number(forms: &str) -> Option<(u64, u64, u64)> {
    let mut parts = forms.split('-').next()?.splitn(3, '.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

/// A process in words, out of what may be any version's record.
fn describe(data: &str) -> String {
    let record: Value = serde_json::from_str(data).unwrap_or_default();
    let field = |name: &str| record["body"][name].as_str().unwrap_or("unknown").to_owned();
    format!("{} (version {})", field("node_address"), field("version"))
}

/// What a program of this version writes, in a word: two that differ in anything have different ones.
fn forms(kinds: &Kinds) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(&Postgres::format().to_be_bytes());
    for (name, version) in kinds.versions() {
        hash.update(format!("{name} {version}\n").as_bytes());
    }
    let hash = hex::encode(hash.finish());
    format!("{}-{}", env!("CARGO_PKG_VERSION"), hash.get(..12).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use nephos_store::{Author, Draft, Store, Transaction};
    use nephos_testkit_postgres::shared;
    use nephos_types::ControllerId;

    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(number("0.10.0-ab") > number("0.9.12-cd"));
        assert_eq!((number("1.2.3"), number("old"), number("1.2-x")), (Some((1, 2, 3)), None, None));
        assert!(number(&forms(&crate::control::kinds())).is_some());
    }

    #[tokio::test]
    async fn one_waits_for_those_who_beat_and_an_older_one_is_refused() {
        let url = shared().database();
        let mut successor = Successor::new(&url, false);
        assert!(matches!(successor.look().await.unwrap(), Succession::Now(_)), "nothing is there yet");
        let backend = Postgres::open_in_turn(&url, Turn::new("0.0.1-x", None)).await.unwrap();
        let store = Store::open(backend, Kinds::new().with::<Controller>()).await.unwrap();
        let author = || Transaction::new(Author::new("test"));
        let id = ControllerId::new();
        let (name, node_address) = (id.to_string(), "old.example:1".to_owned());
        let body = Controller { name, node_address, version: "0.0.1".to_owned(), beats: 1 };
        store.commit(author().create(Draft::new(id, body))).await.unwrap();
        for look in 0..SILENT {
            if look == 3 {
                let beat = store.get::<Controller>(id).unwrap().edit().modify(|body| body.beats += 1);
                store.commit(author().save(beat)).await.unwrap();
            }
            let Succession::After(others) = successor.look().await.unwrap() else { panic!("it beats at {look}") };
            assert_eq!(others, ["old.example:1 (version 0.0.1)"]);
        }
        let mut looks = 0;
        while let Succession::After(_) = successor.look().await.unwrap() {
            looks += 1;
        }
        assert_eq!(looks, 3, "silent since the fourth look");
        assert!(matches!(Successor::new(&url, true).look().await.unwrap(), Succession::Now(_)));

        let newer = Postgres::open_in_turn(&url, Turn::new("999.0.0-y", Some("0.0.1-x".to_owned()))).await.unwrap();
        let store = Store::open(newer, Kinds::new().with::<Controller>()).await.unwrap();
        let record = store.get::<Controller>(id).unwrap();
        store.commit(author().delete(&record)).await.unwrap();
        assert_eq!(successor.look().await.unwrap_err().code, "newer_data");
    }
}
