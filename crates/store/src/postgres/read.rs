//! Reading: everything at the start, the change log, what other processes wrote.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use futures_util::{StreamExt, TryStreamExt, join, stream};
use nephos_types::{Result, Timestamp};
use tokio::sync::{Semaphore, mpsc};
use tokio_postgres::{Client, Row, SimpleQueryMessage, types::ToSql};

use super::{
    connection::{failed, is_passing},
    revision, signed,
    target::Target,
    writer::Trouble,
};
use crate::{
    Author, Revision,
    backend::{BoxFuture, BoxStream, ChangeFilter, Loaded, RawBatch, RawChange, RawRecord, Sequence},
    change::Action,
    error::closed,
    follow::fell_behind,
};

/// At most this many connections read at a time.
const READERS: usize = 4;
/// Items in one chunk of a load.
const CHUNK: usize = 1024;
/// Batches that are followed at once.
const BATCHES: i64 = 64;

type Failure = tokio_postgres::Error;

/// Connections for reading, opened when needed and kept for the next.
pub(super) struct Readers {
    target: Arc<Target>,
    idle: Mutex<Vec<Client>>,
    permits: Arc<Semaphore>,
    hurry: AtomicBool,
}

impl Readers {
    pub(super) fn new(target: Arc<Target>) -> Self {
        let permits = Arc::new(Semaphore::new(READERS));
        Self { target, idle: Mutex::default(), permits, hurry: AtomicBool::new(false) }
    }

    pub(super) fn target(&self) -> Arc<Target> {
        self.target.clone()
    }

    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
    }

    pub(super) fn close(&self) {
        self.hurry();
        self.permits.close();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Runs a read, again on another connection if the one it had broke.
    async fn run<T>(
        &self,
        what: &'static str,
        work: impl for<'c> Fn(&'c Client) -> BoxFuture<'c, Result<T, Failure>>,
    ) -> Result<T> {
        let _permit = self.permits.acquire().await.map_err(|_| closed())?;
        let mut trouble = Trouble::new(&self.hurry);
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let client = match idle {
                Some(client) if !client.is_closed() => Ok(client),
                _ => self.target.connect(None).await.map(|(client, _driver)| client),
            };
            let result = match client {
                Ok(client) => match work(&client).await {
                    Ok(value) => {
                        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(client);
                        return Ok(value);
                    }
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match result {
                Err(error) if is_passing(&error) => trouble.pass(error, false).await?,
                Err(error) => return Err(failed(what)(error)),
                Ok(value) => return Ok(value),
            }
        }
    }

    /// Everything there is, from one snapshot on a connection of its own.
    pub(super) fn load(&self) -> BoxStream<Result<Vec<Loaded>>> {
        let (send, receive) = mpsc::channel(4);
        let target = self.target.clone();
        tokio::spawn(async move {
            if let Err(error) = send_all(&target, &send).await {
                let _ = send.send(Err(failed("The database cannot be read")(error))).await;
            }
        });
        Box::pin(stream::unfold(receive, |mut receive| async { receive.recv().await.map(|chunk| (chunk, receive)) }))
    }

    pub(super) async fn changes(&self, filter: &ChangeFilter) -> Result<Vec<RawChange>> {
        let filter = Arc::new(filter.clone());
        self.run("The change log cannot be read", move |client| Box::pin(select(client, filter.clone()))).await
    }

    /// Some batches after one.
    pub(super) async fn batches(&self, after: Sequence) -> Result<Vec<RawBatch>> {
        let from = signed(after.0);
        let (batches, changes) =
            self.run("What other processes wrote cannot be read", move |client| Box::pin(follow(client, from))).await?;
        assemble(after, batches, changes)
    }

    pub(super) async fn newest(&self) -> Result<Sequence> {
        self.run("The database cannot be read", |client| Box::pin(newest(client))).await
    }

    pub(super) async fn check(&self) -> Result<Vec<String>> {
        self.run("The database cannot be checked", |client| Box::pin(super::check::problems(client))).await
    }
}

