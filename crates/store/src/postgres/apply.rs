//! Writing a batch in two round trips: one locks and reads, one writes and commits.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::{join, try_join};
use tokio_postgres::{Client, Error, Row, Statement};

use super::{
    plan::{Current, Plan, View},
    signed,
    turn::Turn,
    writer::Session,
};
use crate::backend::{Applied, RawClaim, RawTransaction, Sequence};

/// How an attempt ended.
pub(super) enum Attempt {
    Done(Applied),
    /// Certainly nothing was written.
    Nothing(Error),
    /// Likewise, and nothing ever will be, for another version has taken over.
    OutOfTurn(nephos_types::Error),
    /// The commit was sent; whether it happened must be found out.
    Unknown {
        applied: Applied,
        sequence: Sequence,
        error: Error,
    },
}

/// What is prepared once for each connection.
pub(super) struct Statements {
    lock: Statement,
    records: Statement,
    claims: Statement,
    counters: Statement,
    log: Statement,
    save: Statement,
    delete: Statement,
    claim: Statement,
    free: Statement,
    count: Statement,
    uncount: Statement,
    advance: Statement,
    batch: Statement,
    notify: Statement,
}

impl Statements {
    pub(super) async fn prepare(client: &Client) -> Result<Self, Error> {
        let (lock, records, claims, counters, log, save, delete, claim, free, count, uncount, advance, batch, notify) = try_join!(
            client.prepare(
                "SELECT newest, sequence, forms FROM position FOR UPDATE",
            ),
            client.prepare(
                "SELECT u.place, r.revision FROM unnest($1::int[], $2::text[], $3::text[]) AS u (place, kind, id)
             JOIN record r ON r.kind = u.kind COLLATE \"C\" AND r.id = u.id COLLATE \"C\"",
            ),
            client.prepare(
                "SELECT u.place, c.owner FROM unnest($1::int[], $2::text[]) AS u (place, key)
             JOIN claim c ON c.key = u.key COLLATE \"C\"",
            ),
            client.prepare(
                "SELECT u.place, c.value FROM unnest($1::int[], $2::text[]) AS u (place, key)
             JOIN counter c ON c.key = u.key COLLATE \"C\"",
            ),
            // What was before is what the database still has, unless this batch itself wrote it.
            client.prepare(
                "INSERT INTO change (revision, together, at, actor, source, operation, request, kind, id, project, action,
                                 audited, before_revision, before, after)
             SELECT u.revision, u.together, u.at, u.actor, u.source, u.operation, u.request, u.kind, u.id, u.project,
                    u.action, u.audited, u.before_revision,
                    CASE WHEN u.audited AND u.before_revision IS NOT NULL THEN coalesce(u.before, r.data) END, u.after
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[],
                         $8::text[], $9::text[], $10::text[], $11::smallint[], $12::boolean[], $13::bigint[],
                         $14::text[], $15::text[])
                  AS u (revision, together, at, actor, source, operation, request, kind, id, project, action, audited,
                        before_revision, before, after)
             LEFT JOIN record r ON u.audited AND u.before_revision IS NOT NULL AND u.before IS NULL
                               AND r.kind = u.kind COLLATE \"C\" AND r.id = u.id COLLATE \"C\"",
            ),
            client.prepare(
                "INSERT INTO record (kind, id, revision, data)
             SELECT c.kind, c.id, c.revision, c.after
             FROM unnest($1::bigint[]) AS u (revision) JOIN change c ON c.revision = u.revision
             ON CONFLICT (kind, id) DO UPDATE SET revision = excluded.revision, data = excluded.data",
            ),
            client.prepare(
                "DELETE FROM record r USING unnest($1::text[], $2::text[]) AS u (kind, id)
             WHERE r.kind = u.kind COLLATE \"C\" AND r.id = u.id COLLATE \"C\"",
            ),
            client.prepare(
                "INSERT INTO claim (key, owner) SELECT key, owner FROM unnest($1::text[], $2::text[]) AS u (key, owner)
             WHERE owner IS NOT NULL
             ON CONFLICT (key) DO UPDATE SET owner = excluded.owner",
            ),
            client.prepare(
                "DELETE FROM claim c USING unnest($1::text[], $2::text[]) AS u (key, owner)
             WHERE u.owner IS NULL AND c.key = u.key COLLATE \"C\"",
            ),
            client.prepare(
                "INSERT INTO counter (key, value) SELECT key, value FROM unnest($1::text[], $2::bigint[]) AS u (key, value)
             WHERE value <> 0
             ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            ),
            client.prepare(
                "DELETE FROM counter c USING unnest($1::text[], $2::bigint[]) AS u (key, value)
             WHERE u.value = 0 AND c.key = u.key COLLATE \"C\"",
            ),
            client.prepare(
                "UPDATE position SET newest = $1, sequence = $2, forms = coalesce($3, forms)",
            ),
            client.prepare(
                "INSERT INTO batch (sequence, writer, low, high, claims, owners, counters, counts)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            ),
            client.prepare(
                "SELECT pg_notify('nephos', $1)",
            ),
        )?;
        Ok(Self {
            lock,
            records,
            claims,
            counters,
            log,
            save,
            delete,
            claim,
            free,
            count,
            uncount,
            advance,
            batch,
            notify,
        })
    }
}

