//! Sockets in network namespaces: a thread enters the namespace and opens them, and they stay in there.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
};

use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::oneshot;

/// Where something is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// Path of the network namespace.
    pub namespace: PathBuf,
    /// Name of the interface in there.
    pub interface: String,
}

/// What a place was when sockets were opened there: another one under the same name is another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    namespace: (u64, u64),
    pub(crate) interface: u32,
}

/// A socket that something is served at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Endpoint {
    /// DHCP.
    Dhcp4,
    /// DHCPv6.
    Dhcp6,
    /// Router advertisements.
    Advertise,
    /// DNS in datagrams.
    DnsUdp(IpAddr),
    /// DNS in streams.
    DnsTcp(IpAddr),
    /// Metadata.
    Metadata(IpAddr),
}

/// A socket, open.
#[derive(Debug)]
pub(crate) enum Opened {
    Udp(UdpSocket),
    Tcp(TcpListener),
}

/// Does something in a network namespace. The thread ends with it: nothing else ever runs where it has been.
pub(crate) async fn inside<T: Send + 'static>(
    namespace: PathBuf,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (answer, answered) = oneshot::channel();
    thread::Builder::new().name("namespace".to_owned()).spawn(move || {
        let enter = || setns(File::open(&namespace)?, CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        let _ = answer.send(enter().and_then(|()| work()));
    })?;
    answered.await.unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace ended")))
}

/// What a place is now. To be called in its namespace.
pub(crate) fn identity(namespace: &Path, interface: &str) -> io::Result<Identity> {
    let file = std::fs::metadata(namespace)?;
    let interface = nix::net::if_::if_nametoindex(interface)?;
    Ok(Identity { namespace: (file.dev(), file.ino()), interface })
}

/// Opens a socket. To be called in its namespace.
pub(crate) fn open(endpoint: Endpoint, interface: &str, index: u32) -> io::Result<Opened> {
    let at = |address: IpAddr, port: u16| match address {
        IpAddr::V4(address) => SocketAddr::from((address, port)),
        IpAddr::V6(address) => {
            let scope = if address.is_unicast_link_local() { index } else { 0 };
            SocketAddrV6::new(address, port, 0, scope).into()
        }
    };
    let bound = |address: SocketAddr, kind: Type| -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        // Nothing that comes another way is heard, and an address may be there later than who listens to it.
        socket.bind_device(Some(interface.as_bytes()))?;
        match address {
            SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
            SocketAddr::V6(_) => {
                socket.set_only_v6(true)?;
                socket.set_freebind_v6(true)?;
            }
        }
        socket.bind(&address.into())?;
        Ok(socket)
    };
    match endpoint {
        Endpoint::Dhcp4 => {
            let socket = bound((Ipv4Addr::UNSPECIFIED, 67).into(), Type::DGRAM)?;
            socket.set_broadcast(true)?;
            Ok(Opened::Udp(socket.into()))
        }
        Endpoint::Dhcp6 => {
            let socket = bound((Ipv6Addr::UNSPECIFIED, 547).into(), Type::DGRAM)?;
            // All DHCP servers and relays (RFC 8415, section 7.1).
            socket.join_multicast_v6(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2), index)?;
            Ok(Opened::Udp(socket.into()))
        }
        Endpoint::Advertise => {
            let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
            socket.set_nonblocking(true)?;
            socket.bind_device(Some(interface.as_bytes()))?;
            // Receivers check that no router was on the way (RFC 4861, section 6.1.2).
            socket.set_multicast_hops_v6(255)?;
            socket.set_unicast_hops_v6(255)?;
            socket.set_multicast_if_v6(index)?;
            socket.set_multicast_loop_v6(false)?;
            // All routers.
            socket.join_multicast_v6(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2), index)?;
            Ok(Opened::Udp(socket.into()))
        }
        Endpoint::DnsUdp(address) => Ok(Opened::Udp(bound(at(address, 53), Type::DGRAM)?.into())),
        Endpoint::DnsTcp(address) | Endpoint::Metadata(address) => {
            let port = if matches!(endpoint, Endpoint::DnsTcp(_)) { 53 } else { 80 };
            let socket = bound(at(address, port), Type::STREAM)?;
            socket.listen(128)?;
            Ok(Opened::Tcp(socket.into()))
        }
    }
}
