//! Files to and from the cloud, as streams, with progress on standard error.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use nephos_ops::Download;
use nephos_types::{Bytes, Error, Result};
use tokio::io::AsyncWriteExt;
use tokio_util::io::ReaderStream;

use crate::{
    client::{Upload, broken_off},
    command::global::Globals,
    output::duration_words,
    terminal::Terminal,
};

/// How much is read at once.
pub(crate) const CHUNK: usize = 256 << 10;
/// How often progress is drawn.
const REDRAW: Duration = Duration::from_millis(100);

/// Opens a file for sending; `-` is standard input.
pub(crate) async fn open(path: &str, globals: &Globals, terminal: &Terminal) -> Result<Upload> {
    if path == "-" {
        let meter = Meter::new("sent", None, globals, terminal);
        let body = ReaderStream::with_capacity(tokio::io::stdin(), CHUNK);
        return Ok(Upload { body: Box::pin(metered(body, meter)), length: None });
    }
    let refuse = |error: std::io::Error| unreadable(path, &error);
    let file = tokio::fs::File::open(path).await.map_err(refuse)?;
    let about = file.metadata().await.map_err(refuse)?;
    if about.is_dir() {
        return Err(Error::invalid("unreadable_file", format!("Cannot read {path}")).detail("it is a folder"));
    }
    // A pipe or a device has no length to speak of.
    let length = about.is_file().then_some(about.len());
    let meter = Meter::new("sent", length, globals, terminal);
    let body = ReaderStream::with_capacity(file, CHUNK);
    Ok(Upload { body: Box::pin(metered(body, meter)), length })
}

/// The refusal of a file that cannot be read.
pub(crate) fn unreadable(path: &str, error: &std::io::Error) -> Error {
    Error::invalid("unreadable_file", format!("Cannot read {path}")).detail(error.to_string())
}

fn metered<S>(body: S, meter: Meter) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send
where
    S: futures_util::Stream<Item = std::io::Result<bytes::Bytes>> + Send,
{
    let meter = Arc::new(Mutex::new(meter));
    let at_end = meter.clone();
    let lock = |meter: &Mutex<Meter>, bytes: Option<usize>| {
        let mut meter = meter.lock().unwrap_or_else(PoisonError::into_inner);
        match bytes {
            Some(bytes) => meter.add(bytes),
            None => meter.finish(),
        }
    };
    body.inspect(move |chunk| {
        if let Ok(chunk) = chunk {
            lock(&meter, Some(chunk.len()));
        }
    })
    .chain(futures_util::stream::poll_fn(move |_| {
        lock(&at_end, None);
        std::task::Poll::Ready(None)
    }))
}

/// Writes a download to a file, or to standard output. A file appears under its name only when it is complete.
pub(crate) async fn save(download: Download, path: Option<&str>, globals: &Globals, terminal: &Terminal) -> Result<()> {
    let text = download.content_type.starts_with("text/");
    let Some(path) = path.filter(|path| *path != "-") else {
        if path.is_none() && !text && std::io::stdout().is_terminal() {
            return Err(Error::invalid("usage", "This is no text for a terminal")
                .next("write it to a file: --file PATH", None)
                .next("or print it nevertheless: --file -", None));
        }
        return print(download).await;
    };
    let target = Path::new(path);
    let mut part = target.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let written = write_file(download, &part, globals, terminal).await;
    let refuse = |error: std::io::Error| {
        Error::invalid("unwritable_file", format!("Cannot write {path}")).detail(error.to_string())
    };
    match written {
        Ok(()) => tokio::fs::rename(&part, target).await.map_err(refuse),
        Err(error) => {
            // What is left of an incomplete download is of no use.
            let _ = tokio::fs::remove_file(&part).await;
            Err(error)
        }
    }
}

async fn write_file(mut download: Download, part: &Path, globals: &Globals, terminal: &Terminal) -> Result<()> {
    let refuse = |error: std::io::Error| {
        Error::invalid("unwritable_file", format!("Cannot write {}", part.display())).detail(error.to_string())
    };
    // Downloads may hold secrets (a backup does), so others may not read them.
    let mut file = tokio::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(part)
        .await
        .map_err(refuse)?;
    let mut meter = Meter::new("received", download.length, globals, terminal);
    let mut received: u64 = 0;
    while let Some(chunk) = download.body.next().await {
        let chunk = chunk.map_err(|error| broken_off(&error.to_string()))?;
        file.write_all(&chunk).await.map_err(refuse)?;
        received += chunk.len() as u64;
        meter.add(chunk.len());
    }
    if download.length.is_some_and(|length| length != received) {
        return Err(broken_off("the download is not complete"));
    }
    file.sync_all().await.map_err(refuse)?;
    meter.finish();
    Ok(())
}

async fn print(mut download: Download) -> Result<()> {
    while let Some(chunk) = download.body.next().await {
        crate::output::write_out(&chunk.map_err(|error| broken_off(&error.to_string()))?)?;
    }
    Ok(())
}

/// Counts bytes and says how far it is.
pub(crate) struct Meter {
    verb: &'static str,
    total: Option<u64>,
    /// What was done before.
    before: u64,
    done: u64,
    started: Instant,
    drawn: Option<Instant>,
    live: bool,
    quiet: bool,
    finished: bool,
}

impl Meter {
    fn new(verb: &'static str, total: Option<u64>, globals: &Globals, terminal: &Terminal) -> Self {
        Self::from(verb, 0, total, globals, terminal)
    }

    /// Of something of which a part was done before.
    pub(crate) fn from(
        verb: &'static str,
        before: u64,
        total: Option<u64>,
        globals: &Globals,
        terminal: &Terminal,
    ) -> Self {
        let live = terminal.err.tty && !globals.quiet;
        let started = Instant::now();
        Self { verb, total, before, done: before, started, drawn: None, live, quiet: globals.quiet, finished: false }
    }

    /// So much is done, whatever was counted.
    pub(crate) fn at(&mut self, done: u64) {
        self.before = self.before.min(done);
        self.done = done;
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.done += bytes as u64;
        // Whoever knows the length takes no more than that, and does not ask for the end.
        if self.total == Some(self.done) {
            return self.finish();
        }
        if self.live && self.drawn.is_none_or(|drawn| drawn.elapsed() >= REDRAW) {
            self.drawn = Some(Instant::now());
            eprint!("\r\x1b[K  {}", self.line());
            // Progress that cannot be shown is no failure.
            let _ = std::io::stderr().flush();
        }
    }

    fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) && !self.quiet {
            let clear = if self.live { "\r\x1b[K" } else { "" };
            let took = duration_words(self.started.elapsed());
            eprintln!("{clear}{} {} in {took} ({}/s)", self.verb, Bytes(self.done), Bytes(self.rate()));
        }
    }

    fn rate(&self) -> u64 {
        let seconds = self.started.elapsed().as_secs_f64().max(0.001);
        (self.done.saturating_sub(self.before) as f64 / seconds) as u64
    }

    fn line(&self) -> String {
        let rate = self.rate();
        match self.total {
            Some(total) if total > 0 => {
                let percent = self.done.saturating_mul(100) / total;
                let left = total.saturating_sub(self.done).checked_div(rate);
                let left =
                    left.map(|s| format!("  {} left", duration_words(Duration::from_secs(s)))).unwrap_or_default();
                format!("{percent:>3}%  {} of {}  {}/s{left}", Bytes(self.done), Bytes(total), Bytes(rate))
            }
            _ => format!("{}  {}/s", Bytes(self.done), Bytes(rate)),
        }
    }
}