/// What a batch names, each once.
#[derive(Default)]
struct Names<'a> {
    records: BTreeSet<(&'a str, &'a str)>,
    claims: BTreeSet<&'a str>,
    counters: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    fn of(batch: &[&'a RawTransaction]) -> Self {
        let mut names = Self::default();
        for transaction in batch {
            names.records.extend(transaction.expectations.iter().map(|e| (e.kind, e.id.as_str())));
            names.records.extend(transaction.writes.iter().map(|write| (write.kind, write.id.as_str())));
            names.claims.extend(transaction.claims.iter().map(|step| match step {
                RawClaim::Take { key, .. } | RawClaim::Release { key, .. } => key.as_str(),
            }));
            names.counters.extend(transaction.adds.iter().map(|add| add.key.as_str()));
        }
        names
    }
}

impl Session {
    /// Decides and writes a batch.
    pub(super) async fn apply(&self, name: &str, turn: Option<&Turn>, batch: &[Arc<RawTransaction>]) -> Attempt {
        let batch: Vec<&RawTransaction> = batch.iter().map(AsRef::as_ref).collect();
        let (mut view, follows, last) = match self.begin(&batch).await {
            Ok(begun) => begun,
            Err(error) => return Attempt::Nothing(error),
        };
        if let Some(refused) = turn.and_then(|turn| turn.check(last.as_deref()).err()) {
            return match self.client.batch_execute("ROLLBACK").await {
                Ok(()) => Attempt::OutOfTurn(refused),
                Err(error) => Attempt::Nothing(error),
            };
        }
        let low = view.newest;
        let mut plan = view.decide(&batch);
        let results = std::mem::take(&mut plan.results);
        if plan.is_empty() {
            // Nothing was written, so nothing can be lost with the answer.
            return match self.client.batch_execute("ROLLBACK").await {
                Ok(()) => Attempt::Done(Applied { results, follows, sequence: None }),
                Err(error) => Attempt::Nothing(error),
            };
        }
        let sequence = follows.next();
        let applied = Applied { results, follows, sequence: Some(sequence) };
        let forms = turn.map(Turn::forms);
        let (written, committed) =
            join!(self.write(name, forms, &plan, sequence, low, view.newest), self.client.batch_execute("COMMIT"));
        if let (Some(turn), Ok(()), Ok(())) = (turn, &written, &committed) {
            turn.begin();
        }
        match (written, committed) {
            // A commit after a failed statement undoes everything, and says so without an error.
            (Err(error), Ok(())) => Attempt::Nothing(error),
            (Ok(()), Ok(())) => Attempt::Done(applied),
            (_, Err(error)) => Attempt::Unknown { applied, sequence, error },
        }
    }

