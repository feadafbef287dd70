//! Streams that somebody at the control plane waits for: consoles and their logs, screens, questions to the inside of
//! servers, what servers have used. The node dials each one once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nephos_driver::{Answer, Question};
use nephos_node_api::{Client, Duplex, FetchReport, ImageSource, StreamPurpose, StreamRequest, UsageQuery, frame};
use nephos_types::{Error, ErrorKind, Result, ServerId, StreamId};
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use crate::servers::Servers;

/// Streams open at the same time.
const MOST: usize = 256;
/// The longest end of a console log that is sent.
const LONGEST_LOG: u64 = 16 << 20;
/// A console on which nothing moves for this long is closed; an abandoned connection may not show otherwise.
const IDLE: Duration = Duration::from_secs(24 * 3600);
/// How long the control plane may take to send a question. One may hold a piece of a file that comes, or goes, slowly.
const QUESTION_WITHIN: Duration = Duration::from_secs(600);
/// How long a guest may take to answer, whatever it is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(3700);

pub(crate) struct Streams {
    servers: Arc<Servers>,
    client: Client,
    dialled: Mutex<HashSet<StreamId>>,
    open: Arc<Semaphore>,
    shutdown: CancellationToken,
}

impl Streams {
    pub(crate) fn new(servers: Arc<Servers>, client: Client, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Self { servers, client, dialled: Mutex::default(), open: Arc::new(Semaphore::new(MOST)), shutdown })
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
        let client = request.at.as_deref().map_or_else(|| self.client.clone(), |at| self.client.to(at));
        let waiting = Waiting { stream: request.id, client };
        let Ok(_slot) = self.open.clone().try_acquire_owned() else {
            let busy = Error::new(ErrorKind::Unavailable, "too_many_streams", "The node has too many streams open")
                .detail(format!("at most {MOST}"));
            return waiting.refuse(&busy).await;
        };
        let opened = match request.purpose {
            StreamPurpose::Console { server } => self.console(&waiting, server).await,
            StreamPurpose::Display { server } => self.display(&waiting, server).await,
            StreamPurpose::ConsoleLog { server, max } => {
                let max = usize::try_from(max.min(LONGEST_LOG)).unwrap_or(usize::MAX);
                let log = async { self.servers.driver_of(server)?.console_log(server, max).await };
                self.send(&waiting, log.await).await
            }
            StreamPurpose::Screenshot { server } => {
                let picture = async { self.servers.driver_of(server)?.screenshot(server).await };
                self.send(&waiting, picture.await).await
            }
            StreamPurpose::FetchImage { image } => self.fetch(&waiting, &image).await,
            StreamPurpose::Ask { server } => self.ask(&waiting, server).await,
            StreamPurpose::Usage { server, query } => self.usage(&waiting, server, query).await,
            StreamPurpose::Unknown => Err(Ended::Refused(
                Error::new(ErrorKind::Unsupported, "agent_too_old", "The agent is too old for what is asked of it")
                    .next("make it the control plane's program", Some("nephos node upgrade".to_owned())),
            )),
        };
        match opened {
            Ok(()) => Ok(()),
            Err(Ended::Refused(error)) => waiting.refuse(&error).await,
            Err(Ended::Broken(error)) => Err(error),
        }
    }

    async fn console(&self, waiting: &Waiting, server: ServerId) -> Result<(), Ended> {
        let driver = self.servers.driver_of(server).map_err(Ended::Refused)?;
        let console = driver.console(server).await.map_err(Ended::Refused)?;
        join(console, waiting.dial().await?).await;
        Ok(())
    }

    async fn display(&self, waiting: &Waiting, server: ServerId) -> Result<(), Ended> {
        let driver = self.servers.driver_of(server).map_err(Ended::Refused)?;
        let display = driver.display(server).await.map_err(Ended::Refused)?;
        join(display, waiting.dial().await?).await;
        Ok(())
    }

    /// Sends bytes, or says why there are none.
    async fn send(&self, waiting: &Waiting, bytes: Result<Vec<u8>>) -> Result<(), Ended> {
        let bytes = bytes.map_err(Ended::Refused)?;
        let mut far = waiting.dial().await?;
        let sent = async {
            far.write_all(&bytes).await?;
            far.shutdown().await
        };
        sent.await.map_err(|error| Ended::Broken(Error::internal("A stream broke off", error)))
    }

    /// Sends what a server has used.
    async fn usage(&self, waiting: &Waiting, server: ServerId, query: UsageQuery) -> Result<(), Ended> {
        let samples = self.servers.usage.read(server, query).await.map_err(Ended::Refused)?;
        let mut far = waiting.dial().await?;
        frame::write(&mut far, &samples).await.map_err(Ended::Broken)?;
        far.shutdown().await.map_err(|error| Ended::Broken(Error::internal("A stream broke off", error)))
    }

    /// Fetches an image into the cache, and says how far it is.
    async fn fetch(&self, waiting: &Waiting, image: &ImageSource) -> Result<(), Ended> {
        let mut far = waiting.dial().await?;
        let (progress, mut seen) = tokio::sync::watch::channel(0);
        let show = move |percent| {
            progress.send_if_modified(|now| std::mem::replace(now, percent) != percent);
        };
        let fetching = self.servers.images.ensure(image, show, || self.servers.images_in_use());
        tokio::pin!(fetching);
        let error = loop {
            tokio::select! {
                biased;
                fetched = &mut fetching => break fetched.err(),
                // Also says that the control plane still waits: nothing is fetched for nobody.
                Ok(()) = seen.changed() => {
                    let percent = *seen.borrow_and_update();
                    frame::write(&mut far, &FetchReport::Underway { percent }).await.map_err(Ended::Broken)?;
                }
            }
        };
        frame::write(&mut far, &FetchReport::Ended { error }).await.map_err(Ended::Broken)?;
        far.shutdown().await.map_err(|error| Ended::Broken(Error::internal("A stream broke off", error)))
    }

    /// Receives questions one after the other, asks the guest, sends the answers, until the control plane hangs up.
    async fn ask(&self, waiting: &Waiting, server: ServerId) -> Result<(), Ended> {
        let driver = self.servers.driver_of(server).map_err(Ended::Refused)?;
        let mut far = waiting.dial().await?;
        loop {
            let question = tokio::time::timeout(QUESTION_WITHIN, frame::next::<Question>(&mut far)).await;
            let question = question.map_err(|_| Ended::Broken(silent("the control plane sent no question")))?;
            let Some(question) = question.map_err(Ended::Broken)? else { return Ok(()) };
            let answer: Result<Answer> = match question.check() {
                Ok(()) => tokio::time::timeout(ANSWER_WITHIN, driver.ask(server, &question))
                    .await
                    .unwrap_or_else(|_| Err(silent("the guest did not answer"))),
                Err(error) => Err(error),
            };
            frame::write(&mut far, &answer).await.map_err(Ended::Broken)?;
        }
    }
}

/// Who waits for a stream, and where.
struct Waiting {
    stream: StreamId,
    client: Client,
}

impl Waiting {
    async fn dial(&self) -> Result<Box<dyn Duplex>, Ended> {
        self.client.open_stream(self.stream).await.map_err(Ended::Broken)
    }

    async fn refuse(&self, error: &Error) -> Result<()> {
        self.client.refuse_stream(self.stream, error).await
    }
}

/// Why a stream was not served to its end.
enum Ended {
    /// It cannot be opened; whoever waits is told.
    Refused(Error),
    /// It broke off.
    Broken(Error),
}

fn silent(detail: &str) -> Error {
    Error::new(ErrorKind::Timeout, "no_answer", "No answer came in time").detail(detail.to_owned())
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
