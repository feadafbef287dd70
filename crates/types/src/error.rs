//! The one error. Its kind says what the caller can do about it; each front end has one function from kind to its dialect.

use std::{borrow::Cow, error::Error as StdError, fmt, sync::Arc};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shorthand for results with the one error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What class of failure this is, by what the caller can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The request itself is wrong: correct it. HTTP 400.
    Invalid,
    /// Log in (again). HTTP 401.
    Unauthenticated,
    /// This identity may not do this. HTTP 403.
    Forbidden,
    /// It does not exist, or must not be seen to exist. HTTP 404.
    NotFound,
    /// The HTTP method does not apply to this path. HTTP 405.
    MethodNotAllowed,
    /// The state of the resource, or a name taken, stands against it. HTTP 409.
    Conflict,
    /// The record changed since the caller read it. HTTP 412.
    Precondition,
    /// The request is larger than what is accepted. HTTP 413.
    TooLarge,
    /// The content type or format cannot be used. HTTP 415.
    UnsupportedMedia,
    /// A quota refuses. HTTP 413 in OpenStack, 429 in the native API.
    Quota,
    /// No node has room, or the backend is full. HTTP 507.
    Capacity,
    /// Too many requests: slow down. HTTP 429.
    RateLimited,
    /// What was asked for is not offered here. HTTP 501.
    Unsupported,
    /// Not now; the same call may succeed later. HTTP 503.
    Unavailable,
    /// Waiting took too long; the work may still go on. HTTP 504.
    Timeout,
    /// A defect or a broken environment; not the caller's doing. HTTP 500.
    Internal,
}

impl ErrorKind {
    /// Every kind; front ends test their translation against it.
    pub const ALL: [Self; 16] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::Precondition,
        Self::TooLarge,
        Self::UnsupportedMedia,
        Self::Quota,
        Self::Capacity,
        Self::RateLimited,
        Self::Unsupported,
        Self::Unavailable,
        Self::Timeout,
        Self::Internal,
    ];

    /// The status code of the native HTTP API.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Conflict => 409,
            Self::Precondition => 412,
            Self::TooLarge => 413,
            Self::UnsupportedMedia => 415,
            Self::Quota | Self::RateLimited => 429,
            Self::Internal => 500,
            Self::Unsupported => 501,
            Self::Unavailable => 503,
            Self::Timeout => 504,
            Self::Capacity => 507,
        }
    }

    /// Whether the same call may succeed later without any change.
    #[must_use]
    pub const fn retryable(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable | Self::Timeout | Self::Capacity)
    }
}

/// One of several grounds for a refusal, e.g. why one node cannot take a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Reason {
    /// What the reason is about: a node's name, a field's path.
    pub subject: String,
    /// The rule that refuses: `memory`, `required`, …
    pub constraint: String,
    /// A sentence, with need and have where there are numbers.
    pub detail: String,
}

/// Something the reader can do next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextStep {
    /// In words.
    #[serde(rename = "do")]
    pub action: String,
    /// As a command, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
}

/// The one error: what happened, why, and what to do.
///
/// `title`, `detail`, `reasons` and `next` are for the caller and never hold secrets or internals; `source` is for the
/// log only and is not serialised.
#[derive(Clone, Serialize, Deserialize)]
pub struct Error {
    /// The class.
    pub kind: ErrorKind,
    /// A stable word for programs and for `nephos help CODE`.
    pub code: Cow<'static, str>,
    /// One line: what happened.
    pub title: Cow<'static, str>,
    /// Why, in the concrete case; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// All grounds, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<NextStep>,
    #[serde(skip)]
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of this kind.
    pub fn new(kind: ErrorKind, code: impl Into<Cow<'static, str>>, title: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            code: code.into(),
            title: title.into(),
            detail: String::new(),
            reasons: vec![],
            next: vec![],
            source: None,
        }
    }

    /// The request is wrong.
    pub fn invalid(code: &'static str, title: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Invalid, code, title)
    }

    /// Nothing by that name or id, as far as this caller may know.
    pub fn not_found(what: &str, reference: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::NotFound,
            format!("{}_not_found", what.replace([' ', '-'], "_")),
            format!("No {what} `{reference}`"),
        )
        .next(format!("list what there is: nephos {what} list"), Some(format!("nephos {what} list")))
    }

    /// State or a taken name stands against it.
    pub fn conflict(code: &'static str, title: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Conflict, code, title)
    }

    /// A defect or a broken environment; `source` goes to the log, not to the caller.
    pub fn internal(title: impl Into<Cow<'static, str>>, source: impl StdError + Send + Sync + 'static) -> Self {
        Self::new(ErrorKind::Internal, "internal", title)
            .source(source)
            .next("look for the request id in the log of `nephos up`, and report it", None)
    }

    /// A defect found without an underlying error.
    pub fn bug(title: impl Into<Cow<'static, str>>) -> Self {
        Self::new(ErrorKind::Internal, "internal", title)
            .next("look for the request id in the log of `nephos up`, and report it", None)
    }

    /// With the concrete why.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// With one more ground.
    #[must_use]
    pub fn reason(
        mut self,
        subject: impl Into<String>,
        constraint: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        self.reasons.push(Reason { subject: subject.into(), constraint: constraint.into(), detail: detail.into() });
        self
    }

    /// With one more thing to do next.
    #[must_use]
    pub fn next(mut self, action: impl Into<String>, cmd: Option<String>) -> Self {
        self.next.push(NextStep { action: action.into(), cmd });
        self
    }

    /// With the cause, for the log.
    #[must_use]
    pub fn source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Whether the same call may succeed later without any change.
    #[must_use]
    pub fn retryable(&self) -> bool {
        self.kind.retryable()
    }

    /// The whole chain of causes on one line, for the log.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        if !self.detail.is_empty() {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

impl Eq for Error {}

impl PartialEq for Error {
    /// Equal as seen by a caller; causes are for the log and do not count.
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.code == other.code
            && self.title == other.title
            && self.detail == other.detail
            && self.reasons == other.reasons
            && self.next == other.next
    }
}
