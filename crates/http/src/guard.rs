//! Bounds on how long a peer may keep a connection without moving it.
//!
//! hyper bounds the time between requests and within their headers. Two gaps remain, which this wrapper closes: a peer
//! that connects and says (next to) nothing before the protocol is known, and one that does not read its answer.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep, sleep_until},
};

/// The length of HTTP/2's connection preface, after which the protocol is certain.
const PREFACE: usize = 24;

pub(crate) struct Guarded<T> {
    inner: T,
    received: usize,
    opening: Option<Pin<Box<Sleep>>>,
    writing: Option<Pin<Box<Sleep>>>,
    stall: Duration,
}

impl<T> Guarded<T> {
    /// `opening` bounds the time to the first bytes, `stall` the time for which a write may make no progress.
    pub(crate) fn new(inner: T, opening: Duration, stall: Duration) -> Self {
        Self {
            inner,
            received: 0,
            opening: Some(Box::pin(sleep_until(Instant::now() + opening))),
            writing: None,
            stall,
        }
    }

    fn progress<R>(&mut self, context: &mut Context<'_>, outcome: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if outcome.is_ready() {
            self.writing = None;
            return outcome;
        }
        let stall = self.stall;
        let timer = self.writing.get_or_insert_with(|| Box::pin(sleep(stall)));
        match timer.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(timed_out("the peer does not read"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(context, buf);
        if self.opening.is_none() {
            return outcome;
        }
        match outcome {
            Poll::Ready(outcome) => {
                self.received = self.received.saturating_add(buf.filled().len() - before);
                if self.received >= PREFACE {
                    self.opening = None;
                }
                Poll::Ready(outcome)
            }
            Poll::Pending => match self.opening.as_mut().map(|timer| timer.as_mut().poll(context)) {
                Some(Poll::Ready(())) => Poll::Ready(Err(timed_out("the peer says nothing"))),
                _ => Poll::Pending,
            },
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, buf);
        self.progress(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, bufs);
        self.progress(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_flush(context);
        self.progress(context, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(context);
        self.progress(context, outcome)
    }
}
