//! A terminal that several people look at and type to: what it shows goes to each of them, and one who does not read
//! misses output instead of holding up the terminal or the others.

use std::sync::Arc;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{broadcast, mpsc},
};

/// Pieces of output that a slow person may be behind.
pub const PIECES: usize = 256;
/// The largest piece.
pub const PIECE: usize = 4096;

/// One piece of what a terminal shows.
pub type Piece = Arc<Vec<u8>>;

/// Carries bytes between a terminal and one person, until either ends.
pub async fn serve(
    mut from_person: impl AsyncRead + Unpin,
    mut to_person: impl AsyncWrite + Unpin,
    typed: mpsc::Sender<Vec<u8>>,
    mut shown: broadcast::Receiver<Piece>,
) {
    let typing = async {
        let mut piece = vec![0; PIECE];
        while let Ok(count @ 1..) = from_person.read(&mut piece).await {
            if typed.send(piece.get(..count).unwrap_or_default().to_vec()).await.is_err() {
                break;
            }
        }
    };
    let showing = async {
        loop {
            match shown.recv().await {
                Ok(piece) => {
                    if to_person.write_all(&piece).await.is_err() {
                        break;
                    }
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => break,
            }
        }
    };
    tokio::select! {
        () = typing => {}
        () = showing => {}
    }
}
