//! One connection: made, settled, driven, and its errors as ours.

use std::future::poll_fn;

use nephos_types::{Error, ErrorKind};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    task::JoinHandle,
};
use tokio_postgres::{AsyncMessage, Client, NoTls, error::SqlState};

use super::target::Target;

/// What every session is told. A transaction whose process stands still must not stop the others for long; a server
/// that was set up to answer before the disk has it is told not to.
const SETTLE: &str = "
    SET search_path = nephos;
    SET synchronous_commit = on;
    SET idle_in_transaction_session_timeout = '10s';
    SET client_min_messages = warning;
    SET jit = off";

/// What sessions are told that read and write by key alone: a plan must not depend on when the server last counted.
pub(super) const BY_KEY: &str = "
    SET lock_timeout = '30s';
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
    SET plan_cache_mode = force_generic_plan";

impl Target {
    /// A new connection. If somebody listens, the numbers that are notified go there.
    pub(super) async fn connect(
        &self,
        heard: Option<watch::Sender<u64>>,
    ) -> Result<(Client, JoinHandle<()>), tokio_postgres::Error> {
        let (client, driver) = match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                (client, tokio::spawn(drive(connection, heard)))
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                (client, tokio::spawn(drive(connection, heard)))
            }
        };
        client.batch_execute(SETTLE).await?;
        Ok((client, driver))
    }
}

async fn drive<S, T>(mut connection: tokio_postgres::Connection<S, T>, heard: Option<watch::Sender<u64>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
        match message {
            Ok(AsyncMessage::Notification(notification)) => {
                if let (Some(heard), Ok(number)) = (&heard, notification.payload().parse::<u64>()) {
                    heard.send_modify(|newest| *newest = number.max(*newest));
                }
            }
            Ok(AsyncMessage::Notice(notice)) => tracing::debug!(%notice, "PostgreSQL says"),
            Ok(_) => {}
            // Whoever waits for an answer is told by the client.
            Err(error) => {
                tracing::debug!(%error, "a connection to PostgreSQL ended");
                break;
            }
        }
    }
}

/// Whether the same may succeed on another connection a little later.
pub(super) fn is_passing(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else {
        // No answer of the server: the connection broke or never came about. What cannot be sent or read at all is
        // a defect that stays.
        return error.is_closed()
            || std::error::Error::source(error).is_some_and(<dyn std::error::Error + 'static>::is::<std::io::Error>)
            || error.to_string().contains("connecting")
            || error.to_string().contains("communicating")
            || error.to_string().contains("timeout");
    };
    matches!(
        *code,
        SqlState::ADMIN_SHUTDOWN
            | SqlState::CRASH_SHUTDOWN
            | SqlState::CANNOT_CONNECT_NOW
            | SqlState::TOO_MANY_CONNECTIONS
            | SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
            | SqlState::LOCK_NOT_AVAILABLE
            | SqlState::T_R_DEADLOCK_DETECTED
            | SqlState::T_R_SERIALIZATION_FAILURE
            | SqlState::READ_ONLY_SQL_TRANSACTION
    ) || code.code().starts_with("08")
}

/// An error of the server or of the way to it as one of ours.
pub(super) fn failed(what: &'static str) -> impl Fn(tokio_postgres::Error) -> Error {
    move |error| match error.code() {
        Some(&SqlState::DISK_FULL) => {
            Error::new(ErrorKind::Unavailable, "disk_full", "The disk that holds the database is full")
                .source(error)
                .next("free some space on the disk of the PostgreSQL server", None)
        }
        Some(
            &SqlState::INVALID_PASSWORD
            | &SqlState::INVALID_AUTHORIZATION_SPECIFICATION
            | &SqlState::INVALID_CATALOG_NAME
            | &SqlState::INSUFFICIENT_PRIVILEGE,
        ) => Error::new(ErrorKind::Invalid, "database_refused", "PostgreSQL refuses this user or database")
            .source(error)
            .next("make the database, owned by the user that the URL names, and check the password", None),
        _ if is_passing(&error) => {
            Error::new(ErrorKind::Unavailable, "database_unreachable", "The PostgreSQL server does not answer")
                .source(error)
                .next("check that it runs and can be reached; nothing is lost meanwhile", None)
        }
        _ => Error::internal(what, error),
    }
}
