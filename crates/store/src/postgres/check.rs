//! What is wrong with the tables themselves, in words.

use tokio_postgres::{Client, Error};

const CHECKS: &[&str] = &[
    "SELECT 'record ' || r.id || ' has revision ' || r.revision || ', its last change ' || max(c.revision)
     FROM record r JOIN change c ON c.kind = r.kind AND c.id = r.id
     GROUP BY r.kind, r.id, r.revision HAVING max(c.revision) <> r.revision LIMIT 100",
    "SELECT 'change log: ' || count(c.revision) || ' entries after revision ' || p.compacted || ', newest ' || p.newest
     FROM position p LEFT JOIN change c ON c.revision > p.compacted
     GROUP BY p.compacted, p.newest HAVING count(c.revision) <> p.newest - p.compacted",
    "SELECT 'change log: transaction ' || together || ' is incomplete' FROM change, position WHERE together > newest
     UNION SELECT 'record ' || id || ' is newer than the database' FROM record, position WHERE revision > newest
     LIMIT 100",
    "SELECT 'batches: ' || count(*) || ' are kept from ' || min(b.sequence) || ' to ' || max(b.sequence)
            || ', the newest is ' || p.sequence
     FROM batch b, position p
     GROUP BY p.sequence HAVING max(b.sequence) <> p.sequence OR count(*) <> max(b.sequence) - min(b.sequence) + 1",
    "SELECT 'batch ' || sequence || ' does not follow the one before it'
     FROM (SELECT sequence, low, lag(high) OVER (ORDER BY sequence) AS before FROM batch) AS b
     WHERE before <> low LIMIT 100",
];

pub(super) async fn problems(client: &Client) -> Result<Vec<String>, Error> {
    let mut problems = vec![];
    client.batch_execute(super::read::SNAPSHOT).await?;
    for sql in CHECKS {
        for row in client.query(*sql, &[]).await? {
            problems.push(row.try_get(0)?);
        }
    }
    client.batch_execute("ROLLBACK").await?;
    Ok(problems)
}
