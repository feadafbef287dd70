//! Everything out of a database, and everything into an empty one.

use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::mpsc;
use tokio_postgres::Client;

use super::{
    connection::failed,
    read::{CHANGE, SNAPSHOT, change, claim, counter, each, position, record},
    signed,
    target::Target,
};
use crate::{
    backend::Loaded,
    transfer::{Row, Rows, SendRows, Summary},
};

type Failure = tokio_postgres::Error;

/// The column after those of a change.
const AUDITED: usize = 14;

/// Sends all rows of one snapshot.
pub(crate) async fn export(target: &Target, send: &SendRows) -> Result<()> {
    let all = async {
        let (client, _driver) = target.connect(None).await?;
        client.batch_execute(SNAPSHOT).await?;
        send_all(&client, send).await
    };
    match all.await {
        Ok(()) => Ok(()),
        Err(error) => {
            let error = failed("The database cannot be read")(error);
            let _ = send.send(Err(error.clone())).await;
            Err(error)
        }
    }
}

async fn send_all(client: &Client, send: &SendRows) -> Result<(), Failure> {
    let changes = format!("SELECT {CHANGE}, audited FROM change ORDER BY revision");
    let _ = each(client, "SELECT newest, compacted, sequence FROM position", |row| position(row).map(Row::Live), send)
        .await?
        && each(
            client,
            "SELECT kind, id, revision, data FROM record ORDER BY kind, id",
            |row| record(row).map(Row::Live),
            send,
        )
        .await?
        && each(client, "SELECT key, owner FROM claim ORDER BY key", |row| claim(row).map(Row::Live), send).await?
        && each(client, "SELECT key, value FROM counter ORDER BY key", |row| counter(row).map(Row::Live), send).await?
        && each(client, &changes, |row| Ok(Row::Change { change: change(row)?, audited: row.try_get(AUDITED)? }), send)
            .await?;
    Ok(())
}

/// Puts rows into a database that holds nothing yet; all of them and as they were sent, or none.
pub(crate) async fn import(target: &Target, mut rows: Rows) -> Result<Summary> {
    let broken = failed("The database cannot be written");
    let (client, _driver) = target.connect(None).await.map_err(&broken)?;
    // Also against a control plane that starts on it meanwhile: until the end it waits for the lock.
    client.batch_execute("BEGIN; LOCK TABLE position IN ACCESS EXCLUSIVE MODE").await.map_err(&broken)?;
    let empty: bool = client
        .query_one(
            "SELECT newest = 0 AND sequence = 0 AND NOT EXISTS (SELECT FROM record) AND NOT EXISTS (SELECT FROM claim)
                    AND NOT EXISTS (SELECT FROM counter) AND NOT EXISTS (SELECT FROM change) FROM position",
            &[],
        )
        .await
        .and_then(|row| row.try_get(0))
        .map_err(&broken)?;
    if !empty {
        return Err(Error::new(ErrorKind::Conflict, "database_not_empty", "The database holds a cloud already")
            .detail(target.to_string())
            .next("make a new database", Some("createdb NAME".to_owned())));
    }
    let mut sent = Summary::default();
    while let Some(chunk) = rows.recv().await {
        let chunk = chunk?;
        sent.add(&chunk);
        insert(&client, &chunk).await.map_err(&broken)?;
    }

    let (send, mut back) = mpsc::channel(4);
    let (read, arrived) = futures_util::join!(
        async {
            let result = send_all(&client, &send).await;
            drop(send);
            result
        },
        async {
            let mut arrived = Summary::default();
            while let Some(Ok(chunk)) = back.recv().await {
                arrived.add(&chunk);
            }
            arrived
        }
    );
    read.map_err(&broken)?;
    sent.compare(arrived)?;
    client.batch_execute("COMMIT; ANALYZE record, change, claim, counter").await.map_err(&broken)?;
    Ok(sent)
}

