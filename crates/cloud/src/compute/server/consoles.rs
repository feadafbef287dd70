//! Consoles by URL: a ticket in the URL stands for the login of whoever made it, for one console of one server.
//!
//! Nothing is kept of a ticket, so any process of the control plane takes it. It is good as long as three things are:
//! the login that it was made with, the rights of its maker, and the server with its count of revocations. All three are
//! looked at when a connection begins and again now and then while it lasts.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use nephos_driver::Feature;
use nephos_node_api::StreamPurpose;
use nephos_ops::{
    Caller, Duplex, Tunnel,
    compute::{ConsoleKind, ConsoleUrl, MakeConsoleUrl, OpenConsole, OpenConsoleUrl, OpenDisplay, RevokeConsoles},
};
use nephos_types::{Error, ErrorKind, Id, Reference, Result, ServerId, Timestamp};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Server, handlers::wrong_state, inside::running};
use crate::{
    compute::Compute,
    core::Handlers,
    identity::{Authority, Delegated},
    session::Session,
};

/// What tickets are signed for.
const PURPOSE: &str = "console";
/// The path below which tickets are taken; `console.open` says the same.
const PATH: &str = "/v1/consoles/";
/// How long a ticket is good for when nobody says otherwise.
const VALID: Duration = Duration::from_secs(300);
/// How often a connection's ground is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Consoles, and who may open them.
pub(crate) struct Consoles {
    compute: Arc<Compute>,
    authority: Arc<Authority>,
}

pub(crate) fn register(handlers: &mut Handlers, compute: &Arc<Compute>, authority: &Arc<Authority>) {
    let consoles = Arc::new(Consoles { compute: Arc::clone(compute), authority: Arc::clone(authority) });
    handlers.handle(&consoles, display);
    handlers.handle(&consoles, make);
    handlers.handle(&consoles, revoke);
    handlers.handle(&consoles, open);
}

async fn display(consoles: Arc<Consoles>, session: Session, input: OpenDisplay) -> Result<Tunnel> {
    let compute = &consoles.compute;
    let record = running(compute, &session, &input.server, Feature::Display, "shown")?;
    let node = record.body.node.ok_or_else(|| wrong_state(&record, "shown", "it is on no node".to_owned()))?;
    let purpose = StreamPurpose::Display { server: record.meta.id };
    Ok(Tunnel(Box::new(compute.nodes.open_stream(node, purpose).await?)))
}

/// What a ticket is about: the server, its count of revocations, which console.
struct About {
    server: ServerId,
    epoch: u32,
    kind: ConsoleKind,
}

impl About {
    fn bytes(&self) -> [u8; 13] {
        let mut bytes = [0; 13];
        let (server, rest) = bytes.split_at_mut(8);
        server.copy_from_slice(&self.server.bits().to_be_bytes());
        let (epoch, kind) = rest.split_at_mut(4);
        epoch.copy_from_slice(&self.epoch.to_be_bytes());
        kind.fill(match self.kind {
            ConsoleKind::Serial => 0,
            ConsoleKind::Vnc => 1,
        });
        bytes
    }

    fn of(bytes: [u8; 13]) -> Option<Self> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, e0, e1, e2, e3, kind] = bytes;
        let kind = match kind {
            0 => ConsoleKind::Serial,
            1 => ConsoleKind::Vnc,
            _ => return None,
        };
        let server = ServerId::from_bits(u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]));
        Some(Self { server, epoch: u32::from_be_bytes([e0, e1, e2, e3]), kind })
    }
}

