//! Bodies: what goes out, and bounded reading of what comes in.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt, stream as streams};
use http_body_util::{BodyExt, BodyStream, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Body as _, Frame, Incoming};
use nephos_types::{Error, ErrorKind, Result};
use tokio::time::timeout;

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How long a refused body is still read.
const LINGER: Duration = Duration::from_secs(3);

/// Nothing.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What this stream yields. An error cuts the connection, so that the client sees that it did not get everything.
pub fn stream(bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(bytes.map_ok(Frame::data)).boxed_unsync()
}

/// Reads a whole body of at most `limit` bytes; a sender that pauses longer than `pause` is given up on.
pub async fn collect(mut body: Incoming, limit: usize, pause: Duration) -> Result<Bytes> {
    let too_large = || {
        Error::new(ErrorKind::TooLarge, "body_too_large", "The request's body is too large")
            .detail(format!("at most {limit} bytes are accepted here"))
    };
    if body.size_hint().lower() > limit as u64 {
        discard(body, limit).await;
        return Err(too_large());
    }
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = timeout(pause, body.frame()).await.map_err(|_| paused())? {
        let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
        if first.len() + all.len() + data.len() > limit {
            discard(body, limit).await;
            return Err(too_large());
        }
        // Most bodies arrive in one piece, which then needs no copy.
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&first);
            first = Bytes::new();
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// Reads on for a moment what is not wanted, up to eight times the limit: most clients look for an answer only when they
/// have sent everything, and see a broken connection instead of the refusal if it is closed before that.
async fn discard(mut body: Incoming, limit: usize) {
    let reading = async {
        let mut left = limit.saturating_mul(8);
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.into_data().map_or(0, |data| data.len()));
            if left == 0 {
                break;
            }
        }
    };
    let _ = timeout(LINGER, reading).await;
}

/// A body as a stream of bytes, for what must not be held in memory.
pub fn into_stream(body: Incoming, pause: Duration) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let frames = BodyStream::new(body);
    streams::unfold(Some(frames), move |state| async move {
        let mut frames = state?;
        loop {
            return match timeout(pause, frames.next()).await {
                Err(_) => Some((Err(io::Error::new(io::ErrorKind::TimedOut, "the sender paused too long")), None)),
                Ok(None) => None,
                Ok(Some(Err(error))) => Some((Err(io::Error::other(error)), None)),
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Some((Ok(data), Some(frames))),
                    Err(_) => continue,
                },
            };
        }
    })
}

fn paused() -> Error {
    Error::invalid("body_timeout", "The request's body did not arrive").detail("the sender paused too long")
}

fn cut(error: hyper::Error) -> Error {
    Error::invalid("body_incomplete", "The request's body broke off").source(error)
}
