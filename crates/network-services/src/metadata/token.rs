//! Session tokens of EC2's version 2. A token says for whom it is and until when, under a key that only this process has:
//! nothing is kept of it. After a restart guests get a 401 and ask for another, as they do when one runs out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use nephos_types::{Id, PortId, ServerId};
use ring::hmac;

/// Longest life of a token, in seconds.
pub(super) const LONGEST: u32 = 21600;

/// Makes and checks tokens.
#[derive(Debug)]
pub struct Tokens(hmac::Key);

impl Default for Tokens {
    fn default() -> Self {
        let bytes: [u8; 32] = rand::random();
        Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// What is signed. The port is part of it: a token is of no use elsewhere.
fn claims(server: ServerId, port: PortId, until: u64) -> Vec<u8> {
    [server.bits(), port.bits(), until].iter().flat_map(|number| number.to_be_bytes()).collect()
}

impl Tokens {
    /// A token for this many seconds.
    #[must_use]
    pub fn make(&self, server: ServerId, port: PortId, seconds: u32) -> String {
        let until = now() + u64::from(seconds);
        let tag = hmac::sign(&self.0, &claims(server, port, until));
        URL_SAFE_NO_PAD.encode([&until.to_be_bytes(), tag.as_ref()].concat())
    }

    /// Whether this is a token of theirs that has not run out.
    #[must_use]
    pub fn holds(&self, token: &[u8], server: ServerId, port: PortId) -> bool {
        if token.len() > 128 {
            return false;
        }
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else { return false };
        let Some((until, tag)) = bytes.split_first_chunk::<8>() else { return false };
        let until = u64::from_be_bytes(*until);
        hmac::verify(&self.0, &claims(server, port, until), tag).is_ok() && now() < until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_port_of_one_server_for_a_time() {
        let tokens = Tokens::default();
        let (server, port) = (ServerId::from_bits(1), PortId::from_bits(2));
        let token = tokens.make(server, port, 60);
        assert!(tokens.holds(token.as_bytes(), server, port));
        assert!(!tokens.holds(token.as_bytes(), ServerId::from_bits(3), port));
        assert!(!tokens.holds(token.as_bytes(), server, PortId::from_bits(3)));
        assert!(!tokens.holds(&token.as_bytes()[1..], server, port));
        assert!(!tokens.holds(b"", server, port));
        assert!(!Tokens::default().holds(token.as_bytes(), server, port), "of another process");
        assert!(!tokens.holds(tokens.make(server, port, 0).as_bytes(), server, port), "it has run out");
    }
}
