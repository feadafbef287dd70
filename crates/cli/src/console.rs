//! A terminal window on a server's serial console. The window is put back as it was however it ends.

use std::{
    io::{IsTerminal, Read, Write, stdin},
    time::Duration,
};

use nephos_ops::Tunnel;
use nephos_types::{Error, Result};
use nix::sys::termios::{self, SetArg, Termios};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

use crate::{exit, terminal::Terminal};

/// Ctrl-]
const LEAVE: u8 = 0x1d;
/// How long a script's console may be silent after its input ended, before it is left.
const QUIET: Duration = Duration::from_secs(3);
/// How long the last bytes may take on their way.
const PARTING: Duration = Duration::from_secs(2);

/// Connects this terminal, or the pipes in its place, with the console until either side leaves.
pub(crate) async fn attach(tunnel: Tunnel, subject: &str, terminal: &Terminal, quiet: bool) -> Result<u8> {
    if !quiet {
        eprintln!("Connected to the console of {subject}. Ctrl-] leaves.");
    }
    let raw = RawMode::enter()?;
    let outcome = relay(tunnel).await;
    drop(raw);
    if !quiet {
        // The guest may have left the cursor anywhere.
        eprintln!("{}Left the console of {subject}.", if terminal.err.tty { "\r\n" } else { "\n" });
    }
    outcome
}

async fn relay(tunnel: Tunnel) -> Result<u8> {
    let (mut from_guest, mut to_guest) = tokio::io::split(tunnel.0);
    let outcome = carry(&mut from_guest, &mut to_guest).await;
    // What was typed last is still under way: the other side hangs up when it has it.
    let hang_up = async {
        to_guest.shutdown().await?;
        tokio::io::copy(&mut from_guest, &mut tokio::io::sink()).await
    };
    // A guest's side that is gone already needs no parting.
    let _ = tokio::time::timeout(PARTING, hang_up).await;
    outcome
}

async fn carry(from_guest: &mut (impl AsyncRead + Unpin), to_guest: &mut (impl AsyncWrite + Unpin)) -> Result<u8> {
    let mut keys = keyboard();
    let watch = |kind| signal(kind).map_err(|error| Error::internal("Signals cannot be watched for", error));
    let (mut interrupt, mut terminate, mut hang_up) =
        (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?, watch(SignalKind::hangup())?);
    let mut buffer = vec![0; 16 << 10];
    let mut typing = true;
    loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(length @ 1..) => crate::output::write_out(buffer.get(..length).unwrap_or_default())?,
                Ok(_) | Err(_) => return Ok(exit::DONE),
            },
            key = keys.recv(), if typing => match key {
                Some(bytes) => {
                    let leave = bytes.iter().position(|byte| *byte == LEAVE);
                    let bytes = bytes.get(..leave.unwrap_or(bytes.len())).unwrap_or_default();
                    if to_guest.write_all(bytes).await.is_err() || leave.is_some() {
                        return Ok(exit::DONE);
                    }
                }
                None => typing = false,
            },
            () = tokio::time::sleep(QUIET), if !typing => return Ok(exit::DONE),
            _ = interrupt.recv() => return Ok(exit::INTERRUPTED),
            _ = terminate.recv() => return Ok(143),
            _ = hang_up.recv() => return Ok(129),
        }
    }
}

/// What is typed. The thread waits in a read that cannot be called off, and ends with the program.
fn keyboard() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut input = stdin().lock();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = input.read(&mut buffer) {
            if sender.blocking_send(buffer.get(..length).unwrap_or_default().to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

/// The terminal without line editing, echo and signal keys, for as long as this lives.
struct RawMode {
    before: Option<Termios>,
}

impl RawMode {
    fn enter() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self { before: None });
        }
        let failed = |error: nix::Error| Error::internal("The terminal cannot be switched to raw mode", error);
        let before = termios::tcgetattr(stdin()).map_err(failed)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(stdin(), SetArg::TCSANOW, &raw).map_err(failed)?;
        Ok(Self { before: Some(before) })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // Nothing is left to try if this fails; `reset` in the shell helps.
            let _ = termios::tcsetattr(stdin(), SetArg::TCSADRAIN, before);
            let _ = std::io::stdout().flush();
        }
    }
}
