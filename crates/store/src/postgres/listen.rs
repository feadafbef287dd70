//! Hearing that another process has written something.
//!
//! A notification that is lost costs a delay and nothing else, for [`Listener::news`] ends now and then by itself.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, task::AbortHandle};

use super::target::Target;
use crate::backend::Sequence;

/// How long a lost notification may delay what it would have told.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Between attempts to connect.
const AGAIN: Duration = Duration::from_millis(500);

/// A connection that listens, made again when it breaks.
pub(super) struct Listener {
    heard: watch::Receiver<u64>,
    task: AbortHandle,
}

impl Listener {
    pub(super) fn start(target: Arc<Target>) -> Self {
        let (tell, heard) = watch::channel(0);
        let task = tokio::spawn(async move {
            loop {
                match listen(&target, &tell).await {
                    Ok(()) => tracing::debug!("the listening connection to PostgreSQL ended"),
                    Err(error) => tracing::debug!(%error, "PostgreSQL cannot be listened to"),
                }
                tokio::time::sleep(AGAIN).await;
            }
        });
        Self { heard, task: task.abort_handle() }
    }

    pub(super) async fn news(&self, after: Sequence) {
        let mut heard = self.heard.clone();
        let _ = tokio::time::timeout(LOOK_EVERY, async {
            if heard.wait_for(|newest| *newest > after.0).await.is_err() {
                // The listener was stopped: nothing will be heard.
                std::future::pending::<()>().await;
            }
        })
        .await;
    }

    pub(super) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Until the connection ends.
async fn listen(target: &Target, tell: &watch::Sender<u64>) -> Result<(), tokio_postgres::Error> {
    let (client, driver) = target.connect(Some(tell.clone())).await?;
    client.batch_execute("LISTEN nephos").await?;
    let _ = driver.await;
    drop(client);
    Ok(())
}
