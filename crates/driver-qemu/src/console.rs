//! Consoles: QEMU serves one client at a time on a guest's serial line, people open several.
//!
//! One connection per guest is shared by all open consoles and closed with the last. What the guest writes goes to
//! each; a console that is not read from misses output instead of holding up the guest or the others.

use std::{io, sync::Arc};

use nephos_driver::Console;
use nephos_host::terminal::{PIECE, PIECES, Piece, serve};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, duplex, split},
    net::UnixStream,
    sync::{Mutex, broadcast, mpsc},
};

use crate::folder::{CONSOLE_SOCKET, Folder};

/// The consoles of one run of a guest.
pub(crate) struct Consoles {
    folder: Folder,
    /// The shared connection, as long as a console is open.
    line: Mutex<Option<Line>>,
}

struct Line {
    typed: mpsc::WeakSender<Vec<u8>>,
    shown: broadcast::WeakSender<Piece>,
}

impl Consoles {
    pub(crate) fn new(folder: Folder) -> Self {
        Self { folder, line: Mutex::new(None) }
    }

    /// Opens one more console.
    pub(crate) async fn open(&self) -> io::Result<Box<dyn Console>> {
        let mut line = self.line.lock().await;
        // A console holds `typed` as long as it is open, and the connection lives as long as anybody holds it.
        let shared = line
            .as_ref()
            .and_then(|line| Some((line.typed.upgrade()?, line.shown.upgrade()?)))
            .map(|(typed, shown)| (typed, shown.subscribe()));
        let (typed, shown) = match shared {
            Some(shared) => shared,
            None => {
                let socket = self.folder.connect(CONSOLE_SOCKET).await?;
                let (typed, from_consoles) = mpsc::channel(16);
                let (to_consoles, shown) = broadcast::channel(PIECES);
                *line = Some(Line { typed: typed.downgrade(), shown: to_consoles.downgrade() });
                tokio::spawn(share(socket, from_consoles, to_consoles));
                (typed, shown)
            }
        };
        let (near, far) = duplex(16 * PIECE);
        let (from_person, to_person) = split(far);
        tokio::spawn(serve(from_person, to_person, typed, shown));
        Ok(Box::new(near))
    }
}

/// Carries bytes between the connection and all consoles, until the guest ends or nobody is left.
async fn share(socket: UnixStream, mut typed: mpsc::Receiver<Vec<u8>>, shown: broadcast::Sender<Piece>) {
    let (mut from_guest, mut to_guest) = socket.into_split();
    let reading = async {
        let mut piece = vec![0; PIECE];
        while let Ok(count @ 1..) = from_guest.read(&mut piece).await {
            // Without a listener there is nobody to miss it.
            let _ = shown.send(Arc::new(piece.get(..count).unwrap_or_default().to_vec()));
        }
    };
    let writing = async {
        while let Some(piece) = typed.recv().await {
            if to_guest.write_all(&piece).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{net::UnixListener, time::timeout};

    use super::*;

    async fn expect(console: &mut Box<dyn Console>, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        timeout(Duration::from_secs(30), console.read_exact(&mut got)).await.unwrap().unwrap();
        assert_eq!(got, expected);
    }

    /// A guest's folder, and a listener in QEMU's place.
    fn line() -> (tempfile::TempDir, Consoles, UnixListener) {
        let guests = tempfile::tempdir().unwrap();
        let folder = Folder::new(guests.path(), nephos_types::ServerId::new());
        folder.create(None).unwrap();
        let listener = UnixListener::bind(folder.run_path().unwrap().join(CONSOLE_SOCKET)).unwrap();
        (guests, Consoles::new(folder), listener)
    }

    #[tokio::test]
    async fn all_see_everything_and_anybody_types() {
        let (_guests, consoles, listener) = line();
        let mut one = consoles.open().await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut two = consoles.open().await.unwrap();
        guest.write_all(b"hello").await.unwrap();
        expect(&mut one, b"hello").await;
        expect(&mut two, b"hello").await;
        for console in [&mut one, &mut two] {
            console.write_all(b"typed").await.unwrap();
            let mut typed = [0; 5];
            guest.read_exact(&mut typed).await.unwrap();
            assert_eq!(&typed, b"typed");
        }
        // With the last console the connection ends, so that QEMU can serve a new one.
        drop((one, two));
        assert_eq!(guest.read(&mut [0; 8]).await.unwrap(), 0);
        let mut three = consoles.open().await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        guest.write_all(b"again").await.unwrap();
        expect(&mut three, b"again").await;
        drop(guest);
        let mut rest = vec![];
        timeout(Duration::from_secs(30), three.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(rest, b"");
    }

    #[tokio::test]
    async fn one_that_is_not_read_holds_nobody_up() {
        let (_guests, consoles, listener) = line();
        let idle = consoles.open().await.unwrap();
        let (mut guest, _) = listener.accept().await.unwrap();
        let mut reader = consoles.open().await.unwrap();
        let piece = [b'x'; PIECE];
        for _ in 0..4 * PIECES {
            guest.write_all(&piece).await.unwrap();
            expect(&mut reader, &piece).await;
        }
        drop(idle);
    }
}
