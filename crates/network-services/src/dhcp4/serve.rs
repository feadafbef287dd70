//! Messages in, answers out.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    time::Duration,
};

use nephos_types::MacAddress;
use nix::{
    libc,
    sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg},
};
use tokio::{io::Interest, net::UdpSocket};

use super::{
    Destination, Reply,
    answer::{LONGEST, answer},
};
use crate::serve::{Current, breathe};

const CLIENT_PORT: u16 = 68;

/// Answers messages until it is dropped.
pub(crate) async fn serve(socket: UdpSocket, view: Current, lease_time: Duration, interface: String, index: u32) {
    let mut buffer = vec![0; LONGEST + 1];
    loop {
        let length = match socket.recv_from(&mut buffer).await {
            Ok((length, _)) => length,
            Err(error) => {
                breathe("DHCP", &error).await;
                continue;
            }
        };
        let reply = buffer.get(..length).and_then(|bytes| answer(&view.now(), lease_time, bytes));
        if let Some(reply) = reply
            && let Err(error) = send(&socket, &reply, &interface, index).await
        {
            tracing::debug!(%error, "an answer of DHCP could not be sent");
        }
    }
}

async fn send(socket: &UdpSocket, reply: &Reply, interface: &str, index: u32) -> io::Result<()> {
    let to = match reply.to {
        Destination::Broadcast => Ipv4Addr::BROADCAST,
        Destination::Address(address) => address,
        Destination::Hardware(mac, address) => match introduce(socket, interface, mac, address) {
            Ok(()) => address,
            Err(error) => {
                tracing::debug!(%error, "an answer of DHCP is sent to everybody");
                Ipv4Addr::BROADCAST
            }
        },
    };
    let to = SockaddrIn::from(SocketAddrV4::new(to, CLIENT_PORT));
    // The answer comes from the address that it names as the server's, whatever other addresses the interface has.
    let from = libc::in_pktinfo {
        ipi_ifindex: i32::try_from(index).unwrap_or(0),
        ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(reply.from.octets()) },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    socket
        .async_io(Interest::WRITABLE, || {
            let pieces = [io::IoSlice::new(&reply.message)];
            let control = [ControlMessage::Ipv4PacketInfo(&from)];
            sendmsg(socket.as_raw_fd(), &pieces, &control, MsgFlags::empty(), Some(&to))?;
            Ok(())
        })
        .await
}

/// Tells the kernel the client's MAC address: the client could not be asked, as it does not have the address yet.
fn introduce(socket: &UdpSocket, interface: &str, mac: MacAddress, address: Ipv4Addr) -> io::Result<()> {
    // SAFETY: all of it is numbers.
    let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
    let of = |address: Ipv4Addr| libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).unwrap_or_default(),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of numbers, and the one is the other's form for this family.
    request.arp_pa = unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(of(address)) };
    request.arp_ha.sa_family = libc::ARPHRD_ETHER;
    for (to, from) in request.arp_ha.sa_data.iter_mut().zip(mac.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.arp_flags = libc::ATF_COM;
    // The last byte stays zero.
    for (to, from) in request.arp_dev.iter_mut().take(15).zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: the kernel reads one `arpreq`, which lives until the call returns.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSARP as _, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
