//! Questions to the kernel and their answers, one after the other.

use std::{
    fmt::Debug,
    io::{self, ErrorKind},
    marker::PhantomData,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use netlink_sys::{Socket as Raw, SocketAddr};

/// How often a list is asked for again when it changed while it was told.
const TRIES: usize = 20;

/// A netlink socket for messages of one kind. It speaks to the network namespace that it was made in, wherever it is used.
pub(crate) struct Socket<Message> {
    raw: Raw,
    sequence: u32,
    kind: PhantomData<fn() -> Message>,
}

impl<Message: NetlinkSerializable + NetlinkDeserializable + Debug + Clone> Socket<Message> {
    /// Opens a socket in the thread's namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<Self> {
        let mut raw = Raw::new(protocol)?;
        raw.bind_auto()?;
        raw.connect(&SocketAddr::new(0, 0))?;
        // A list of thousands of links comes in messages of 32 KiB at most.
        raw.set_rx_buf_sz(1_i32 << 20)?;
        Ok(Self { raw, sequence: 0, kind: PhantomData })
    }

    /// Makes a change.
    pub(crate) fn change(&mut self, message: Message, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK | flags).map(drop)
    }

    /// Asks for one thing.
    pub(crate) fn get(&mut self, message: Message) -> io::Result<Option<Message>> {
        match self.exchange(message, NLM_F_REQUEST | NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().next()),
            Err(error) if error.kind() == ErrorKind::NotFound || is_no_device(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for a list.
    pub(crate) fn list(&mut self, message: Message) -> io::Result<Vec<Message>> {
        for _ in 0..TRIES {
            match self.exchange(message.clone(), NLM_F_REQUEST | NLM_F_DUMP) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => return other,
            }
        }
        Err(io::Error::other("a list of the kernel's changes faster than it can be read"))
    }

    fn exchange(&mut self, message: Message, flags: u16) -> io::Result<Vec<Message>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(message));
        request.header.flags = flags;
        request.header.sequence_number = self.sequence;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.raw.send(&bytes, 0)?;
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut answers = vec![];
        let mut changed = false;
        loop {
            let (datagram, _) = self.raw.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(length) = rest.get(..4).and_then(|length| <[u8; 4]>::try_from(length).ok()) {
                let length = u32::from_ne_bytes(length) as usize;
                let Some(one) = rest.get(..length).filter(|_| length >= 16) else { break };
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                let answer = NetlinkMessage::<Message>::deserialize(one).map_err(io::Error::other)?;
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                // NLM_F_DUMP_INTR: what has been told is not of one moment.
                changed |= dump && answer.header.flags & 0x10 != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            Some(code) => Err(io::Error::from_raw_os_error(code.get().abs())),
                            None => Ok(answers),
                        };
                    }
                    NetlinkPayload::Done(_) if changed => return Err(ErrorKind::Interrupted.into()),
                    NetlinkPayload::Done(_) => return Ok(answers),
                    _ => {}
                }
            }
        }
    }
}

/// Whether what was asked for is not there (ENODEV, ENXIO).
pub(crate) fn is_no_device(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(19 | 6))
}

/// Whether what was to be removed is not there any more.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    is_no_device(error)
        // ENOENT, ESRCH, EADDRNOTAVAIL.
        || matches!(error.raw_os_error(), Some(2 | 3 | 99))
}
