//! Server-sent events (HTML living standard, section 9.2), taken up again after the last event when the connection is
//! lost. A stream that the cloud ends in order is over; an event named `error` is why it ended before its time.

use std::{collections::VecDeque, time::Duration};

use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use nephos_ops::{Event, EventStream};
use nephos_types::{Error, Result};

use super::{Client, Prepared, error};

/// The most that one event may hold.
const MAX_EVENT: usize = 16 << 20;
/// How often a lost stream is asked for again before the loss is reported; about half a minute.
const ATTEMPTS: u32 = 12;

struct Subscription {
    client: Client,
    prepared: Prepared,
    body: Option<http_body_util::BodyDataStream<Incoming>>,
    parser: Parser,
    ready: VecDeque<Event>,
    ended: bool,
}

pub(super) async fn open(client: Client, mut prepared: Prepared) -> Result<EventStream> {
    prepared.headers.retain(|(name, _)| name != header::ACCEPT);
    prepared.headers.push((header::ACCEPT, HeaderValue::from_static("text/event-stream")));
    let response = client.exchange(&prepared).await?;
    let subscription = Subscription {
        client,
        prepared,
        body: Some(response.into_body().into_data_stream()),
        parser: Parser::default(),
        ready: VecDeque::new(),
        ended: false,
    };
    Ok(EventStream(Box::pin(futures_util::stream::unfold(subscription, |mut subscription| async move {
        let next = subscription.next().await?;
        Some((next, subscription))
    }))))
}

impl Subscription {
    async fn next(&mut self) -> Option<Result<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if event.name == "error" {
                    self.ended = true;
                    self.ready.clear();
                    return Some(Err(error::decode(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        &HeaderMap::new(),
                        event.data.as_bytes(),
                    )));
                }
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            let Some(body) = &mut self.body else {
                match self.reconnect().await {
                    Ok(()) => continue,
                    Err(error) => {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
            };
            match body.next().await {
                Some(Ok(bytes)) => {
                    if let Err(error) = self.parser.push(&bytes, &mut self.ready) {
                        self.ended = true;
                        return Some(Err(error));
                    }
                }
                Some(Err(_)) => self.body = None,
                None => self.ended = true,
            }
        }
    }

    async fn reconnect(&mut self) -> Result<()> {
        let name = HeaderName::from_static("last-event-id");
        self.prepared.headers.retain(|(header, _)| *header != name);
        if let Some(value) = self.parser.last_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()) {
            self.prepared.headers.push((name, value));
        }
        self.parser.forget_unfinished();
        let mut attempt = 0;
        loop {
            attempt += 1;
            match self.client.exchange(&self.prepared).await {
                Ok(response) => {
                    self.body = Some(response.into_body().into_data_stream());
                    return Ok(());
                }
                Err(error) if attempt < ATTEMPTS && (error::is_unreachable(&error) || error.retryable()) => {
                    let pause = Duration::from_millis(100).saturating_mul(1 << attempt.min(5));
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// Cuts a byte stream into events.
#[derive(Default)]
struct Parser {
    line: Vec<u8>,
    after_carriage_return: bool,
    data: String,
    has_data: bool,
    name: String,
    last_id: Option<String>,
}

impl Parser {
    fn push(&mut self, bytes: &[u8], ready: &mut VecDeque<Event>) -> Result<()> {
        for byte in bytes {
            let second_of_pair = std::mem::take(&mut self.after_carriage_return) && *byte == b'\n';
            if second_of_pair {
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                self.after_carriage_return = *byte == b'\r';
                let line = std::mem::take(&mut self.line);
                self.end_of_line(&String::from_utf8_lossy(&line), ready);
            } else {
                self.line.push(*byte);
            }
            if self.line.len() + self.data.len() > MAX_EVENT {
                return Err(Error::bug("The cloud sent an event of more than 16 MiB"));
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self, line: &str, ready: &mut VecDeque<Event>) {
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let data = std::mem::take(&mut self.data);
            if std::mem::take(&mut self.has_data) {
                let name = if name.is_empty() { "message".to_owned() } else { name };
                ready.push_back(Event { id: self.last_id.clone(), name: name.into(), data });
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push('\n');
                }
                self.data.push_str(value);
            }
            "event" => value.clone_into(&mut self.name),
            "id" if !value.contains('\0') => self.last_id = Some(value.to_owned()),
            // Comments keep the connection alive; `retry` and unknown fields are not for us.
            _ => {}
        }
    }

    fn forget_unfinished(&mut self) {
        *self = Self { last_id: self.last_id.take(), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] = b": hello\nid: 1\nevent: workflow\ndata: {\"a\":\ndata: 1}\n\nevent: empty\n\r\ndata:x\r\n\r\nid: 2\rdata: \xc3\xa4\r\r";

    #[test]
    fn events_are_the_same_however_the_bytes_are_cut() {
        let whole = {
            let (mut parser, mut ready) = (Parser::default(), VecDeque::new());
            parser.push(STREAM, &mut ready).unwrap();
            ready
        };
        let event = |id: &str, name: &'static str, data: &str| Event {
            id: Some(id.into()),
            name: name.into(),
            data: data.into(),
        };
        assert_eq!(
            whole,
            [event("1", "workflow", "{\"a\":\n1}"), event("1", "message", "x"), event("2", "message", "ä")]
        );
        for cut in 1..STREAM.len() {
            let (mut parser, mut ready) = (Parser::default(), VecDeque::new());
            parser.push(&STREAM[..cut], &mut ready).unwrap();
            parser.push(&STREAM[cut..], &mut ready).unwrap();
            assert_eq!(ready, whole, "cut at {cut}");
        }
    }
}
