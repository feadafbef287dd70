//! Asking others: a question of a guest's, written anew, to each forwarder in turn.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::Transport;

/// How long one forwarder has.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the whole list is gone through.
const ROUNDS: usize = 2;
/// What forwarders may send by UDP.
const PAYLOAD: u16 = 1232;

/// Asks others, for all networks of the node.
#[derive(Debug)]
pub(crate) struct Forwarder {
    servers: Vec<SocketAddr>,
    at_once: Arc<Semaphore>,
}

impl Forwarder {
    pub(crate) fn new(servers: Vec<SocketAddr>, at_once: usize) -> Self {
        Self { servers, at_once: Arc::new(Semaphore::new(at_once)) }
    }

    /// Room for one more question; `None`: there are too many already.
    pub(crate) fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.at_once.clone().try_acquire_owned().ok()
    }

    /// The answer to a question; the code to tell the guest if there is none.
    pub(crate) async fn ask(&self, question: &Message, transport: Transport) -> Result<Message, ResponseCode> {
        if self.servers.is_empty() {
            return Err(ResponseCode::Refused);
        }
        let mut failed = None;
        for server in std::iter::repeat_n(&self.servers, ROUNDS).flatten() {
            let asked = timeout(PATIENCE, ask_one(*server, question, transport)).await;
            match asked {
                Ok(Ok(answer)) if answer.metadata.response_code == ResponseCode::ServFail => failed = Some(answer),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a DNS server was asked in vain"),
                Err(_) => tracing::debug!(%server, "a DNS server does not answer"),
            }
        }
        failed.ok_or(ResponseCode::ServFail)
    }
}

/// Only what has to be asked, so that nothing that a guest made up gets to others.
fn write_anew(question: &Message, id: u16) -> Option<(Message, Vec<u8>)> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.metadata.checking_disabled;
    message.metadata.authentic_data = question.metadata.authentic_data;
    message.add_queries(question.queries.first().cloned());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(question.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok));
    message.set_edns(edns);
    let bytes = message.to_vec().ok()?;
    Some((message, bytes))
}

fn answers(asked: &Message, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let fits = message.metadata.id == asked.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries == asked.queries;
    fits.then_some(message)
}

async fn ask_one(server: SocketAddr, question: &Message, transport: Transport) -> io::Result<Message> {
    let unwritable = || io::Error::new(io::ErrorKind::InvalidData, "the question cannot be written");
    let (asked, bytes) = write_anew(question, rand::random()).ok_or_else(unwritable)?;
    if transport == Transport::Tcp {
        return ask_by_tcp(server, &asked, &bytes).await;
    }
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
    // A socket of its own for each question, so that its port cannot be guessed either; connected, so that only the
    // server is heard.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(answer) = buffer.get(..length).and_then(|bytes| answers(&asked, bytes)) {
            return Ok(answer);
        }
    }
}

async fn ask_by_tcp(server: SocketAddr, asked: &Message, bytes: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), bytes].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    answers(asked, &buffer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "this answers another question"))
}
