//! Forgetting old entries of the change log, a few at a time.

use tokio_postgres::Error;

use super::{revision, signed, writer::Session};
use crate::backend::{Trim, Trimmed};

/// How many batches are kept for processes that stood still.
const KEEP_BATCHES: i64 = 100_000;

impl Session {
    pub(super) async fn trim(&mut self, trim: Trim) -> Result<Trimmed, Error> {
        let sql = self.client.transaction().await?;
        let row = sql.query_one("SELECT newest, compacted, sequence FROM position FOR UPDATE", &[]).await?;
        let (newest, compacted, sequence): (i64, i64, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let limit = i64::try_from(trim.rows).unwrap_or(i64::MAX);
        // Times follow revisions but for small steps of the clock, so the oldest rows decide, not an index.
        let oldest = sql
            .query(
                "DELETE FROM change WHERE revision IN (
                     SELECT revision FROM (SELECT revision, at FROM change ORDER BY revision LIMIT $3) AS oldest
                     WHERE revision <= $1 OR at < $2)
                 RETURNING revision",
                &[&signed(trim.audit.0), &trim.before.as_micros(), &limit],
            )
            .await?;
        let mut rows = oldest.len();
        let mut floor = compacted;
        for row in &oldest {
            floor = floor.max(row.try_get(0)?);
        }

        // Below the floor nothing is left that is not audited, so only what lies between is looked at.
        let watch = signed(trim.watch.0).min(newest);
        if watch > floor && rows < trim.rows {
            let end = sql
                .query_opt(
                    "SELECT revision FROM change WHERE revision > $1 AND revision <= $2
                     ORDER BY revision LIMIT 1 OFFSET $3",
                    &[&floor, &watch, &(limit - 1)],
                )
                .await?;
            let end: Option<i64> = end.map(|row| row.try_get(0)).transpose()?;
            let end_of_range = end.unwrap_or(watch);
            sql.execute(
                "DELETE FROM change WHERE revision > $1 AND revision <= $2 AND NOT audited",
                &[&floor, &end_of_range],
            )
            .await?;
            floor = end_of_range;
            // A full range means that there may be more, however little of it went.
            rows = if end.is_some() { trim.rows } else { rows };
        }
        if floor != compacted {
            sql.execute("UPDATE position SET compacted = $1", &[&floor]).await?;
        }
        sql.execute(
            "DELETE FROM batch WHERE sequence IN (
                 SELECT sequence FROM batch WHERE sequence <= $1 ORDER BY sequence LIMIT $2)",
            &[&(sequence - KEEP_BATCHES), &limit],
        )
        .await?;
        sql.commit().await?;
        Ok(Trimmed { rows, compacted: revision(floor) })
    }
}
