//! What a request is answered: a pure function of the request and of what the server is told.

use std::borrow::Cow;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nephos_node_api::metadata::ServerMetadata;
use nephos_types::PortId;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::{ec2, open_stack, token, token::Tokens};

/// Longest path that is looked at.
const LONGEST_PATH: usize = 1024;
/// Random bytes that a guest is given for its kernel.
const SEED: usize = 512;

const TEXT: &str = "text/plain";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// What is looked at of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// `GET`, …
    pub method: &'a str,
    /// Path, without query.
    pub path: &'a str,
    /// `X-aws-ec2-metadata-token`.
    pub token: Option<&'a [u8]>,
    /// `X-aws-ec2-metadata-token-ttl-seconds`.
    pub token_seconds: Option<&'a [u8]>,
    /// Whether there is an `X-Forwarded-For`.
    pub forwarded: bool,
}

/// What is to be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// This.
    Found {
        /// Its type.
        content_type: &'static str,
        /// It.
        content: String,
    },
    /// A new token.
    Token {
        /// It.
        token: String,
        /// For how long.
        seconds: u32,
        /// How many hops it may take.
        hop_limit: u8,
    },
    /// The password that the guest left, if it did.
    Password,
    /// What the body says becomes the password.
    SetPassword,
    /// A refusal: the status of HTTP.
    Refused(u16),
    /// Another method: what is allowed.
    Method(&'static str),
}

impl Response {
    fn text(content: impl Into<String>) -> Self {
        Self::Found { content_type: TEXT, content: content.into() }
    }

    fn json(content: &Value) -> Self {
        Self::Found { content_type: JSON, content: content.to_string() }
    }

    fn bytes(content: Option<&String>) -> Self {
        content.map_or(Self::Refused(404), |content| Self::Found { content_type: BYTES, content: content.clone() })
    }

    fn lines(lines: &[&str]) -> Self {
        Self::text(lines.join("\n"))
    }
}

/// Answers a request that came by this port of this server.
#[must_use]
pub fn answer(server: &ServerMetadata, port: PortId, tokens: &Tokens, request: Request<'_>) -> Response {
    if !server.access.enabled {
        return Response::Refused(403);
    }
    if request.path.len() > LONGEST_PATH {
        return Response::Refused(414);
    }
    let Some(parts) = parts(request.path) else { return Response::Refused(400) };
    let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
    if parts == ["latest", "api", "token"] {
        return make_token(server, port, tokens, request);
    }
    let holds = |token| tokens.holds(token, server.id, port);
    match request.token {
        Some(token) if !holds(token) => return Response::Refused(401),
        None if server.access.tokens_required => return Response::Refused(401),
        _ => {}
    }
    match (request.method, parts.as_slice()) {
        ("GET" | "HEAD", ["openstack", rest @ ..]) => open_stack(server, rest),
        ("POST", ["openstack", version, "password"]) if open_stack::VERSIONS.contains(version) => Response::SetPassword,
        (_, ["openstack", _, "password"]) => Response::Method("GET, HEAD, POST"),
        ("GET" | "HEAD", rest) => ec2(server, rest),
        _ => Response::Method("GET, HEAD"),
    }
}

/// The parts of a path, decoded; `None` if they are not text.
fn parts(path: &str) -> Option<Vec<Cow<'_, str>>> {
    path.split('/').filter(|part| !part.is_empty()).map(|part| percent_decode_str(part).decode_utf8().ok()).collect()
}

fn make_token(server: &ServerMetadata, port: PortId, tokens: &Tokens, request: Request<'_>) -> Response {
    if request.method != "PUT" {
        return Response::Method("PUT");
    }
    // It comes from somewhere behind a proxy in the guest: that is what tokens are against.
    if request.forwarded {
        return Response::Refused(403);
    }
    let seconds = request.token_seconds.and_then(|text| std::str::from_utf8(text).ok()?.trim().parse::<u32>().ok());
    match seconds {
        Some(seconds) if (1..=token::LONGEST).contains(&seconds) => Response::Token {
            token: tokens.make(server.id, port, seconds),
            seconds,
            hop_limit: server.access.hop_limit.max(1),
        },
        _ => Response::Refused(400),
    }
}

fn ec2(server: &ServerMetadata, parts: &[&str]) -> Response {
    let Some((version, rest)) = parts.split_first() else { return Response::lines(ec2::VERSIONS) };
    if !ec2::VERSIONS.contains(version) {
        return Response::Refused(404);
    }
    let found = |content: Option<String>| content.map_or(Response::Refused(404), Response::text);
    match rest {
        [] if server.user_data.is_some() => Response::lines(&["dynamic", "meta-data", "user-data"]),
        [] => Response::lines(&["dynamic", "meta-data"]),
        ["meta-data", rest @ ..] => found(ec2::meta_data(server).get(rest)),
        ["dynamic", rest @ ..] => found(ec2::dynamic(server).get(rest)),
        ["user-data"] => Response::bytes(server.user_data.as_ref()),
        _ => Response::Refused(404),
    }
}

fn open_stack(server: &ServerMetadata, parts: &[&str]) -> Response {
    let Some((version, rest)) = parts.split_first() else { return Response::lines(open_stack::VERSIONS) };
    if *version == "content" {
        let file = rest.first().filter(|_| rest.len() == 1).and_then(|place| {
            let place = place.parse::<usize>().ok().filter(|number| format!("{number:04}") == **place)?;
            server.files.get(place)
        });
        return Response::bytes(file.map(|(_, content)| content));
    }
    if !open_stack::VERSIONS.contains(version) {
        return Response::Refused(404);
    }
    match rest {
        [] => {
            let user_data = if server.user_data.is_some() { "user_data\n" } else { "" };
            let files = "vendor_data.json\nnetwork_data.json\nvendor_data2.json";
            Response::text(format!("meta_data.json\n{user_data}password\n{files}"))
        }
        ["meta_data.json"] => {
            let seed: [u8; SEED] = rand::random();
            Response::json(&open_stack::meta_data(server, Some(&STANDARD.encode(seed))))
        }
        ["network_data.json"] => Response::json(&open_stack::network_data(server)),
        ["vendor_data.json"] => Response::json(&open_stack::vendor_data(server)),
        // There is one place for what the operator wants; said twice it would be done twice.
        ["vendor_data2.json"] => Response::json(&json!({})),
        ["user_data"] => Response::bytes(server.user_data.as_ref()),
        ["password"] => Response::Password,
        _ => Response::Refused(404),
    }
}
