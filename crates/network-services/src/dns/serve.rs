//! Questions in, answers out, by UDP and TCP.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::timeout,
};

use super::{Answer, Transport, answer, reply};
use crate::{
    dns::Forwarder,
    limit::{Limit, Open},
    serve::{Current, breathe},
};

/// Longest datagram that is read; a longer one is no question.
const BUFFER: usize = 4096;
/// How long a connection may say nothing, and an answer may take to be taken.
const IDLE: Duration = Duration::from_secs(10);

/// Answers datagrams until it is dropped.
pub(crate) async fn serve_udp(socket: UdpSocket, view: Current, forwarder: Arc<Forwarder>, limit: Limit) {
    let socket = Arc::new(socket);
    let mut buffer = vec![0; BUFFER];
    let mut asking = JoinSet::new();
    loop {
        while asking.try_join_next().is_some() {}
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                breathe("DNS", &error).await;
                continue;
            }
        };
        let now = view.now();
        if now.port_at(from.ip()).is_none() {
            continue;
        }
        match buffer.get(..length).and_then(|bytes| answer(now.zone(), bytes, Transport::Udp)) {
            Some(Answer::Message(message)) => {
                // A full queue is the guest's loss; it asks again.
                let _ = socket.send_to(&message, from).await;
            }
            Some(Answer::Elsewhere(question)) => {
                let Some((open, room)) = limit.open(from.ip()).zip(forwarder.room()) else { continue };
                let (socket, forwarder) = (socket.clone(), forwarder.clone());
                asking.spawn(async move {
                    let found = forwarder.ask(&question, Transport::Udp).await;
                    if let Some(message) = reply(&question, found, Transport::Udp) {
                        let _ = socket.send_to(&message, from).await;
                    }
                    drop((open, room));
                });
            }
            None => {}
        }
    }
}

/// Answers connections until it is dropped.
pub(crate) async fn serve_tcp(listener: TcpListener, view: Current, forwarder: Arc<Forwarder>, limit: Limit) {
    let mut conversations = JoinSet::new();
    loop {
        while conversations.try_join_next().is_some() {}
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                breathe("DNS", &error).await;
                continue;
            }
        };
        if view.now().port_at(from.ip()).is_none() {
            continue;
        }
        let Some(open) = limit.open(from.ip()) else { continue };
        conversations.spawn(converse(stream, from, view.clone(), forwarder.clone(), open));
    }
}

async fn converse(mut stream: TcpStream, from: SocketAddr, view: Current, forwarder: Arc<Forwarder>, _open: Open) {
    let mut bytes = vec![];
    while let Ok(Ok(())) = timeout(IDLE, read(&mut stream, &mut bytes)).await {
        let now = view.now();
        if now.port_at(from.ip()).is_none() {
            return;
        }
        let message = match answer(now.zone(), &bytes, Transport::Tcp) {
            Some(Answer::Message(message)) => Some(message),
            Some(Answer::Elsewhere(question)) => {
                let Some(room) = forwarder.room() else { return };
                let found = forwarder.ask(&question, Transport::Tcp).await;
                drop(room);
                reply(&question, found, Transport::Tcp)
            }
            None => None,
        };
        let Some((message, length)) = message.and_then(|message| {
            let length = u16::try_from(message.len()).ok()?;
            Some((message, length))
        }) else {
            return;
        };
        let written = timeout(IDLE, stream.write_all(&[&length.to_be_bytes(), message.as_slice()].concat())).await;
        if !matches!(written, Ok(Ok(()))) {
            return;
        }
    }
}

async fn read(stream: &mut TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    if length > BUFFER {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a question"));
    }
    bytes.resize(length, 0);
    stream.read_exact(bytes).await?;
    Ok(())
}
