//! The compute driver: the verbs that bring a guest from what it is to what it should be.

use std::{path::PathBuf, pin::Pin, time::Duration};

use futures_util::{Stream, future::BoxFuture};
use nephos_types::{Error, ServerId};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Answer, Capabilities, DiskFormat, GuestEvent, GuestSpec, Presence, Question, Usage, refusal};

/// Both directions of a guest's serial line, or of its screen.
pub trait Console: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Console for T {}

/// How to end a running guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ask the guest (ACPI power button); after this long, cut the power.
    Soft(Duration),
    /// Cut the power now.
    Hard,
}

/// How a root disk is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The file that is made.
    pub file: PathBuf,
    /// Ask the guest to bring its file systems to the disk and hold them still meanwhile, if it can be asked.
    pub freeze: bool,
}

/// What was made of a root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// How the file is laid out.
    pub format: DiskFormat,
    /// Whether the guest held its file systems still. If not, the copy is as after a power cut.
    pub frozen: bool,
}

/// A hypervisor or container runtime. Object-safe; calls on different guests may run at the same time, the caller
/// serialises calls on one guest.
pub trait ComputeDriver: Send + Sync + 'static {
    /// What this driver can do.
    fn capabilities(&self) -> Capabilities;

    /// All guests that this driver has anything of, running or not. A restarted agent adopts from here.
    fn list(&self) -> BoxFuture<'_, Result<Vec<ServerId>, Error>>;

    /// What is known about a guest. Never fails: what cannot be found out is [`Presence::Unknown`].
    fn observe(&self, id: ServerId) -> BoxFuture<'_, Presence>;

    /// Makes the guest's definition and disk exist as in the spec; leaves a running guest running. What cannot change
    /// on a running guest takes effect at its next start from off. Another [`incarnation`](crate::Disk::incarnation) of
    /// the disk needs a guest that is off: `guest_running` otherwise.
    fn define<'a>(&'a self, spec: &'a GuestSpec) -> BoxFuture<'a, Result<(), Error>>;

    /// Makes a defined guest run: from off it boots, a paused one goes on, a suspended one goes on from where its
    /// memory was saved, and as it was defined then. Nothing happens if it runs. Without a definition:
    /// `guest_not_found`.
    fn start(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes a guest be off; nothing happens if it is, or does not exist. Its process is gone when this returns, as is
    /// the saved memory of a suspended guest. A paused guest goes on first if it is to be asked.
    fn stop(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>>;

    /// Restarts a running guest: soft asks it to shut down and starts it again; hard resets it. A guest that does not
    /// run is refused with `guest_not_running`.
    fn reboot(&self, id: ServerId, mode: StopMode) -> BoxFuture<'_, Result<(), Error>>;

    /// Makes a running guest stand still; nothing happens if it does. Refused with `guest_not_running` if it is off or
    /// suspended.
    fn pause(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        unsupported(id, "be paused")
    }

    /// Saves the memory of a running or paused guest and ends its process; nothing happens if it is suspended. The
    /// guest is suspended or as before, whatever happens in between. Refused with `guest_not_running` if it is off.
    fn suspend(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>> {
        unsupported(id, "be suspended")
    }

    /// Copies the root disk, as it is at one moment, into a file that stands by itself and serves as a base for other
    /// guests. The guest may run, and goes on. The file's folder exists; the file is replaced, and is whole or not there.
    fn snapshot<'a>(&'a self, id: ServerId, request: &'a SnapshotRequest) -> BoxFuture<'a, Result<Snapshot, Error>> {
        let _ = request;
        unsupported(id, "be copied")
    }

    /// Asks the inside of a running guest. Refused with `guest_not_running`, and with `guest_agent_missing` if nobody
    /// in there answers.
    fn ask<'a>(&'a self, id: ServerId, question: &'a Question) -> BoxFuture<'a, Result<Answer, Error>> {
        let _ = question;
        unsupported(id, "be asked")
    }

    /// Opens the screen of a running guest: a connection that speaks the remote framebuffer protocol (RFC 6143) without
    /// authentication.
    fn display(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>> {
        unsupported(id, "be shown")
    }

    /// A picture of a running guest's screen, as PNG.
    fn screenshot(&self, id: ServerId) -> BoxFuture<'_, Result<Vec<u8>, Error>> {
        unsupported(id, "be shown")
    }

    /// Makes everything of a guest be gone: process, files, ports. Nothing happens if it does not exist.
    fn remove(&self, id: ServerId) -> BoxFuture<'_, Result<(), Error>>;

    /// Opens the serial console of a running guest, from now on. Several may be open at once; each sees what the guest
    /// writes, whoever typed it. Ends when the guest does. Refused with `guest_not_running` or `guest_not_found`.
    fn console(&self, id: ServerId) -> BoxFuture<'_, Result<Box<dyn Console>, Error>>;

    /// The last bytes that the guest wrote to its serial console, at most `max`.
    fn console_log(&self, id: ServerId, max: usize) -> BoxFuture<'_, Result<Vec<u8>, Error>>;

    /// What the guest has used since its start; zero if it does not run.
    fn usage(&self, id: ServerId) -> BoxFuture<'_, Result<Usage, Error>>;

    /// What happens to guests by themselves, from now on. Best effort: a listener that falls far behind misses events,
    /// and [`ComputeDriver::observe`] is the truth.
    fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>>;
}

fn unsupported<'a, T: Send + 'a>(id: ServerId, wish: &'static str) -> BoxFuture<'a, Result<T, Error>> {
    Box::pin(async move { Err(refusal::unsupported(id, wish)) })
}
