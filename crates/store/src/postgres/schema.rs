//! The tables, and how a database comes to have them.

use nephos_types::{Error, ErrorKind, Result};

use super::{connection::failed, target::Target, turn::Turn};

/// What brings the schema from format `i` to `i + 1`. Never edit one that was released.
const UPGRADES: &[&str] = &[
    r#"
    CREATE TABLE position (
        one smallint PRIMARY KEY CHECK (one = 1),
        newest bigint NOT NULL,
        compacted bigint NOT NULL,
        sequence bigint NOT NULL
    ) WITH (fillfactor = 20);
    INSERT INTO position (one, newest, compacted, sequence) VALUES (1, 0, 0, 0);
    CREATE TABLE record (
        kind text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        revision bigint NOT NULL,
        data text NOT NULL,
        PRIMARY KEY (kind, id)
    ) WITH (fillfactor = 80);
    CREATE TABLE claim (key text COLLATE "C" PRIMARY KEY, owner text NOT NULL);
    CREATE TABLE counter (key text COLLATE "C" PRIMARY KEY, value bigint NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE change (
        revision bigint PRIMARY KEY,
        together bigint NOT NULL,
        at bigint NOT NULL,
        actor text NOT NULL,
        source text NOT NULL,
        operation text NOT NULL,
        request text NOT NULL,
        kind text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        project text COLLATE "C",
        action smallint NOT NULL,
        audited boolean NOT NULL,
        before_revision bigint,
        before text,
        after text
    );
    CREATE INDEX change_by_id ON change (id, revision);
    CREATE INDEX change_by_project ON change (project, revision) WHERE project IS NOT NULL;
    CREATE TABLE batch (
        sequence bigint PRIMARY KEY,
        writer text NOT NULL,
        -- Its revisions are those after `low` up to `high`.
        low bigint NOT NULL,
        high bigint NOT NULL,
        claims text[] NOT NULL,
        -- One for each claim; null where it is free.
        owners text[] NOT NULL,
        counters text[] NOT NULL,
        -- One for each counter.
        counts bigint[] NOT NULL
    );
"#,
    // What programs may write: see `turn`.
    "ALTER TABLE position ADD COLUMN forms text",
];

/// Any number that all versions share: one process at a time prepares.
const LOCK: i64 = 0x4e45_5048_4f53;

/// Since which format the position says who writes.
const FORMS_SINCE: usize = 2;

/// The refusal of what a newer version made; otherwise how many upgrades it has.
pub(super) fn known(version: i32) -> Result<usize> {
    usize::try_from(version).ok().filter(|version| *version <= UPGRADES.len()).ok_or_else(|| {
        Error::new(ErrorKind::Unsupported, "newer_data", "The database was written by a newer Nephos")
            .detail(format!("it has format {version}, this program knows up to {}", UPGRADES.len()))
            .next("start the version that wrote it, or a later one", None)
    })
}

/// Whether a database of this format says who writes it.
pub(super) fn has_forms(format: usize) -> bool {
    format >= FORMS_SINCE
}

/// The format of a database that this program makes.
pub(super) fn newest() -> usize {
    UPGRADES.len()
}

/// Makes or upgrades the schema; refuses one that a newer version made, and to upgrade one under programs whose turn it
/// still is.
pub(super) async fn prepare(target: &Target, turn: Option<&Turn>) -> Result<()> {
    let broken = failed("The database cannot be prepared");
    let (mut client, _driver) = target.connect(None).await.map_err(&broken)?;
    let transaction = client.transaction().await.map_err(&broken)?;
    transaction.execute("SELECT pg_advisory_xact_lock($1)", &[&LOCK]).await.map_err(&broken)?;
    let exists: bool = transaction
        .query_one("SELECT to_regclass('nephos.format') IS NOT NULL", &[])
        .await
        .and_then(|row| row.try_get(0))
        .map_err(&broken)?;
    if !exists {
        // The owner of a database may; so may whoever was given the schema.
        transaction
            .batch_execute(
                "CREATE SCHEMA IF NOT EXISTS nephos;
                 CREATE TABLE format (one smallint PRIMARY KEY CHECK (one = 1), version integer NOT NULL);
                 INSERT INTO format (one, version) VALUES (1, 0)",
            )
            .await
            .map_err(&broken)?;
    }
    let row = transaction.query_one("SELECT version FROM format", &[]).await.map_err(&broken)?;
    let version: i32 = row.try_get(0).map_err(&broken)?;
    let from = known(version)?;
    if let Some(turn) = turn.filter(|_| has_forms(from) && from < UPGRADES.len()) {
        let row = transaction.query_one("SELECT forms FROM position FOR UPDATE", &[]).await.map_err(&broken)?;
        turn.check(row.try_get::<_, Option<String>>(0).map_err(&broken)?.as_deref())?;
    }
    for (format, statements) in (1_i32..).zip(UPGRADES).skip(from) {
        tracing::info!(format, "upgrading the format of the database");
        transaction.batch_execute(statements).await.map_err(&broken)?;
        transaction.execute("UPDATE format SET version = $1", &[&format]).await.map_err(&broken)?;
    }
    if let Some(turn) = turn.filter(|_| from < UPGRADES.len()) {
        // Whoever writes in the old way ends now.
        transaction.execute("UPDATE position SET forms = $1", &[&turn.forms()]).await.map_err(&broken)?;
    }
    transaction.commit().await.map_err(&broken)?;
    for (setting, danger) in [("fsync", "off"), ("full_page_writes", "off")] {
        let row = client.query_one("SELECT current_setting($1)", &[&setting]).await.map_err(&broken)?;
        if row.try_get::<_, String>(0).map_err(&broken)? == danger {
            tracing::warn!(setting, "the PostgreSQL server may lose what was acknowledged when its machine fails");
        }
    }
    Ok(())
}