async fn make(consoles: Arc<Consoles>, session: Session, input: MakeConsoleUrl) -> Result<ConsoleUrl> {
    let record = session.find::<Server>(&input.server)?;
    // A screen that the driver does not have will not come; a server that is off may be started before the URL is used.
    if input.kind == ConsoleKind::Vnc {
        super::actions::can(&consoles.compute, &record, Feature::Display, "shown")?;
    }
    let valid = input.valid_seconds.map_or(VALID, |seconds| Duration::from_secs(seconds.get()));
    let about = About { server: record.meta.id, epoch: record.body.console_epoch, kind: input.kind };
    let identity = session.identity()?;
    let expires_at = Timestamp::now().plus(valid).min(identity.expires_at);
    let ticket = consoles.authority.delegate(identity, PURPOSE, expires_at, about.bytes())?;
    let path = format!("{PATH}{ticket}");
    let origin = session.context().origin.as_ref();
    // `http` becomes `ws`, and `https` `wss`.
    let url = origin.and_then(|origin| origin.strip_prefix("http")).map(|rest| format!("ws{rest}{path}"));
    Ok(ConsoleUrl { url: url.unwrap_or_else(|| path.clone()), path, kind: input.kind, expires_at })
}

async fn revoke(_: Arc<Consoles>, session: Session, input: RevokeConsoles) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session.find::<Server>(&input.server)?;
            let edit = record.edit().modify(|server| server.console_epoch = server.console_epoch.wrapping_add(1));
            Ok((transaction.save(edit), ()))
        })
        .await
}

async fn open(consoles: Arc<Consoles>, session: Session, input: OpenConsoleUrl) -> Result<Tunnel> {
    let (delegated, about) = consoles.authority.delegated(PURPOSE, input.token.reveal()).map_err(|_| refused())?;
    let about = About::of(about).ok_or_else(refused)?;
    let identity = consoles.ground(&delegated, &about).ok_or_else(refused)?;
    if delegated.expires_at() <= Timestamp::now() {
        return Err(refused());
    }
    // What may be done with it is what its maker may do, now and by the same rules.
    let caller = Caller {
        identity: Some(identity),
        address: session.context().caller.address.clone(),
        front_end: session.context().caller.front_end,
    };
    let mut context = session.context().cloud().context(caller);
    context.request = session.context().request;
    let server: Reference = about.server.to_string().parse()?;
    let Tunnel(stream) = match about.kind {
        ConsoleKind::Serial => context.call(OpenConsole { server }).await?,
        ConsoleKind::Vnc => context.call(OpenDisplay { server }).await?,
    };
    let lost = async move {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if consoles.ground(&delegated, &about).is_none() {
                return;
            }
        }
    };
    Ok(Tunnel(Box::new(Guarded { stream, lost: Box::pin(lost), is_lost: false })))
}

impl Consoles {
    /// Whom a ticket stands for, as long as there is ground for it.
    fn ground(&self, delegated: &Delegated, about: &About) -> Option<Arc<nephos_ops::Identity>> {
        let record = self.compute.store.get::<Server>(about.server)?;
        if record.body.console_epoch != about.epoch || record.body.trashed.is_some() {
            return None;
        }
        self.authority.still(delegated).ok().map(Arc::new)
    }
}

/// One refusal for every reason, so that a guesser learns nothing.
fn refused() -> Error {
    Error::new(ErrorKind::NotFound, "console_url_invalid", "This URL leads to no console (any more)")
        .detail("it has expired, was revoked, or never was one")
        .next("make a new one", Some("nephos server console-url NAME".to_owned()))
}

/// A stream that ends when the ground for it is lost.
struct Guarded {
    stream: Box<dyn Duplex>,
    lost: Pin<Box<dyn Future<Output = ()> + Send>>,
    is_lost: bool,
}

impl AsyncRead for Guarded {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_lost || self.lost.as_mut().poll(cx).is_ready() {
            self.is_lost = true;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_lost {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_ticket_is_about_survives_its_form() {
        for kind in [ConsoleKind::Serial, ConsoleKind::Vnc] {
            let about = About { server: ServerId::from_bits(u64::MAX - 5), epoch: 77, kind };
            let again = About::of(about.bytes()).unwrap();
            assert_eq!((again.server, again.epoch, again.kind), (about.server, 77, kind));
        }
        assert!(About::of([2; 13]).is_none());
    }
}