async fn newest(client: &Client) -> Result<Sequence, Failure> {
    // Not prepared: that would be a round trip more.
    for message in client.simple_query("SELECT sequence FROM position").await? {
        if let SimpleQueryMessage::Row(row) = message
            && let Some(number) = row.try_get(0)?.and_then(|text| text.parse().ok())
        {
            return Ok(Sequence(number));
        }
    }
    Ok(Sequence::default())
}

/// Rows of `batch` after one, and the changes in them.
async fn follow(client: &Client, from: i64) -> Result<(Vec<Batch>, VecDeque<RawChange>), Failure> {
    let wanted: &[&(dyn ToSql + Sync)] = &[&from, &BATCHES];
    let (batches, changes) = join!(
        client.query(
            "SELECT sequence, low, high, claims, owners, counters, counts FROM batch
             WHERE sequence > $1 ORDER BY sequence LIMIT $2",
            wanted,
        ),
        // What was before is in memory.
        client.query(
            "WITH wanted AS (SELECT low, high FROM batch WHERE sequence > $1 ORDER BY sequence LIMIT $2)
             SELECT revision, together, at, actor, source, operation, request, kind, id, project, action,
                    before_revision, NULL::text, after
             FROM change WHERE revision > (SELECT min(low) FROM wanted)
                           AND revision <= (SELECT max(high) FROM wanted)
             ORDER BY revision",
            wanted,
        ),
    );
    let batches: Vec<Batch> = batches?.iter().map(Batch::read).collect::<Result<_, _>>()?;
    let changes: VecDeque<RawChange> = changes?.iter().map(change).collect::<Result<_, _>>()?;
    Ok((batches, changes))
}

/// A row of `batch`.
struct Batch {
    sequence: Sequence,
    low: u64,
    high: u64,
    claims: Vec<(String, Option<String>)>,
    counters: Vec<(String, i64)>,
}

impl Batch {
    fn read(row: &Row) -> Result<Self, Failure> {
        let (claims, owners): (Vec<String>, Vec<Option<String>>) = (row.try_get(3)?, row.try_get(4)?);
        let (counters, counts): (Vec<String>, Vec<i64>) = (row.try_get(5)?, row.try_get(6)?);
        Ok(Self {
            sequence: Sequence(row.try_get::<_, i64>(0)?.unsigned_abs()),
            low: row.try_get::<_, i64>(1)?.unsigned_abs(),
            high: row.try_get::<_, i64>(2)?.unsigned_abs(),
            claims: claims.into_iter().zip(owners).collect(),
            counters: counters.into_iter().zip(counts).collect(),
        })
    }
}

/// Puts batches and their changes together; an error if something of either is no longer there.
fn assemble(after: Sequence, batches: Vec<Batch>, mut changes: VecDeque<RawChange>) -> Result<Vec<RawBatch>> {
    let mut all = Vec::with_capacity(batches.len());
    let mut due = after.next();
    for batch in batches {
        if batch.sequence != due {
            return Err(fell_behind());
        }
        due = due.next();
        let mut own = Vec::with_capacity(usize::try_from(batch.high.saturating_sub(batch.low)).unwrap_or_default());
        for revision in batch.low.saturating_add(1)..=batch.high {
            match changes.pop_front() {
                Some(change) if change.revision == Revision(revision) => own.push(change),
                _ => return Err(fell_behind()),
            }
        }
        let Batch { sequence, claims, counters, .. } = batch;
        all.push(RawBatch { sequence, changes: own, claims, counters });
    }
    Ok(all)
}

/// The columns of a [`RawChange`], in the order of [`change`].
pub(super) const CHANGE: &str = "revision, together, at, actor, source, operation, request, kind, id, project, action, \
                                 before_revision, before, after";