async fn insert(client: &Client, chunk: &[Row]) -> Result<(), Failure> {
    let (mut kinds, mut ids, mut revisions, mut data) = (vec![], vec![], vec![], vec![]);
    let (mut claims, mut owners, mut counters, mut counts) = (vec![], vec![], vec![], vec![]);
    for row in chunk {
        match row {
            Row::Live(Loaded::Position { newest, compacted, .. }) => {
                let values = [signed(newest.0), signed(compacted.0)];
                client.execute("UPDATE position SET newest = $1, compacted = $2", &[&values[0], &values[1]]).await?;
            }
            Row::Live(Loaded::Record(record)) => {
                kinds.push(record.kind.as_str());
                ids.push(record.id.as_str());
                revisions.push(signed(record.revision.0));
                data.push(record.data.as_str());
            }
            Row::Live(Loaded::Claim { key, owner }) => {
                claims.push(key.as_str());
                owners.push(owner.as_str());
            }
            Row::Live(Loaded::Counter { key, value }) => {
                counters.push(key.as_str());
                counts.push(*value);
            }
            Row::Change { .. } => {}
        }
    }
    if !kinds.is_empty() {
        let sql = "INSERT INTO record (kind, id, revision, data)
                   SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[])";
        client.execute(sql, &[&kinds, &ids, &revisions, &data]).await?;
    }
    if !claims.is_empty() {
        let sql = "INSERT INTO claim (key, owner) SELECT * FROM unnest($1::text[], $2::text[])";
        client.execute(sql, &[&claims, &owners]).await?;
    }
    if !counters.is_empty() {
        let sql = "INSERT INTO counter (key, value) SELECT * FROM unnest($1::text[], $2::bigint[])";
        client.execute(sql, &[&counters, &counts]).await?;
    }
    insert_changes(client, chunk).await
}

async fn insert_changes(client: &Client, chunk: &[Row]) -> Result<(), Failure> {
    let changes: Vec<_> = chunk
        .iter()
        .filter_map(|row| match row {
            Row::Change { change, audited } => Some((change, *audited)),
            Row::Live(_) => None,
        })
        .collect();
    if changes.is_empty() {
        return Ok(());
    }
    let numbers = |value: fn(&crate::backend::RawChange) -> i64| -> Vec<i64> {
        changes.iter().map(|(change, _)| value(change)).collect()
    };
    let texts = |value: fn(&crate::backend::RawChange) -> Option<&str>| -> Vec<Option<&str>> {
        changes.iter().map(|(change, _)| value(change)).collect()
    };
    let actions: Vec<i16> =
        changes.iter().map(|(change, _)| i16::try_from(change.action.code()).unwrap_or_default()).collect();
    let audited: Vec<bool> = changes.iter().map(|(_, audited)| *audited).collect();
    let before: Vec<Option<i64>> =
        changes.iter().map(|(change, _)| change.before_revision.map(|revision| signed(revision.0))).collect();
    client
        .execute(
            "INSERT INTO change (revision, together, at, actor, source, operation, request, kind, id, project, action,
                                 audited, before_revision, before, after)
             SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[],
                                  $7::text[], $8::text[], $9::text[], $10::text[], $11::smallint[], $12::boolean[],
                                  $13::bigint[], $14::text[], $15::text[])",
            &[
                &numbers(|change| signed(change.revision.0)),
                &numbers(|change| signed(change.commit.0)),
                &numbers(|change| change.at.as_micros()),
                &texts(|change| Some(&change.author.actor)),
                &texts(|change| Some(&change.author.source)),
                &texts(|change| Some(&change.author.operation)),
                &texts(|change| Some(&change.author.request)),
                &texts(|change| Some(&change.kind)),
                &texts(|change| Some(&change.id)),
                &texts(|change| change.project.as_deref()),
                &actions,
                &audited,
                &before,
                &texts(|change| change.before.as_deref()),
                &texts(|change| change.after.as_deref()),
            ],
        )
        .await?;
    Ok(())
}
