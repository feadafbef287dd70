//! Forgetting old entries of the change log, a few at a time.

use nephos_types::Result;
use rusqlite::{OptionalExtension, params};

use super::{apply::signed, failed, writer::State};
use crate::{
    Revision,
    backend::{Trim, Trimmed},
};

impl State {
    pub(super) fn trim(&mut self, trim: Trim) -> Result<Trimmed> {
        let broken = failed("The change log cannot be trimmed");
        let sql = self.connection.transaction().map_err(&broken)?;
        let forget = |trim: Trim| -> rusqlite::Result<(usize, i64)> {
            let compacted: i64 = sql.query_row("SELECT compacted FROM position", [], |row| row.get(0))?;
            let limit = i64::try_from(trim.rows).unwrap_or(i64::MAX);
            // Times follow revisions but for small steps of the clock, so the oldest rows decide, not an index.
            let mut old = sql.prepare_cached(
                "DELETE FROM change WHERE revision IN (
                     SELECT revision FROM (SELECT revision, at FROM change ORDER BY revision LIMIT ?3)
                     WHERE revision <= ?1 OR at < ?2)
                 RETURNING revision",
            )?;
            let oldest: Vec<i64> = old
                .query_map(params![signed(trim.audit.0), trim.before.as_micros(), limit], |row| row.get(0))?
                .collect::<rusqlite::Result<_>>()?;
            let mut rows = oldest.len();
            let mut floor = oldest.into_iter().max().unwrap_or(0).max(compacted);

            // Below the floor nothing is left that is not audited, so only what lies between is looked at.
            let watch = signed(trim.watch.0).min(signed(self.newest));
            if watch > floor && rows < trim.rows {
                let end: Option<i64> = sql
                    .prepare_cached(
                        "SELECT revision FROM change WHERE revision > ?1 AND revision <= ?2
                         ORDER BY revision LIMIT 1 OFFSET ?3",
                    )?
                    .query_row(params![floor, watch, limit - 1], |row| row.get(0))
                    .optional()?;
                let end_of_range = end.unwrap_or(watch);
                sql.prepare_cached("DELETE FROM change WHERE revision > ?1 AND revision <= ?2 AND audited = 0")?
                    .execute([floor, end_of_range])?;
                floor = end_of_range;
                // A full range means that there may be more, however little of it went.
                rows = if end.is_some() { trim.rows } else { rows };
            }
            if floor != compacted {
                sql.execute("UPDATE position SET compacted = ?1", [floor])?;
            }
            Ok((rows, floor))
        };
        let (rows, compacted) = forget(trim).map_err(&broken)?;
        match sql.commit() {
            Ok(()) => Ok(Trimmed { rows, compacted: Revision(compacted.unsigned_abs()) }),
            Err(error) => Err(self.not_committed(error)),
        }
    }
}
