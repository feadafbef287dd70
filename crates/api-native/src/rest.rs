//! REST: a request in, an operation called, its answer out.

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::{Body as _, Incoming},
    header::{ALLOW, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
    http::request::Parts,
    upgrade::OnUpgrade,
};
use nephos_http::{Body, Exchange, Peer, Running, Seen};
use nephos_ops::{Answer, AnswerKind, Context, Download, Effect};
use nephos_types::{Error, ErrorKind, RequestId, Result};
use serde_json::Value;

use crate::{
    Native, events, gate, input,
    route::{Found, Route},
    tunnel,
};

impl Native {
    /// Answers one request under `/v1`.
    pub(crate) async fn rest(&self, exchange: Exchange) -> Response<Body> {
        let Exchange { mut request, id, peer, running } = exchange;
        let upgrade = request.extensions_mut().remove::<OnUpgrade>();
        let (parts, body) = request.into_parts();
        let mut seen = Seen::default();
        let mut response = match self.routes.find(&parts.method, parts.uri.path()) {
            Ok(Found::Route(route, path)) => {
                let spec = &route.entry.spec;
                seen.route = spec.path.into();
                seen.changes = spec.effect != Effect::Reads;
                let exchange = Parsed { parts: &parts, body, upgrade, id, peer: &peer, running: &running };
                match self.call(route, path, exchange, &mut seen).await {
                    Ok(response) => response,
                    Err(error) => nephos_http::error(&error, id),
                }
            }
            Ok(Found::OtherMethods(allow)) => {
                let error = Error::new(ErrorKind::MethodNotAllowed, "method_not_allowed", "Not with this method")
                    .detail(format!("this path answers {allow}"));
                let mut response = nephos_http::error(&error, id);
                if let Ok(allow) = HeaderValue::try_from(allow) {
                    response.headers_mut().insert(ALLOW, allow);
                }
                response
            }
            Ok(Found::Nothing) => nephos_http::error(&self.gate.anonymous(&peer).err().unwrap_or_else(no_path), id),
            Err(error) => nephos_http::error(&error, id),
        };
        if parts.method == Method::HEAD {
            strip(&mut response);
        }
        response.extensions_mut().insert(seen);
        response
    }

    async fn call(
        &self,
        route: &Route,
        path: Vec<String>,
        exchange: Parsed<'_>,
        seen: &mut Seen,
    ) -> Result<Response<Body>> {
        let Parsed { parts, body, upgrade, id, peer, running } = exchange;
        let spec = &route.entry.spec;
        let token = gate::token(&parts.headers)?;
        let mut context = self.gate.admit(token, spec.permission, peer, id, "rest").await?;
        note(&context, seen);
        context.origin = gate::origin(parts, peer);
        if spec.effect == Effect::Creates {
            context.idempotency_key = idempotency_key(&parts.headers)?;
        }
        let mut fields = input::from_path(route, path);
        input::add_query(route, parts.uri.query(), &mut fields)?;
        if let Some(last) = parts.headers.get("last-event-id")
            && let Some(field) = route.resume_field
        {
            let last = last.to_str().map_err(|_| {
                Error::invalid("invalid_last_event_id", "The header `Last-Event-ID` is none that was sent")
            })?;
            fields.insert(field.to_owned(), route.fields.coerce(field, last));
        }
        if spec.upload {
            context.set_upload(Box::pin(nephos_http::into_stream(body, self.settings.pause)));
        } else if !body.is_end_stream() {
            if route.from_query {
                return Err(Error::invalid("body_refused", "This request takes no body")
                    .next("pass the fields in the query", None));
            }
            input::must_be_json(&parts.headers)?;
            let body = nephos_http::collect(body, self.settings.body_bytes, self.settings.pause).await?;
            input::add_body(route, &body, &mut fields)?;
        }
        let handshake = match route.entry.answer {
            AnswerKind::Tunnel => Some(tunnel::Handshake::read(parts, upgrade)?),
            _ => None,
        };
        match ((route.entry.call)(context, Value::Object(fields)).await?, handshake) {
            (Answer::Json(bytes), _) => Ok(nephos_http::json(
                if route.entry.answer == AnswerKind::Started { StatusCode::ACCEPTED } else { StatusCode::OK },
                bytes,
            )),
            (Answer::Nothing, _) => {
                let mut response = Response::new(nephos_http::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                Ok(response)
            }
            (Answer::Download(download), _) => Ok(stream(download)),
            (Answer::Events(stream), _) => Ok(events::answer(stream, id, self.settings.keep_alive, running)),
            (Answer::Tunnel(duplex), Some(handshake)) => handshake.answer(duplex, self.settings.keep_alive, running),
            (Answer::Tunnel(_), None) => Err(Error::bug(format!("{} answered with a tunnel", spec.name))),
        }
    }
}

/// The refusal of a path that leads nowhere.
pub(crate) fn no_path() -> Error {
    Error::new(ErrorKind::NotFound, "path_not_found", "No such path").next("see what there is: GET /openapi.json", None)
}

/// A request taken apart.
struct Parsed<'a> {
    parts: &'a Parts,
    body: Incoming,
    upgrade: Option<OnUpgrade>,
    id: RequestId,
    peer: &'a Peer,
    running: &'a Running,
}

/// Tells the log who asks.
pub(crate) fn note(context: &Context, seen: &mut Seen) {
    if let Some(identity) = &context.caller.identity {
        seen.actor = Some(identity.user.to_string());
        seen.project = identity.project().map(|project| project.to_string());
    }
}

/// The key that makes a creating request repeatable: 1 to 255 visible ASCII characters.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>> {
    let mut values = headers.get_all("idempotency-key").into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    let usable = |text: &&str| (1..=255).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    match value.to_str().ok().filter(usable) {
        Some(text) if values.next().is_none() => Ok(Some(text.to_owned())),
        _ => Err(Error::invalid("invalid_idempotency_key", "The header `Idempotency-Key` cannot be used")
            .detail("it comes once and has 1 to 255 visible ASCII characters, no blanks")
            .next("send a UUID, the same one when repeating the request", None)),
    }
}

fn stream(download: Download) -> Response<Body> {
    let mut response = Response::new(nephos_http::stream(download.body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(download.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(length) = download.length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// Leaves of an answer what HEAD asks for.
pub(crate) fn strip(response: &mut Response<Body>) {
    if let Some(length) = response.body().size_hint().exact()
        && response.status() != StatusCode::NO_CONTENT
    {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    *response.body_mut() = nephos_http::empty();
}
