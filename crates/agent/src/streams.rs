//! Streams that somebody at the control plane waits for: consoles and their logs. The node dials each one once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nephos_driver::ComputeDriver;
use nephos_node_api::{Client, Duplex, StreamPurpose, StreamRequest};
use nephos_types::{Error, ErrorKind, Result, StreamId};
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Streams open at the same time.
const MOST: usize = 256;
/// The longest end of a console log that is sent.
const LONGEST_LOG: u64 = 16 << 20;
/// A console on which nothing moves for this long is closed; an abandoned connection may not show otherwise.
const IDLE: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Streams {
    driver: Arc<dyn ComputeDriver>,
    client: Client,
    dialled: Mutex<HashSet<StreamId>>,
    open: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Streams {
    pub(crate) fn new(driver: Arc<dyn ComputeDriver>, client: Client, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { driver, client, dialled: Mutex::default(), open: Arc::new(Semaphore::new(MOST)), shutdown })
    }

    /// Dials those that have not been dialled.
    pub(crate) fn apply(self: &Arc<Self>, requests: Vec<StreamRequest>) {
        let fresh: Vec<StreamRequest> = {
            let mut dialled = self.dialled.lock().unwrap_or_else(PoisonError::into_inner);
            let wanted: HashSet<StreamId> = requests.iter().map(|request| request.id).collect();
            dialled.retain(|id| wanted.contains(id));
            requests.into_iter().filter(|request| dialled.insert(request.id)).collect()
        };
        for request in fresh {
            let streams = self.clone();
            tokio::spawn(async move {
                let id = request.id;
                let shutdown = streams.shutdown.clone();
                tokio::select! {
                    served = streams.serve(request) => if let Err(error) = served {
                        tracing::debug!(stream = %id, %error, "a stream ended");
                    },
                    () = shutdown.cancelled() => {}
                }
            });
        }
    }

    async fn serve(&self, request: StreamRequest) -> Result<()> {
        let Ok(_slot) = self.open.clone().try_acquire_owned() else {
            let busy = Error::new(ErrorKind::Unavailable, "too_many_streams", "The node has too many streams open")
                .detail(format!("at most {MOST}"));
            return self.client.refuse_stream(request.id, &busy).await;
        };
        match request.purpose {
            StreamPurpose::Console { server } => match self.driver.console(server).await {
                Ok(console) => {
                    let far = self.client.open_stream(request.id).await?;
                    join(console, far).await;
                    Ok(())
                }
                Err(error) => self.client.refuse_stream(request.id, &error).await,
            },
            StreamPurpose::ConsoleLog { server, max } => {
                let max = usize::try_from(max.min(LONGEST_LOG)).unwrap_or(usize::MAX);
                match self.driver.console_log(server, max).await {
                    Ok(log) => {
                        let mut far = self.client.open_stream(request.id).await?;
                        let sent = async {
                            far.write_all(&log).await?;
                            far.shutdown().await
                        };
                        sent.await.map_err(|error| Error::internal("A console log broke off", error))
                    }
                    Err(error) => self.client.refuse_stream(request.id, &error).await,
                }
            }
        }
    }
}

/// Copies both ways until either side ends.
async fn join(console: impl Duplex, far: impl Duplex) {
    let (mut console_out, mut console_in) = tokio::io::split(console);
    let (mut far_out, mut far_in) = tokio::io::split(far);
    tokio::select! {
        _ = tokio::io::copy(&mut console_out, &mut far_in) => {}
        _ = tokio::io::copy(&mut far_out, &mut console_in) => {}
        () = tokio::time::sleep(IDLE) => {}
    }
    let _ = far_in.shutdown().await;
}
