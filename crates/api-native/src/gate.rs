//! Who asks, and whether they ask too often.

use std::sync::Arc;

use hyper::{
    HeaderMap,
    header::{AUTHORIZATION, HOST, SEC_WEBSOCKET_PROTOCOL},
    http::{request::Parts, uri::Authority},
};
use nephos_http::{
    Peer,
    rate::{self, Limiter},
};
use nephos_ops::{Caller, Cloud, Context, Credentials, Grant, Identity, Permission};
use nephos_types::{Error, ErrorKind, Id, RequestId, Result};

/// The subprotocol by which a browser, which cannot set headers on a WebSocket, passes its token.
pub(crate) const BEARER_PROTOCOL: &str = "bearer.";

/// Makes contexts for requests that are let in.
pub(crate) struct Gate {
    cloud: Cloud,
    limiter: Arc<Limiter>,
}

impl Gate {
    pub(crate) fn new(cloud: Cloud, limiter: Arc<Limiter>) -> Self {
        Self { cloud, limiter }
    }

    /// Lets a request in: its caller is known if a valid token came along, must be known if `permission` asks for it,
    /// and has not asked too often.
    ///
    /// Where no login is needed, a token that is no longer valid counts as none: otherwise whoever holds an old one
    /// could not log in.
    pub(crate) async fn admit(
        &self,
        token: Option<&str>,
        permission: Permission,
        peer: &Peer,
        request: RequestId,
        front_end: &'static str,
    ) -> Result<Context> {
        self.look(peer)?;
        let anyone = permission.0.contains(&Grant::Anyone);
        let identity = match token {
            Some(token) => match self.cloud.identify(Credentials::Token(token.to_owned())).await {
                Ok(identity) => Ok(Some(identity)),
                Err(error) if anyone && error.kind == ErrorKind::Unauthenticated => Ok(None),
                Err(error) => Err(error),
            },
            None if anyone => Ok(None),
            None => Err(missing()),
        };
        match &identity {
            Ok(Some(identity)) => self.limiter.user(identity.user.bits()).map_err(rate::refusal)?,
            _ => self.anonymous(peer)?,
        }
        Ok(self.context(identity?, peer, request, front_end))
    }

    /// Refuses an address that asked too often, without charging it.
    pub(crate) fn look(&self, peer: &Peer) -> Result<()> {
        self.limiter.check(peer.address.map(|address| address.ip())).map_err(rate::refusal)
    }

    /// Charges what needs no login to its address.
    pub(crate) fn anonymous(&self, peer: &Peer) -> Result<()> {
        self.limiter.anonymous(peer.address.map(|address| address.ip())).map_err(rate::refusal)
    }

    fn context(
        &self,
        identity: Option<Arc<Identity>>,
        peer: &Peer,
        request: RequestId,
        front_end: &'static str,
    ) -> Context {
        let mut context = self.cloud.context(Caller { identity, address: peer.to_string(), front_end });
        context.request = request;
        context
    }
}

fn missing() -> Error {
    Error::new(ErrorKind::Unauthenticated, "no_token", "Not logged in")
        .detail("the request carries no token")
        .next("pass a token as `Authorization: Bearer TOKEN` or `X-Auth-Token: TOKEN`", Some("nephos login".to_owned()))
}

/// The token that a request carries in its headers.
pub(crate) fn token(headers: &HeaderMap) -> Result<Option<&str>> {
    let unusable = |detail: &str| {
        Error::new(ErrorKind::Unauthenticated, "unusable_credentials", "These credentials cannot be used")
            .detail(detail)
            .next("pass a token as `Authorization: Bearer TOKEN` or `X-Auth-Token: TOKEN`", None)
    };
    if let Some(value) = headers.get(AUTHORIZATION) {
        let value = value.to_str().map_err(|_| unusable("`Authorization` has characters that no token has"))?;
        return match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Ok(Some(token.trim())),
            _ => Err(unusable("the scheme of `Authorization` is not `Bearer`")),
        };
    }
    if let Some(value) = headers.get("x-auth-token") {
        return value.to_str().map(Some).map_err(|_| unusable("`X-Auth-Token` has characters that no token has"));
    }
    Ok(protocols(headers).find_map(|protocol| protocol.strip_prefix(BEARER_PROTOCOL)))
}

/// By what URL a client reached the cloud, as far as it says so. A proxy in front that ends TLS says that in
/// `X-Forwarded-Proto`.
pub(crate) fn origin(parts: &Parts, peer: &Peer) -> Option<String> {
    let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| parts.uri.authority().map(Authority::as_str))?;
    let usable = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_' | b':' | b'[' | b']' | b'%');
    if host.is_empty() || host.len() > 255 || !host.bytes().all(usable) {
        return None;
    }
    let behind_tls = parts.headers.get("x-forwarded-proto").is_some_and(|scheme| scheme == "https");
    Some(format!("{}://{host}", if peer.tls || behind_tls { "https" } else { "http" }))
}

/// The WebSocket subprotocols that a client offers.
pub(crate) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}
