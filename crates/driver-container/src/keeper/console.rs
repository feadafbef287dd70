//! The container's terminal: one pseudo-terminal, any number of consoles, and a log.
//!
//! What the container writes goes to each console and to the log; a console that is not read from misses output instead
//! of holding up the container or the others.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nephos_host::terminal::{PIECE, PIECES, Piece, serve};
use tokio::{
    io::unix::AsyncFd,
    net::UnixListener,
    sync::{broadcast, mpsc},
    task::JoinSet,
};

use crate::folder::LOG_LIMIT;

/// How often a container that stands still is looked at when somebody types.
const LOOK: Duration = Duration::from_millis(20);
/// Consoles at once.
const MAX_CONSOLES: usize = 64;

/// The consoles of a guest, as long as its keeper runs.
pub(crate) struct Consoles {
    typed: mpsc::Receiver<Vec<u8>>,
    shown: broadcast::Sender<Piece>,
    log: Log,
    /// What was typed and has not been taken yet.
    waiting: Option<Vec<u8>>,
}

impl Consoles {
    /// Serves consoles from now on.
    pub(crate) fn serve(listener: UnixListener, log: &Path) -> io::Result<Self> {
        let (to_guest, typed) = mpsc::channel(16);
        let shown = broadcast::Sender::new(PIECES);
        tokio::spawn(accept(listener, to_guest, shown.clone()));
        Ok(Self { typed, shown, log: Log::open(log)?, waiting: None })
    }

    /// Carries bytes between the terminal and the consoles, until the terminal ends. What is typed while the container
    /// stands still waits: the terminal would answer for it.
    pub(crate) async fn carry(&mut self, terminal: &AsyncFd<File>, stands_still: impl Fn() -> bool) {
        loop {
            let held = self.waiting.is_some() && stands_still();
            tokio::select! {
                () = tokio::time::sleep(LOOK), if held => {}
                ready = terminal.readable() => {
                    let Ok(mut ready) = ready else { return };
                    match ready.try_io(|terminal| self.show(terminal.get_ref())) {
                        // Not yet after all.
                        Err(_) | Ok(Ok(true)) => {}
                        Ok(Ok(false) | Err(_)) => return,
                    }
                }
                piece = self.typed.recv(), if self.waiting.is_none() => match piece {
                    Some(piece) => self.waiting = Some(piece),
                    None => return,
                },
                ready = terminal.writable(), if self.waiting.is_some() && !held => {
                    let Ok(mut ready) = ready else { return };
                    let Some(piece) = &self.waiting else { continue };
                    match ready.try_io(|terminal| terminal.get_ref().write(piece)) {
                        Err(_) => {}
                        Ok(Ok(count)) => {
                            self.waiting = piece.get(count..).filter(|rest| !rest.is_empty()).map(<[u8]>::to_vec);
                        }
                        Ok(Err(_)) => return,
                    }
                }
            }
        }
    }

    /// Shows what the container has written before it ended.
    pub(crate) fn finish(&mut self, terminal: &AsyncFd<File>) {
        while self.show(terminal.get_ref()).unwrap_or(false) {}
    }

    /// Shows one piece; false at the end.
    fn show(&mut self, mut terminal: &File) -> io::Result<bool> {
        let mut piece = vec![0; PIECE];
        let count = terminal.read(&mut piece)?;
        piece.truncate(count);
        self.log.write(&piece);
        // Without a listener there is nobody to miss it.
        let _ = self.shown.send(Arc::new(piece));
        Ok(count > 0)
    }
}

/// A terminal's own side, ready for waiting on it.
pub(crate) fn waitable(terminal: OwnedFd) -> io::Result<AsyncFd<File>> {
    let flags = rustix::fs::fcntl_getfl(&terminal)?;
    rustix::fs::fcntl_setfl(&terminal, flags | rustix::fs::OFlags::NONBLOCK)?;
    // SAFETY: a `File` keeps its descriptor open and the same until it is dropped.
    Ok(unsafe { AsyncFd::register(File::from(terminal)) }?)
}

async fn accept(listener: UnixListener, typed: mpsc::Sender<Vec<u8>>, shown: broadcast::Sender<Piece>) {
    let mut consoles = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept(), if consoles.len() < MAX_CONSOLES => {
                let (from_person, to_person) = stream.into_split();
                consoles.spawn(serve(from_person, to_person, typed.clone(), shown.subscribe()));
            }
            Some(_) = consoles.join_next() => {}
        }
    }
}

/// What a container wrote, bounded: when the file is full, it becomes the former one and a new one begins.
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path)?;
        Ok(Self { path: path.to_owned(), length: file.metadata()?.len(), file })
    }

    /// A log that cannot be written is no reason to stop the guest.
    fn write(&mut self, bytes: &[u8]) {
        if self.length > LOG_LIMIT {
            let mut former = self.path.as_os_str().to_owned();
            former.push(".1");
            if fs::rename(&self.path, former).is_ok()
                && let Ok(fresh) = Self::open(&self.path)
            {
                *self = fresh;
            }
        }
        if self.length <= LOG_LIMIT && self.file.write_all(bytes).is_ok() {
            self.length += bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_takes_little_room_and_keeps_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console.log");
        let mut log = Log::open(&path).unwrap();
        for line in 0..200_000 {
            log.write(format!("line number {line:010}\n").as_bytes());
        }
        let size = |name: &str| fs::metadata(folder.path().join(name)).unwrap().len();
        assert!(size("console.log") + size("console.log.1") <= 2 * (LOG_LIMIT + PIECE as u64));
        let former = fs::read_to_string(folder.path().join("console.log.1")).unwrap();
        let all = former + &fs::read_to_string(&path).unwrap();
        assert!(all.ends_with("0000199999\n"));
        let numbers: Vec<u64> = all.lines().map(|line| line[12..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "nothing in between is lost");
    }
}
