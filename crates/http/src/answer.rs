//! The one error shape of the native interfaces, and JSON answers.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE},
};
use nephos_types::{Error, ErrorKind, RequestId};
use serde::{Deserialize, Serialize};

use crate::body::{Body, full};

/// `{"error": {…}}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorDocument<E = Error> {
    /// What went wrong.
    pub error: ErrorBody<E>,
}

/// An error as it is shown to callers: `code`, `kind`, `title`, `detail`, `reasons`, `next` and these.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody<E = Error> {
    /// The error itself; its cause is not shown.
    #[serde(flatten)]
    pub error: E,
    /// The request, as in the log and the header `x-nephos-request-id`.
    pub request_id: RequestId,
    /// Whether the same call may succeed later without any change.
    pub retryable: bool,
}

/// A JSON answer.
pub fn json(status: StatusCode, bytes: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // Answers hold what one caller may see, sometimes a secret that is shown once.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An error in the native shape. Defects are logged here with their cause, under the request id the caller gets.
#[must_use]
pub fn error(error: &Error, request: RequestId) -> Response<Body> {
    if error.kind == ErrorKind::Internal {
        tracing::error!(request_id = %request, code = %error.code, error = %error.chain(), "request failed");
    }
    let document = ErrorDocument { error: ErrorBody { error, request_id: request, retryable: error.retryable() } };
    let status = StatusCode::from_u16(error.kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // Strings and enums cannot fail to serialise.
    let mut response = json(status, serde_json::to_vec(&document).unwrap_or_default());
    let headers = response.headers_mut();
    match error.kind {
        ErrorKind::Unauthenticated => {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"nephos\""));
        }
        ErrorKind::RateLimited | ErrorKind::Unavailable => {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        _ => {}
    }
    response
}
