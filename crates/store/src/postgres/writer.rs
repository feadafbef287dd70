//! The connection that writes: kept, lost, made again, and what a lost answer was.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nephos_types::{Error, RequestId, Result};
use tokio::{sync::Mutex, time::Instant};
use tokio_postgres::Client;

use super::{
    apply::{Attempt, Statements},
    connection::{BY_KEY, failed, is_passing},
    target::Target,
    turn::Turn,
};
use crate::{
    backend::{Applied, RawTransaction, Sequence, Trim, Trimmed},
    error::closed,
};

/// How long a server that does not answer is waited for when it is certain that nothing was written.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
/// The first and the longest pause between two attempts to connect.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(300));

/// A connection with what was prepared on it.
pub(super) struct Session {
    pub(super) client: Client,
    pub(super) statements: Statements,
}

/// Writes one batch after another.
pub(super) struct Writer {
    target: Arc<Target>,
    /// Marks this process's batches.
    name: String,
    turn: Option<Turn>,
    session: Mutex<Option<Session>>,
    hurry: AtomicBool,
    closed: AtomicBool,
}

/// A batch whose commit was sent and not answered.
struct Unanswered {
    applied: Applied,
    sequence: Sequence,
}

impl Writer {
    pub(super) fn new(target: Arc<Target>, turn: Option<Turn>) -> Self {
        Self {
            target,
            turn,
            name: RequestId::new().to_string(),
            session: Mutex::new(None),
            hurry: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        }
    }

    pub(super) fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
    }

    pub(super) async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.hurry();
        *self.session.lock().await = None;
    }

    pub(super) async fn apply(&self, batch: Vec<Arc<RawTransaction>>) -> Result<Applied> {
        // Taken out while it is used: a call that is broken off leaves no session in the middle of something.
        let mut kept = self.session.lock().await;
        let mut unanswered: Option<Unanswered> = None;
        let mut trouble = Trouble::new(&self.hurry);
        loop {
            if self.closed.load(Ordering::Acquire) && unanswered.is_none() {
                return Err(closed());
            }
            let session = match kept.take() {
                Some(session) => session,
                None => match self.connect().await {
                    Ok(session) => session,
                    Err(error) => {
                        trouble.pass(error, unanswered.is_some()).await?;
                        continue;
                    }
                },
            };
            if let Some(question) = unanswered.take() {
                match session.was_written(&self.name, question.sequence).await {
                    Ok(true) => {
                        if let Some(turn) = &self.turn {
                            turn.begin();
                        }
                        *kept = Some(session);
                        return Ok(question.applied);
                    }
                    Ok(false) => {}
                    Err(error) => {
                        unanswered = Some(question);
                        trouble.pass(error, true).await?;
                        continue;
                    }
                }
            }
            match session.apply(&self.name, self.turn.as_ref(), &batch).await {
                Attempt::Done(applied) => {
                    *kept = Some(session);
                    return Ok(applied);
                }
                Attempt::Nothing(error) => trouble.pass(error, false).await?,
                Attempt::OutOfTurn(error) => return Err(error),
                Attempt::Unknown { applied, sequence, error } => {
                    tracing::warn!(%error, "the answer to a commit was lost");
                    unanswered = Some(Unanswered { applied, sequence });
                }
            }
        }
    }

    pub(super) async fn trim(&self, trim: Trim) -> Result<Trimmed> {
        let mut kept = self.session.lock().await;
        let mut trouble = Trouble::new(&self.hurry);
        loop {
            if self.closed.load(Ordering::Acquire) {
                return Err(closed());
            }
            let attempt = match kept.take() {
                Some(session) => Ok(session),
                None => self.connect().await,
            };
            match attempt {
                Ok(mut session) => match session.trim(trim).await {
                    Ok(trimmed) => {
                        *kept = Some(session);
                        return Ok(trimmed);
                    }
                    Err(error) => trouble.pass(error, false).await?,
                },
                Err(error) => trouble.pass(error, false).await?,
            }
        }
    }

    async fn connect(&self) -> Result<Session, tokio_postgres::Error> {
        let (client, _driver) = self.target.connect(None).await?;
        client.batch_execute(BY_KEY).await?;
        let statements = Statements::prepare(&client).await?;
        Ok(Session { client, statements })
    }
}

/// Patience with a server that does not answer.
pub(super) struct Trouble<'a> {
    hurry: &'a AtomicBool,
    since: Instant,
    pause: Duration,
}

impl<'a> Trouble<'a> {
    pub(super) fn new(hurry: &'a AtomicBool) -> Self {
        Self { hurry, since: Instant::now(), pause: PAUSE.0 }
    }

    /// Waits a little; an error if there is no sense in another attempt. With something `at_stake` there always is one
    /// until the backend is closed, for nobody knows yet whether it was written.
    pub(super) async fn pass(&mut self, error: tokio_postgres::Error, at_stake: bool) -> Result<()> {
        let error = (is_passing(&error), failed("The database cannot be used")(error));
        let enough = self.hurry.load(Ordering::Acquire) || self.since.elapsed() > PATIENCE;
        match error {
            (_, error) if at_stake && self.hurry.load(Ordering::Acquire) => Err(Error::new(
                nephos_types::ErrorKind::Unavailable,
                "outcome_unknown",
                "The database went away while this was being written",
            )
            .source(error)
            .next("look whether it happened when the database is back", None)),
            (true, error) if enough && !at_stake => Err(error),
            (false, error) if !at_stake => Err(error),
            (_, error) => {
                tracing::debug!(error = %error.chain(), "waiting for PostgreSQL");
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSE.1);
                Ok(())
            }
        }
    }
}
