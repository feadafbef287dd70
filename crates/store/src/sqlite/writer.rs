//! The thread that owns the writing connection.

use std::{
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
};

use nephos_types::{Error, ErrorKind, Result};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    connection::{Lock, open_writer},
    failed,
};
use crate::{backend::BoxFuture, error::closed};

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// What the thread has.
pub(super) struct State {
    pub(super) connection: Connection,
    /// The newest revision given out.
    pub(super) newest: u64,
    /// Set when a flush failed: what the disk holds is then unknown until it is read again.
    pub(super) broken: Option<Error>,
}

/// The handle to the thread; it ends when this is closed or dropped.
pub(super) struct Writer {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    ended: Mutex<Option<oneshot::Receiver<Result<()>>>>,
}

impl Writer {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let lock = Lock::take(path)?;
        let connection = open_writer(path)?;
        let newest: i64 = connection
            .query_row("SELECT newest FROM position", [], |row| row.get(0))
            .map_err(failed("The database cannot be read"))?;
        let mut state = State { connection, newest: newest.unsigned_abs(), broken: None };

        let (jobs, todo) = mpsc::channel::<Job>();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || {
                while let Ok(job) = todo.recv() {
                    job(&mut state);
                }
                let result = state.connection.close().map_err(|(_, error)| error);
                drop(lock);
                let _ = end.send(result.map_err(failed("The database cannot be closed")));
            })
            .map_err(|error| Error::internal("No thread can be started for the database", error))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), ended: Mutex::new(Some(ended)) })
    }

    /// Has work done on the thread, in the order of the calls.
    pub(super) fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'static, Result<T>> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |state| {
            let result = match &state.broken {
                Some(error) => Err(error.clone()),
                None => work(state),
            };
            let _ = answer.send(result);
        });
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        Box::pin(async move { if sent { answered.await.map_err(|_| closed())? } else { Err(closed()) } })
    }

    /// Waits until the thread has done what it was given and has let go of file and lock.
    pub(super) async fn close(&self) -> Result<()> {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        match ended {
            Some(ended) => ended.await.map_err(|_| Error::bug("The database thread was broken off"))?,
            None => Ok(()),
        }
    }
}

impl State {
    /// After a flush failed nobody knows what reached the disk, and a later flush may succeed without it. So nothing
    /// is written any more until the file has been read again.
    pub(super) fn give_up(&mut self, cause: rusqlite::Error) -> Error {
        let error = Error::new(ErrorKind::Unavailable, "storage_failed", "The disk that holds the database failed")
            .source(cause)
            .next("check the disk of the data folder, then restart", None);
        self.broken = Some(error.clone());
        error
    }
}
