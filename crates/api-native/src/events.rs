//! Server-sent events (WHATWG HTML, section 9.2).

use std::{fmt::Write as _, io, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use hyper::{
    Response,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use nephos_http::{Body, ErrorBody, ErrorDocument, Running};
use nephos_ops::{Event, EventStream};
use nephos_types::{Error, RequestId};
use tokio::time::timeout;

/// An answer that sends events until they end, the client leaves, or the server stops. An error is sent as a last event
/// named `error`, in the one error shape.
pub(crate) fn answer(
    events: EventStream,
    request: RequestId,
    keep_alive: Duration,
    running: &Running,
) -> Response<Body> {
    let stopped = running.stopped();
    let events = events.0.take_until(Box::pin(stopped));
    let body = stream::unfold(Some((events, true)), move |state| async move {
        let (mut events, first) = state?;
        if first {
            // Lets the client know at once that it is connected, and to come back soon when it is not.
            return Some((Ok::<_, io::Error>(Bytes::from_static(b"retry: 1000\n\n")), Some((events, false))));
        }
        match timeout(keep_alive, events.next()).await {
            Err(_) => Some((Ok(Bytes::from_static(b": alive\n\n")), Some((events, false)))),
            Ok(None) => None,
            Ok(Some(Ok(event))) => Some((Ok(render(&event)), Some((events, false)))),
            Ok(Some(Err(error))) => Some((Ok(render(&failure(&error, request))), None)),
        }
    });
    let mut response = Response::new(nephos_http::stream(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn failure(error: &Error, request: RequestId) -> Event {
    tracing::warn!(request_id = %request, code = %error.code, error = %error.chain(), "event stream failed");
    let document = ErrorDocument { error: ErrorBody { error, request_id: request, retryable: error.retryable() } };
    Event { id: None, name: "error".into(), data: serde_json::to_string(&document).unwrap_or_default() }
}

/// One event as text. Line breaks in id or name would start another field, so they are left out.
fn render(event: &Event) -> Bytes {
    let mut text = String::with_capacity(event.data.len() + 64);
    let one_line = |value: &str| value.replace(['\r', '\n', '\0'], "");
    if let Some(id) = &event.id {
        let _ = writeln!(text, "id: {}", one_line(id));
    }
    let _ = writeln!(text, "event: {}", one_line(&event.name));
    for line in event.data.split(['\r', '\n']) {
        let _ = writeln!(text, "data: {line}");
    }
    text.push('\n');
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_breaks_out_of_its_line() {
        let event = Event { id: Some("1\nevent: x".into()), name: "a\r\ndata: y".into(), data: "one\ntwo".into() };
        assert_eq!(render(&event), "id: 1event: x\nevent: adata: y\ndata: one\ndata: two\n\n");
    }
}