pub(super) fn change(row: &Row) -> Result<RawChange, Failure> {
    Ok(RawChange {
        revision: revision(row.try_get(0)?),
        commit: revision(row.try_get(1)?),
        at: Timestamp::from_micros(row.try_get(2)?),
        author: Author {
            actor: row.try_get(3)?,
            source: row.try_get(4)?,
            operation: row.try_get(5)?,
            request: row.try_get(6)?,
        },
        kind: row.try_get(7)?,
        id: row.try_get(8)?,
        project: row.try_get(9)?,
        action: Action::from_code(row.try_get::<_, i16>(10)?.into()),
        before_revision: row.try_get::<_, Option<i64>>(11)?.map(revision),
        before: row.try_get(12)?,
        after: row.try_get(13)?,
    })
}

pub(super) fn position(row: &Row) -> Result<Loaded, Failure> {
    let sequence = Sequence(row.try_get::<_, i64>(2)?.unsigned_abs());
    Ok(Loaded::Position { newest: revision(row.try_get(0)?), compacted: revision(row.try_get(1)?), sequence })
}

pub(super) fn record(row: &Row) -> Result<Loaded, Failure> {
    Ok(Loaded::Record(RawRecord {
        kind: row.try_get(0)?,
        id: row.try_get(1)?,
        revision: revision(row.try_get(2)?),
        data: row.try_get(3)?,
    }))
}

pub(super) fn claim(row: &Row) -> Result<Loaded, Failure> {
    Ok(Loaded::Claim { key: row.try_get(0)?, owner: row.try_get(1)? })
}

pub(super) fn counter(row: &Row) -> Result<Loaded, Failure> {
    Ok(Loaded::Counter { key: row.try_get(0)?, value: row.try_get(1)? })
}

/// A part of the change log.
async fn select(client: &Client, filter: Arc<ChangeFilter>) -> Result<Vec<RawChange>, Failure> {
    let mut sql = format!("SELECT {CHANGE} FROM change WHERE revision > $1");
    let (after, before) = (signed(filter.after.0), filter.before.map(|before| signed(before.0)));
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&after];
    if let Some(before) = &before {
        values.push(before);
        sql.push_str(&format!(" AND revision < ${}", values.len()));
    }
    for (column, value) in
        [("kind", &filter.kind), ("id", &filter.id), ("project", &filter.project), ("actor", &filter.actor)]
    {
        if let Some(value) = value {
            values.push(value);
            sql.push_str(&format!(" AND {column} = ${}", values.len()));
        }
    }
    values.push(&limit);
    let order = if filter.newest_first { "DESC" } else { "ASC" };
    sql.push_str(&format!(" ORDER BY revision {order} LIMIT ${}", values.len()));
    client.query(&sql, &values).await?.iter().map(change).collect()
}

/// Begins a transaction in which everything is seen as of one moment.
pub(super) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

async fn send_all(target: &Target, send: &mpsc::Sender<Result<Vec<Loaded>>>) -> Result<(), Failure> {
    let (client, _driver) = target.connect(None).await?;
    client.batch_execute(SNAPSHOT).await?;
    let _ = each(&client, "SELECT newest, compacted, sequence FROM position", position, send).await?
        && each(&client, "SELECT kind, id, revision, data FROM record", record, send).await?
        && each(&client, "SELECT key, owner FROM claim", claim, send).await?
        && each(&client, "SELECT key, value FROM counter", counter, send).await?;
    Ok(())
}

/// Sends what a query answers in chunks; whether anybody still wants more.
pub(super) async fn each<T>(
    client: &Client,
    sql: &str,
    item: fn(&Row) -> Result<T, Failure>,
    send: &mpsc::Sender<Result<Vec<T>>>,
) -> Result<bool, Failure> {
    let rows = client.query_raw(sql, std::iter::empty::<&str>()).await?;
    let mut chunks = pin!(rows.map(|row| row.and_then(|row| item(&row))).try_chunks(CHUNK));
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| error.1)?;
        if send.send(Ok(chunk)).await.is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}
