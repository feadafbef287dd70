//! Dialling through an HTTP proxy, for machines that reach nothing directly: CONNECT (RFC 9110, 9.3.6). What goes through
//! is TLS from end to end, so the proxy learns and changes nothing.

use std::io;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::{HttpConnector, proxy::Tunnel};
use nephos_types::{Error, Result};
use tokio::net::TcpStream;
use tower_service::Service;

/// An HTTP proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    address: Uri,
    authorization: Option<HeaderValue>,
}

impl Proxy {
    /// Reads `http://[USER:PASSWORD@]HOST[:PORT]`.
    pub fn parse(text: &str) -> Result<Self> {
        let unusable = |why: &str| {
            Error::invalid("invalid_proxy", "Not the address of an HTTP proxy")
                .detail(why.to_owned())
                .next("it is http://HOST:PORT, or http://USER:PASSWORD@HOST:PORT", None)
        };
        let rest = text.strip_prefix("http://").ok_or_else(|| unusable("it does not begin with http://"))?;
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, rest),
        };
        let address: Uri =
            format!("http://{address}").parse().map_err(|error: http::uri::InvalidUri| unusable(&error.to_string()))?;
        if address.host().is_none_or(str::is_empty) || address.path() != "/" || address.query().is_some() {
            return Err(unusable("it is a host and a port, nothing more"));
        }
        let authorization = match login {
            None => None,
            Some(login) if login.contains(':') => {
                let value = format!("Basic {}", STANDARD.encode(login));
                let mut value = HeaderValue::from_str(&value).map_err(|error| unusable(&error.to_string()))?;
                value.set_sensitive(true);
                Some(value)
            }
            Some(_) => return Err(unusable("a user stands there without a password")),
        };
        Ok(Self { address, authorization })
    }

    /// Connects to `HOST:PORT` behind it.
    pub(super) async fn dial(&self, address: &str) -> io::Result<TcpStream> {
        let mut tunnel = Tunnel::new(self.address.clone(), HttpConnector::new());
        if let Some(authorization) = &self.authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        let target: Uri = format!("https://{address}").parse().map_err(io::Error::other)?;
        let tunnelled = tunnel.call(target).await.map_err(|error| io::Error::other(format!("the proxy: {error}")))?;
        Ok(tunnelled.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_and_mistakes_named() {
        for good in
            ["http://proxy:3128", "http://10.0.0.1:8080/", "http://[fd00::1]:3128", "http://user:pa@ss@proxy:3128"]
        {
            let proxy = Proxy::parse(good).unwrap();
            assert_eq!(proxy.authorization.is_some(), good.contains('@'), "{good}");
        }
        for bad in
            ["", "proxy:3128", "https://proxy:3128", "http://", "http://user@proxy:1", "http://proxy:1/x", "http://a b"]
        {
            assert_eq!(
                Proxy::parse(bad).err().map(|error| error.code.to_string()).as_deref(),
                Some("invalid_proxy"),
                "{bad}"
            );
        }
    }
}
