//! A simulated serial line: the bounded log of what the guest wrote, and consoles that follow it.

use std::{
    collections::VecDeque,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use nephos_types::ServerId;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use super::host::Inner;

/// So much of a guest's output is kept.
const LOG_KEPT: usize = 16 << 10;

/// What a guest wrote, the end of it.
#[derive(Default)]
pub(super) struct Line {
    log: VecDeque<u8>,
    /// How many bytes were written before the first one in `log`.
    dropped: u64,
    readers: Vec<Waker>,
}

impl Line {
    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.log.extend(bytes);
        let excess = self.log.len().saturating_sub(LOG_KEPT);
        self.log.drain(..excess);
        self.dropped += excess as u64;
        self.wake();
    }

    pub(super) fn wake(&mut self) {
        for reader in self.readers.drain(..) {
            reader.wake();
        }
    }

    pub(super) fn tail(&self, max: usize) -> Vec<u8> {
        self.log.iter().skip(self.log.len().saturating_sub(max)).copied().collect()
    }

    /// The position after the last byte written.
    pub(super) fn end(&self) -> u64 {
        self.dropped + self.log.len() as u64
    }

    /// Copies what comes after `position` and says where that ends.
    fn read(&self, position: u64, into: &mut ReadBuf<'_>) -> u64 {
        let position = position.max(self.dropped);
        let skip = usize::try_from(position - self.dropped).unwrap_or(usize::MAX);
        let count = self.log.len().saturating_sub(skip).min(into.remaining());
        let bytes: Vec<u8> = self.log.iter().skip(skip).take(count).copied().collect();
        into.put_slice(&bytes);
        position + count as u64
    }
}

/// One open console. Ends when the guest's run ends.
pub(super) struct LineConsole {
    inner: Arc<Inner>,
    id: ServerId,
    run: u64,
    position: u64,
    timer: Option<Pin<Box<Sleep>>>,
}

impl LineConsole {
    pub(super) fn new(inner: Arc<Inner>, id: ServerId, run: u64, position: u64) -> Self {
        Self { inner, id, run, position, timer: None }
    }

    /// Sleeps until the next thing is due on the host; ready if that is now.
    fn poll_timer(&mut self, due: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
        let Some(due) = due else {
            self.timer = None;
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if timer.deadline() != due {
            timer.as_mut().reset(due);
        }
        timer.as_mut().poll(context)
    }
}

impl AsyncRead for LineConsole {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let inner = Arc::clone(&self.inner);
        loop {
            let due = {
                let mut state = inner.lock();
                let due = state.next_due();
                let Some(guest) = state.guests.get_mut(&self.id) else { return Poll::Ready(Ok(())) };
                let before = into.filled().len();
                self.position = guest.line.read(self.position, into);
                let running = guest.run.as_ref().is_some_and(|run| run.serial == self.run);
                if into.filled().len() > before || !running || into.remaining() == 0 {
                    return Poll::Ready(Ok(()));
                }
                if !guest.line.readers.iter().any(|reader| reader.will_wake(context.waker())) {
                    guest.line.readers.push(context.waker().clone());
                }
                due
            };
            if self.poll_timer(due, context).is_pending() {
                return Poll::Pending;
            }
            self.timer = None;
        }
    }
}

impl AsyncWrite for LineConsole {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.inner.lock();
        let current = state.guests.get(&self.id).and_then(|guest| guest.run.as_ref()).map(|run| run.serial);
        if current != Some(self.run) {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let happened = state.typed(self.id, bytes);
        drop(state);
        if happened {
            self.inner.changed.notify_waiters();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