    /// Locks the position and reads what the batch names, and the forms of who wrote last.
    async fn begin<'a>(&self, batch: &[&'a RawTransaction]) -> Result<(View<'a>, Sequence, Option<String>), Error> {
        let names = Names::of(batch);
        let records: Vec<_> = names.records.into_iter().collect();
        let claims: Vec<_> = names.claims.into_iter().collect();
        let counters: Vec<_> = names.counters.into_iter().collect();
        let kinds: Vec<&str> = records.iter().map(|(kind, _)| *kind).collect();
        let ids: Vec<&str> = records.iter().map(|(_, id)| *id).collect();
        let (s, client) = (&self.statements, &self.client);
        // Sent at once, answered in order: what follows the lock sees what was committed before it was had.
        let (begun, position, found_records, found_claims, found_counters) = join!(
            client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED"),
            client.query_one(&s.lock, &[]),
            when(!records.is_empty(), async || client.query(&s.records, &[&places(&records), &kinds, &ids]).await),
            when(!claims.is_empty(), async || client.query(&s.claims, &[&places(&claims), &claims]).await),
            when(!counters.is_empty(), async || client.query(&s.counters, &[&places(&counters), &counters]).await),
        );
        begun?;
        let position = position?;
        let sequence = Sequence(position.try_get::<_, i64>(1)?.unsigned_abs());
        let mut view = View {
            newest: position.try_get::<_, i64>(0)?.unsigned_abs(),
            records: HashMap::with_capacity(records.len()),
            claims: HashMap::with_capacity(claims.len()),
            counters: HashMap::with_capacity(counters.len()),
        };
        for row in found_records? {
            if let Some(key) = place(&row, &records)? {
                let revision = row.try_get::<_, i64>(1)?.unsigned_abs();
                view.records.insert(*key, Current { revision, data: None });
            }
        }
        for row in found_claims? {
            if let Some(key) = place(&row, &claims)? {
                view.claims.insert(key, row.try_get(1)?);
            }
        }
        for row in found_counters? {
            if let Some(key) = place(&row, &counters)? {
                view.counters.insert(key, row.try_get(1)?);
            }
        }
        Ok((view, sequence, position.try_get(2)?))
    }

    /// Sends all that a plan writes, without waiting in between.
    async fn write(
        &self,
        name: &str,
        forms: Option<&str>,
        plan: &Plan<'_>,
        sequence: Sequence,
        low: u64,
        high: u64,
    ) -> Result<(), Error> {
        let (s, client, log) = (&self.statements, &self.client, &plan.log);
        let saved: Vec<i64> = plan.records.values().copied().flatten().collect();
        let deleted = || plan.records.iter().filter(|(_, revision)| revision.is_none()).map(|(key, _)| *key);
        let (deleted_kinds, deleted_ids): (Vec<&str>, Vec<&str>) = deleted().unzip();
        let (claims, owners): (Vec<&str>, Vec<Option<&str>>) = plan.claims.iter().map(|(k, o)| (*k, *o)).unzip();
        let (counters, counts): (Vec<&str>, Vec<i64>) = plan.counters.iter().map(|(k, v)| (*k, *v)).unzip();
        let (low, high, at) = (signed(low), signed(high), signed(sequence.0));
        let told = at.to_string();
        let results = join!(
            when(!log.revision.is_empty(), async || {
                let columns: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[
                    &log.revision,
                    &log.together,
                    &log.at,
                    &log.actor,
                    &log.source,
                    &log.operation,
                    &log.request,
                    &log.kind,
                    &log.id,
                    &log.project,
                    &log.action,
                    &log.audited,
                    &log.before_revision,
                    &log.before,
                    &log.after,
                ];
                client.execute(&s.log, columns).await
            }),
            when(!saved.is_empty(), async || client.execute(&s.save, &[&saved]).await),
            when(!deleted_ids.is_empty(), async || client.execute(&s.delete, &[&deleted_kinds, &deleted_ids]).await),
            when(!claims.is_empty(), async || client.execute(&s.claim, &[&claims, &owners]).await),
            when(owners.contains(&None), async || client.execute(&s.free, &[&claims, &owners]).await),
            when(!counters.is_empty(), async || client.execute(&s.count, &[&counters, &counts]).await),
            when(counts.contains(&0), async || client.execute(&s.uncount, &[&counters, &counts]).await),
            when(true, async || client.execute(&s.advance, &[&high, &at, &forms]).await),
            when(true, async || {
                client.execute(&s.batch, &[&at, &name, &low, &high, &claims, &owners, &counters, &counts]).await
            }),
            when(true, async || client.execute(&s.notify, &[&told]).await),
        );
        let (r0, r1, r2, r3, r4, r5, r6, r7, r8, r9) = results;
        // The first that failed tells why; those after it only that the transaction is lost.
        [r0, r1, r2, r3, r4, r5, r6, r7, r8, r9].into_iter().try_for_each(|result| result.map(drop))
    }

    /// Whether the batch with this number is there and of this process. Waits until a session that may still be about
    /// to commit it has ended, for that one holds the lock.
    pub(super) async fn was_written(&self, name: &str, sequence: Sequence) -> Result<bool, Error> {
        let (s, client) = (&self.statements, &self.client);
        client.batch_execute("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
        client.query_one(&s.lock, &[]).await?;
        let row = client.query_opt("SELECT writer FROM batch WHERE sequence = $1", &[&signed(sequence.0)]).await?;
        client.batch_execute("ROLLBACK").await?;
        row.map_or(Ok(false), |row| Ok(row.try_get::<_, &str>(0)? == name))
    }
}

/// The answer to what is sent, or that of nothing.
async fn when<T: Default>(wanted: bool, send: impl AsyncFnOnce() -> Result<T, Error>) -> Result<T, Error> {
    if wanted { send().await } else { Ok(T::default()) }
}

/// The number of each name, by which an answer refers to it.
fn places<T>(names: &[T]) -> Vec<i32> {
    (0..).take(names.len()).collect()
}

/// Which name a row is about.
fn place<'a, T>(row: &Row, names: &'a [T]) -> Result<Option<&'a T>, Error> {
    let place: i32 = row.try_get(0)?;
    Ok(usize::try_from(place).ok().and_then(|place| names.get(place)))
}
