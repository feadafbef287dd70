//! What a question is answered: a pure function of the network's names.

use std::net::IpAddr;

use hickory_proto::{
    op::{Edns, Message, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{A, AAAA, PTR, SOA},
    },
};

use super::zone::{Known, Zone};

/// How long an answer may be kept, in seconds: what a server's name stands for changes when it is made anew.
const TTL: u32 = 30;
/// Longest question that is looked at.
const LONGEST_QUESTION: usize = 4096;
/// Longest answer by UDP, whatever the client says it takes: more might be fragmented on the way (RFC 9715).
const LONGEST_BY_UDP: u16 = 1232;
/// Longest answer by UDP to who says nothing (RFC 1035).
const SHORTEST_BY_UDP: u16 = 512;

/// How a question came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// In one datagram.
    Udp,
    /// In a stream.
    Tcp,
}

/// What is to be done about a question.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Send this.
    Message(Vec<u8>),
    /// Somebody else has to be asked; see [`reply`].
    Elsewhere(Box<Message>),
}

/// Answers a question as far as it is about the network's own names; `None`: it is not answered.
#[must_use]
pub fn answer(zone: &Zone, bytes: &[u8], transport: Transport) -> Option<Answer> {
    if bytes.len() > LONGEST_QUESTION {
        return None;
    }
    let [id_high, id_low, flags, _, count_high, count_low, _, _, _, _, _, _, ..] = bytes else { return None };
    // Whatever says that it is an answer gets none.
    if flags & 0x80 != 0 {
        return None;
    }
    // More than one question is none that anybody asks (RFC 9619), and makes the library set aside room for all of them.
    let one = u16::from_be_bytes([*count_high, *count_low]) == 1;
    let Some(question) = one.then(|| Message::from_vec(bytes).ok()).flatten() else {
        let id = u16::from_be_bytes([*id_high, *id_low]);
        let refusal = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
        return refusal.to_vec().ok().map(Answer::Message);
    };
    let fail = |code| encode(begin(&question, code), &question, transport).map(Answer::Message);
    if question.metadata.op_code != OpCode::Query {
        return fail(ResponseCode::NotImp);
    }
    if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return fail(ResponseCode::BADVERS);
    }
    let [query] = question.queries.as_slice() else { return fail(ResponseCode::FormErr) };
    if query.query_class != DNSClass::IN || matches!(query.query_type, RecordType::AXFR | RecordType::IXFR) {
        return fail(ResponseCode::Refused);
    }
    match about(zone, query) {
        Some((code, answers, authority)) => {
            let mut message = begin(&question, code);
            message.metadata.authoritative = true;
            message.add_answers(answers);
            message.add_authorities(authority);
            encode(message, &question, transport).map(Answer::Message)
        }
        None if !question.metadata.recursion_desired => fail(ResponseCode::Refused),
        None => Some(Answer::Elsewhere(Box::new(question))),
    }
}

/// What the zone says; `None`: the name is none of it.
fn about(zone: &Zone, query: &Query) -> Option<(ResponseCode, Vec<Record>, Option<Record>)> {
    let name = &query.name;
    let record = |data: RData| Record::from_rdata(name.clone(), TTL, data);
    let asked = |kind: RecordType| query.query_type == kind || query.query_type == RecordType::ANY;
    let (records, apex): (Vec<Record>, Name) = match zone.look_up(name) {
        Known::Foreign => return None,
        Known::Nothing { apex } => return Some((ResponseCode::NXDomain, vec![], Some(authority(&apex)))),
        Known::Empty { apex } => {
            let is_apex = asked(RecordType::SOA) && *name == apex;
            (is_apex.then(|| authority(&apex)).into_iter().collect(), apex)
        }
        Known::Host(addresses) => {
            let of = |address: IpAddr| match address {
                IpAddr::V4(address) if asked(RecordType::A) => Some(record(RData::A(A(address)))),
                IpAddr::V6(address) if asked(RecordType::AAAA) => Some(record(RData::AAAA(AAAA(address)))),
                _ => None,
            };
            (addresses.into_iter().filter_map(of).collect(), name.base_name())
        }
        Known::Address(names) => {
            let pointers = names.into_iter().filter(|_| asked(RecordType::PTR));
            (pointers.map(|name| record(RData::PTR(PTR(name)))).collect(), name.base_name())
        }
    };
    // A negative answer says how long it holds (RFC 2308).
    let authority = records.is_empty().then(|| authority(&apex));
    Some((ResponseCode::NoError, records, authority))
}

fn authority(apex: &Name) -> Record {
    let contact = Name::from_ascii("nobody.invalid.").unwrap_or_default();
    let data = SOA::new(apex.clone(), contact, 1, 3600, 600, 86400, TTL);
    Record::from_rdata(apex.clone(), TTL, RData::SOA(data))
}

fn begin(question: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_desired = question.metadata.recursion_desired;
    message.metadata.checking_disabled = question.metadata.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(question.queries.first().cloned());
    message
}

/// What the client gets for a question that others had to be asked: their answer under the client's own number, or, if
/// nobody answered or nobody is to be asked (`others` is a code), that.
#[must_use]
pub fn reply(question: &Message, others: Result<Message, ResponseCode>, transport: Transport) -> Option<Vec<u8>> {
    let message = match others {
        Ok(found) => {
            let mut message = begin(question, found.metadata.response_code);
            message.metadata.truncation = found.metadata.truncation;
            message.metadata.authentic_data = found.metadata.authentic_data;
            message.answers = found.answers;
            message.authorities = found.authorities;
            message.additionals = found.additionals;
            message
        }
        Err(code) => begin(question, code),
    };
    encode(message, question, transport)
}

fn encode(mut message: Message, question: &Message, transport: Transport) -> Option<Vec<u8>> {
    if let Some(asked) = &question.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(LONGEST_BY_UDP).set_dnssec_ok(asked.flags().dnssec_ok);
        edns.set_rcode_high(message.metadata.response_code.high());
        message.set_edns(edns);
    }
    let longest = match (transport, &question.edns) {
        (Transport::Tcp, _) => usize::from(u16::MAX),
        (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(SHORTEST_BY_UDP, LONGEST_BY_UDP)),
        (Transport::Udp, None) => usize::from(SHORTEST_BY_UDP),
    };
    let bytes = message.to_vec().ok()?;
    if bytes.len() <= longest {
        return Some(bytes);
    }
    message.truncate().to_vec().ok().filter(|bytes| bytes.len() <= longest)
}
