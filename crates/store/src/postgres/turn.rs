//! Whose turn it is to write: programs of different versions that share a database follow each other, and never write
//! at the same time.
//!
//! What a program may write (its version, the kinds of records and their stored forms) is one text, its *forms*, and the
//! position, which every batch locks, holds those of who wrote last. A program of other forms may take over from
//! exactly those that it saw; from then on the batches of all who have them are refused, and those processes end. So it
//! is only a matter of courtesy to wait until they have ended by themselves: being wrong about that does no harm.

use std::sync::atomic::{AtomicBool, Ordering};

use nephos_types::{Error, ErrorKind, Result};

use super::{connection::failed, schema, target::Target};
use crate::{Revision, backend::RawRecord};

/// A program's right to write.
#[derive(Debug)]
pub struct Turn {
    forms: String,
    /// From whom it may take over, until it has.
    after: Option<String>,
    begun: AtomicBool,
}

impl Turn {
    /// Of a program with these forms, after those that [`crate::Postgres::look`] saw.
    #[must_use]
    pub fn new(forms: impl Into<String>, after: Option<String>) -> Self {
        Self { forms: forms.into(), after, begun: AtomicBool::new(false) }
    }

    pub(super) fn forms(&self) -> &str {
        &self.forms
    }

    /// Whether the program may write where somebody with these forms wrote last.
    pub(super) fn check(&self, last: Option<&str>) -> Result<()> {
        if last == Some(self.forms.as_str()) {
            return Ok(());
        }
        let may_begin = !self.begun.load(Ordering::Acquire) && self.after.as_deref() == last;
        if may_begin { Ok(()) } else { Err(superseded(last)) }
    }

    /// It has written: from now on nobody else may have.
    pub(super) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }
}

/// The refusal of who wrote before another version took over.
fn superseded(by: Option<&str>) -> Error {
    Error::new(ErrorKind::Precondition, SUPERSEDED, "Another version of Nephos has taken over the database")
        .detail(by.map_or_else(|| "it does not say which".to_owned(), |by| format!("its forms are {by}")))
        .next("start the version that the others run", None)
}

/// The code of that.
pub(crate) const SUPERSEDED: &str = "superseded";

/// What a program finds in a database before it opens it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupied {
    /// The forms of who wrote last, if that is known.
    pub forms: Option<String>,
    /// The records of a kind.
    pub records: Vec<RawRecord>,
}

/// Looks at a database without changing anything. `None`: it holds nothing yet.
pub(super) async fn look(target: &Target, kind: &str) -> Result<Option<Occupied>> {
    let broken = failed("The database cannot be read");
    let (client, _driver) = target.connect(None).await.map_err(&broken)?;
    let found = async {
        let row = client.query_one("SELECT to_regclass('nephos.format') IS NOT NULL", &[]).await?;
        if !row.try_get(0)? {
            return Ok(None);
        }
        client.query_one("SELECT version FROM format", &[]).await?.try_get::<_, i32>(0).map(Some)
    };
    let Some(format) = found.await.map_err(&broken)? else { return Ok(None) };
    let format = schema::known(format)?;
    if format == 0 {
        return Ok(None);
    }
    let seen = async {
        let forms = match schema::has_forms(format) {
            true => client.query_one("SELECT forms FROM position", &[]).await?.try_get(0)?,
            false => None,
        };
        let rows = client.query("SELECT id, revision, data FROM record WHERE kind = $1 ORDER BY id", &[&kind]).await?;
        let records = rows.iter().map(|row| {
            let revision = Revision(row.try_get::<_, i64>(1)?.unsigned_abs());
            Ok(RawRecord { kind: kind.to_owned(), id: row.try_get(0)?, revision, data: row.try_get(2)? })
        });
        Ok(Occupied { forms, records: records.collect::<Result<_, tokio_postgres::Error>>()? })
    };
    seen.await.map(Some).map_err(&broken)
}
