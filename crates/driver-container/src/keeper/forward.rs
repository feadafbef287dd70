//! Forwarded ports: what arrives at a port of the machine's loopback goes to a port of the container's loopback.
//!
//! The keeper's only thread visits the container's network namespace to make a socket there, and comes back before it
//! does anything else; the socket stays where it was made.

use std::{
    collections::HashMap,
    fs::File,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nephos_driver::{PortForward, Protocol};
use nix::sched::{CloneFlags, setns};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::{Semaphore, watch},
    time::timeout,
};

use super::State;

/// Connections of one guest at once.
const MAX_CONNECTIONS: usize = 512;
/// Senders of datagrams to one port that answers find their way back to.
const MAX_SENDERS: usize = 256;
/// How long a sender of datagrams is remembered.
const SENDER_LIMIT: Duration = Duration::from_secs(60);

/// A bound port of the machine.
pub(crate) enum Port {
    Tcp(std::net::TcpListener, u16),
    Udp(std::net::UdpSocket, u16),
}

/// Binds a port of the machine's loopback.
pub(crate) fn bind(forward: &PortForward) -> io::Result<Port> {
    let here = SocketAddrV4::new(Ipv4Addr::LOCALHOST, forward.host_port);
    match forward.protocol {
        Protocol::Tcp => {
            let listener = std::net::TcpListener::bind(here)?;
            listener.set_nonblocking(true)?;
            Ok(Port::Tcp(listener, forward.guest_port))
        }
        Protocol::Udp => {
            let socket = std::net::UdpSocket::bind(here)?;
            socket.set_nonblocking(true)?;
            Ok(Port::Udp(socket, forward.guest_port))
        }
    }
}

/// The container's network, which is another one after each restart.
#[derive(Clone)]
pub(crate) struct Inside {
    own: Arc<File>,
    container: Arc<Mutex<Option<File>>>,
}

impl Inside {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { own: Arc::new(File::open("/proc/thread-self/ns/net")?), container: Arc::default() })
    }

    /// Changes to the network of this process, or to none.
    pub(crate) fn enter(&self, init: Option<u32>) -> io::Result<()> {
        let namespace = init.map(|pid| File::open(format!("/proc/{pid}/ns/net"))).transpose()?;
        *self.container.lock().unwrap_or_else(PoisonError::into_inner) = namespace;
        Ok(())
    }

    /// Makes something in the container's network.
    fn make<T>(&self, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let container = self.container.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(namespace) = container.as_ref() else { return Err(io::ErrorKind::NotConnected.into()) };
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let made = make();
        if setns(&*self.own, CloneFlags::CLONE_NEWNET).is_err() {
            // To go on in the container's network would let its ports be taken for the machine's.
            std::process::abort();
        }
        made
    }
}

/// Serves a port for as long as the keeper runs.
pub(crate) fn serve(port: Port, inside: &Inside, state: watch::Sender<State>) -> io::Result<()> {
    let inside = inside.clone();
    match port {
        Port::Tcp(listener, port) => {
            tokio::spawn(streams(TcpListener::from_std(listener)?, port, inside, state));
        }
        Port::Udp(socket, port) => {
            tokio::spawn(datagrams(Arc::new(UdpSocket::from_std(socket)?), port, inside, state));
        }
    }
    Ok(())
}

async fn streams(listener: TcpListener, port: u16, inside: Inside, state: watch::Sender<State>) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let Ok((outer, _)) = listener.accept().await else {
            // No descriptor is left, or the like.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (inside, state) = (inside.clone(), state.clone());
        tokio::spawn(async move {
            let _place = place;
            if let Ok(inner) = connect(&inside, port).await {
                carry(outer, inner, &state).await;
            }
        });
    }
}

async fn connect(inside: &Inside, port: u16) -> io::Result<TcpStream> {
    let socket = inside.make(TcpSocket::new_v4)?;
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

async fn carry(outer: TcpStream, inner: TcpStream, state: &watch::Sender<State>) {
    let (mut from_outer, mut to_outer) = outer.into_split();
    let (mut from_inner, mut to_inner) = inner.into_split();
    tokio::join!(
        copy(&mut from_outer, &mut to_inner, |count| count_bytes(state, count, 0)),
        copy(&mut from_inner, &mut to_outer, |count| count_bytes(state, 0, count)),
    );
}

async fn copy(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin), count: impl Fn(usize)) {
    let mut piece = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        count(length);
        if to.write_all(piece.get(..length).unwrap_or_default()).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

fn count_bytes(state: &watch::Sender<State>, received: usize, sent: usize) {
    // Nobody is woken by this.
    state.send_if_modified(|state| {
        state.forwarded.0 += received as u64;
        state.forwarded.1 += sent as u64;
        false
    });
}

async fn datagrams(outer: Arc<UdpSocket>, port: u16, inside: Inside, state: watch::Sender<State>) {
    let senders: Arc<Mutex<HashMap<SocketAddr, Arc<UdpSocket>>>> = Arc::default();
    let known = || senders.lock().unwrap_or_else(PoisonError::into_inner);
    let mut datagram = vec![0; 64 << 10];
    loop {
        let Ok((length, sender)) = outer.recv_from(&mut datagram).await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let existing = known().get(&sender).cloned();
        let inner = match existing {
            Some(inner) => inner,
            None if known().len() >= MAX_SENDERS => continue,
            None => {
                let make = || {
                    let socket = std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    socket.set_nonblocking(true)?;
                    socket.connect((Ipv4Addr::LOCALHOST, port))?;
                    UdpSocket::from_std(socket)
                };
                let Ok(inner) = inside.make(make).map(Arc::new) else { continue };
                known().insert(sender, inner.clone());
                let (outer, senders, state) = (outer.clone(), senders.clone(), state.clone());
                let answers = inner.clone();
                tokio::spawn(async move {
                    let mut datagram = vec![0; 64 << 10];
                    while let Ok(received) = timeout(SENDER_LIMIT, answers.recv(&mut datagram)).await {
                        // Refused means that nobody listens there yet.
                        let Ok(length) = received else { continue };
                        count_bytes(&state, 0, length);
                        let _ = outer.send_to(datagram.get(..length).unwrap_or_default(), sender).await;
                    }
                    senders.lock().unwrap_or_else(PoisonError::into_inner).remove(&sender);
                });
                inner
            }
        };
        count_bytes(&state, length, 0);
        let _ = inner.send(datagram.get(..length).unwrap_or_default()).await;
    }
}
