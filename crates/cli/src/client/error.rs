//! Errors on the client's side: those the cloud answered with, and those of not reaching it.

use std::{error::Error as StdError, fmt};

use http::{HeaderMap, StatusCode};
use nephos_types::{Error, ErrorKind, NextStep, Reason};
use serde::Deserialize;
use serde_json::Value;

/// The cloud's name for the request that failed, to be looked up in its log.
#[must_use]
pub fn request_id(error: &Error) -> Option<&str> {
    cause::<Answered>(error).map(|answered| answered.request_id.as_str()).filter(|id| !id.is_empty())
}

/// Whether the cloud could not be reached (or was lost before it answered), as opposed to having refused.
#[must_use]
pub fn is_unreachable(error: &Error) -> bool {
    cause::<Unreachable>(error).is_some()
}

fn cause<T: StdError + 'static>(error: &Error) -> Option<&T> {
    StdError::source(error).and_then(|source| source.downcast_ref())
}

/// Marks an error that the cloud answered with.
#[derive(Debug)]
struct Answered {
    request_id: String,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answered in request {}", self.request_id)
    }
}

impl StdError for Answered {}

/// Marks an error of reaching the cloud.
#[derive(Debug)]
struct Unreachable(String);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Unreachable {}

/// Why no answer came.
#[derive(Debug)]
pub(super) struct Failure {
    /// The connection stood and broke, as opposed to: there was none.
    pub(super) lost: bool,
    /// Somebody answered, but not with a certificate that is trusted.
    distrusted: bool,
    why: String,
}

impl Failure {
    pub(super) fn of(error: hyper_util::client::legacy::Error) -> Self {
        Self { lost: !error.is_connect(), distrusted: is_distrust(&error), why: root_cause(&error) }
    }

    pub(super) fn into_error(self, url: &str) -> Error {
        if self.distrusted {
            return Error::invalid(
                "wrong_authority",
                format!("What answers at {url} is not the cloud that is trusted"),
            )
            .detail(self.why)
            .next("name that cloud's `ca.pem`: NEPHOS_CACERT, or `cacert` in clouds.yaml", None);
        }
        if self.lost { broken_off(&self.why) } else { unreachable(url, &self.why) }
    }
}

/// The innermost cause says what happened (`Connection refused`); the outer ones only where.
fn root_cause(error: &dyn StdError) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Whether TLS refused the other side's certificate.
fn is_distrust(error: &(dyn StdError + 'static)) -> bool {
    let mut next: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(cause) = next {
        // An `io::Error` hands on the cause of what it holds, not what it holds.
        let held = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if matches!(held.and_then(|held| held.downcast_ref()), Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// Nobody answers at that address.
fn unreachable(url: &str, why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "unreachable", format!("Cannot reach the cloud at {url}"))
        .detail(why.to_owned())
        .next("start it", Some("nephos up".into()))
        .next("or say where it is: --url URL or NEPHOS_URL", None)
        .source(Unreachable(why.to_owned()))
}

/// The connection broke before the answer was complete.
pub(crate) fn broken_off(why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "connection_lost", "The connection to the cloud was lost")
        .detail(why.to_owned())
        .next("look whether the change took place before repeating it", None)
        .source(Unreachable(why.to_owned()))
}

pub(super) fn request_id_header(headers: &HeaderMap) -> Option<&str> {
    headers.get("x-nephos-request-id").or_else(|| headers.get("x-request-id")).and_then(|value| value.to_str().ok())
}

#[derive(Deserialize)]
struct Envelope {
    error: Body,
}

/// The error on the wire. Everything has a default, so that a proxy's or a newer cloud's error still arrives.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    kind: Option<Value>,
    code: String,
    title: String,
    detail: String,
    reasons: Vec<Reason>,
    next: Vec<NextStep>,
    request_id: Option<String>,
}

/// The error that an answer outside 2xx carries.
pub(super) fn decode(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let request_id =
        |body: Option<String>| body.or_else(|| request_id_header(headers).map(str::to_owned)).unwrap_or_default();
    match serde_json::from_slice::<Envelope>(body) {
        Ok(Envelope { error: body }) => {
            let kind = body.kind.and_then(|kind| serde_json::from_value(kind).ok()).unwrap_or_else(|| kind_of(status));
            let mut error = Error::new(kind, body.code, body.title).detail(body.detail);
            error.reasons = body.reasons;
            error.next = body.next;
            error.source(Answered { request_id: request_id(body.request_id) })
        }
        Err(_) => {
            let text: String = String::from_utf8_lossy(body).chars().filter(|c| !c.is_control()).take(200).collect();
            Error::new(kind_of(status), "http_error", format!("The cloud answered {status}"))
                .detail(text)
                .source(Answered { request_id: request_id(None) })
        }
    }
}

/// The class of a status, where the answer does not name one.
fn kind_of(status: StatusCode) -> ErrorKind {
    match status.as_u16() {
        429 => ErrorKind::RateLimited,
        404 | 410 => ErrorKind::NotFound,
        502 => ErrorKind::Unavailable,
        status => ErrorKind::ALL.into_iter().find(|kind| kind.http_status() == status).unwrap_or(if status < 500 {
            ErrorKind::Invalid
        } else {
            ErrorKind::Internal
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_arrives_as_it_was_sent() {
        let sent = Error::conflict("name_taken", "There is a flavor `small`")
            .detail("in this cloud")
            .reason("small", "unique", "made yesterday")
            .next("choose another name", None);
        let mut body = serde_json::to_value(&sent).unwrap();
        body["request_id"] = "req-1".into();
        let body = serde_json::to_vec(&serde_json::json!({ "error": body })).unwrap();
        let received = decode(StatusCode::CONFLICT, &HeaderMap::new(), &body);
        assert_eq!(received, sent);
        assert_eq!(request_id(&received), Some("req-1"));
        assert!(!is_unreachable(&received));
    }

    #[test]
    fn every_kind_survives_without_being_named() {
        for kind in ErrorKind::ALL {
            let status = StatusCode::from_u16(kind.http_status()).unwrap();
            let decoded = decode(status, &HeaderMap::new(), br#"{"error":{"code":"x","title":"y"}}"#);
            assert_eq!(decoded.kind.http_status(), kind.http_status());
        }
    }

    #[test]
    fn an_answer_that_is_not_ours_still_says_what_came() {
        let error = decode(StatusCode::BAD_GATEWAY, &HeaderMap::new(), b"<h1>nginx</h1>\x1b[2J");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert_eq!(error.detail, "<h1>nginx</h1>[2J");
    }
}
