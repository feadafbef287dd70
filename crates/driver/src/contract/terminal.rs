//! A person at a serial console: types, and reads until something appears.

use std::sync::Arc;

use nephos_types::ServerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Bench, ok};
use crate::{ComputeDriver, Console};

/// What the shell is asked to print, and what it prints: the quotes keep the terminal's echo from looking like the answer.
const READY: (&str, &str) = ("echo nephos-\"is\"-ready", "nephos-is-ready");

/// An open console and what has appeared on it.
pub(super) struct Terminal<'a> {
    bench: &'a Bench,
    console: Box<dyn Console>,
    screen: Vec<u8>,
}

impl<'a> Terminal<'a> {
    /// Opens the console of a running guest.
    pub(super) async fn open(bench: &'a Bench, driver: &Arc<dyn ComputeDriver>, id: ServerId) -> Self {
        Self { bench, console: ok("console", driver.console(id).await), screen: vec![] }
    }

    /// Opens the console of a guest that is booting and logs in.
    pub(super) async fn logged_in(bench: &'a Bench, driver: &Arc<dyn ComputeDriver>, id: ServerId) -> Self {
        let mut terminal = Self::open(bench, driver, id).await;
        bench.until("login prompt in the console log", || log_shows(driver, id, "login: ")).await;
        let (user, password) = bench.login();
        terminal.enter("").await;
        terminal.wait_for("login: ").await;
        terminal.enter(&user).await;
        terminal.wait_for("assword: ").await;
        terminal.enter(&password).await;
        terminal.wait_for("# ").await;
        terminal.enter(READY.0).await;
        terminal.wait_for(READY.1).await;
        terminal
    }

    /// Types a line.
    pub(super) async fn enter(&mut self, line: &str) {
        if let Err(error) = self.console.write_all(format!("{line}\r").as_bytes()).await {
            panic!("typing {line:?}: {error}; the screen shows {}", self.shown());
        }
    }

    /// Reads until this appears; forgets the screen up to there.
    pub(super) async fn wait_for(&mut self, expected: &str) {
        let Self { bench, console, screen } = self;
        let bench: &Bench = bench;
        let reading = async {
            loop {
                if let Some(found) = find(screen, expected) {
                    screen.drain(..found + expected.len());
                    return true;
                }
                if console.read_buf(screen).await.unwrap_or(0) == 0 {
                    return false;
                }
            }
        };
        match tokio::time::timeout(bench.patience(), reading).await {
            Ok(true) => {}
            Ok(false) => panic!("the console ended before {expected:?}; the screen shows {}", self.shown()),
            Err(_) => panic!("{expected:?} did not appear; the screen shows {}", self.shown()),
        }
    }

    /// Reads until the line ends because the guest does.
    pub(super) async fn wait_for_end(mut self) {
        let bench = self.bench;
        let mut rest = vec![];
        let _ = bench.within("the console ends with the guest", self.console.read_to_end(&mut rest)).await;
    }

    fn shown(&self) -> String {
        format!("{:?}", String::from_utf8_lossy(&self.screen))
    }
}

/// Whether the end of the console log shows a text.
pub(super) async fn log_shows(driver: &Arc<dyn ComputeDriver>, id: ServerId, text: &str) -> Option<()> {
    let log = ok("console log", driver.console_log(id, 64 << 10).await);
    find(&log, text).map(|_| ())
}

/// How often the end of the console log shows a text.
pub(super) async fn log_count(driver: &Arc<dyn ComputeDriver>, id: ServerId, text: &str) -> usize {
    let log = ok("console log", driver.console_log(id, 64 << 10).await);
    String::from_utf8_lossy(&log).matches(text).count()
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text.as_bytes())
}
