//! XML-RPC: every operation with a JSON answer is a method of the same name.
//!
//! A method takes at most one struct, the operation's input. The token comes in the request's headers as for REST, or as
//! a string before the struct: `flavor.list(token, {"limit": 10})`. Members that are `nil` count as absent where the
//! field does not know null; whole numbers that a client cannot send as `int` may be sent as strings. An operation
//! without an answer returns `true`.
//!
//! Faults of the protocol have the codes of `nephos_wire::xmlrpc::code`. Faults of operations have the HTTP status of
//! the same error over REST as their code (a quota that refuses: 1429, to tell it from asking too often: 429), and
//! `title: detail` as their text.

use std::collections::{BTreeMap, HashMap};

use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use nephos_http::{Body, Exchange, Peer, Seen};
use nephos_ops::{Answer, AnswerKind, Effect, Entry, schema::Fields};
use nephos_types::{Error, ErrorKind, RequestId, Result};
use nephos_wire::xmlrpc::{Call, Fault, Value, code, parse_call, render_fault, render_response};
use serde_json::{Map, Value as Json};

use crate::{Native, gate, rest};

/// The path.
pub(crate) const PATH: &str = "/xmlrpc";
/// The most calls in one `system.multicall`.
const MAX_CALLS: usize = 100;

const SYSTEM: [(&str, &str, &[&str]); 5] = [
    ("system.getCapabilities", "What this server can, by specification.", &["struct"]),
    ("system.listMethods", "The names of all methods.", &["array"]),
    ("system.methodHelp", "What a method does and takes.", &["string", "string"]),
    ("system.methodSignature", "The types that a method returns and takes.", &["array", "string"]),
    (
        "system.multicall",
        "Calls several methods in order: an array of structs with methodName and params. For each it returns an array \
         with the one result, or a struct with faultCode and faultString.",
        &["array", "array"],
    ),
];

/// The operations that are methods.
pub(crate) struct Methods(HashMap<&'static str, Offered>);

struct Offered {
    entry: Entry,
    fields: Fields,
}

impl Methods {
    pub(crate) fn new(table: &'static [Entry]) -> Self {
        let offered = |entry: &&Entry| {
            matches!(entry.answer, AnswerKind::Json | AnswerKind::Started | AnswerKind::Nothing) && !entry.spec.upload
        };
        let method = |entry: &Entry| (entry.spec.name, Offered { entry: *entry, fields: Fields::of(entry) });
        Self(table.iter().filter(offered).map(method).collect())
    }

    fn list(&self) -> Value {
        let mut names: Vec<&str> = self.0.keys().copied().chain(SYSTEM.iter().map(|(name, ..)| *name)).collect();
        names.sort_unstable();
        Value::Array(names.into_iter().map(Value::from).collect())
    }

    fn find(&self, name: &str) -> Result<&Offered, Fault> {
        self.0.get(name).ok_or_else(|| {
            Fault::new(
                code::METHOD_NOT_FOUND,
                format!("There is no method `{}`; system.listMethods names all", shorten(name)),
            )
        })
    }

    fn help(&self, name: &str) -> Result<String, Fault> {
        if let Some((_, help, _)) = SYSTEM.iter().find(|(known, ..)| *known == name) {
            return Ok((*help).to_owned());
        }
        let Offered { entry, fields } = self.find(name)?;
        let mut help = format!("{}.", entry.spec.summary);
        if !entry.spec.description.is_empty() {
            help = format!("{help} {}", entry.spec.description);
        }
        for field in fields.names() {
            let need = if fields.required(field) { ", required" } else { "" };
            let what = fields.description(field).unwrap_or_default();
            help = format!("{help}\n  {field} ({}{need}): {what}", fields.json_type(field));
        }
        Ok(help)
    }

    /// Ways to call: with and without the token in front, and without a struct where nothing is required.
    fn signatures(&self, name: &str) -> Result<Value, Fault> {
        let array = |types: &[&str]| Value::Array(types.iter().copied().map(Value::from).collect());
        if let Some((_, _, signature)) = SYSTEM.iter().find(|(known, ..)| *known == name) {
            return Ok(Value::Array(vec![array(signature)]));
        }
        let Offered { entry, fields } = self.find(name)?;
        let returns = match entry.answer {
            AnswerKind::Nothing => "boolean",
            _ => "struct",
        };
        let mut signatures = vec![array(&[returns, "struct"]), array(&[returns, "string", "struct"])];
        if !fields.names().any(|field| fields.required(field)) {
            signatures.extend([array(&[returns]), array(&[returns, "string"])]);
        }
        Ok(Value::Array(signatures))
    }
}

/// What one HTTP request brings to each of its calls.
struct Caller<'a> {
    token: Option<&'a str>,
    peer: &'a Peer,
    id: RequestId,
    origin: Option<String>,
}

impl Native {
    /// Answers one request to `/xmlrpc`.
    pub(crate) async fn xmlrpc(&self, exchange: Exchange) -> Response<Body> {
        let Exchange { request, id, peer, .. } = exchange;
        let (parts, body) = request.into_parts();
        let mut seen = Seen { dialect: Some("xmlrpc"), route: "unknown".into(), ..Seen::default() };
        let outcome = async {
            if parts.uri.path() != PATH {
                return Err(rest::no_path());
            }
            if parts.method != Method::POST {
                return Err(Error::new(ErrorKind::MethodNotAllowed, "method_not_allowed", "XML-RPC is asked by POST"));
            }
            must_be_xml(&parts.headers)?;
            let token = gate::token(&parts.headers)?;
            self.gate.look(&peer)?;
            let body = nephos_http::collect(body, self.settings.body_bytes, self.settings.pause).await?;
            Ok((token, body))
        };
        let mut response = match outcome.await {
            Ok((token, body)) => {
                let caller = Caller { token, peer: &peer, id, origin: gate::origin(&parts, &peer) };
                let outcome = match parse_call(&body) {
                    Ok(call) => self.dispatch(call, &caller, &mut seen).await,
                    Err(fault) => Err(fault),
                };
                let (text, fault) = match outcome {
                    Ok(value) => (render_response(&value), None),
                    Err(fault) => (render_fault(&fault), Some(fault.code)),
                };
                let mut response = Response::new(nephos_http::full(text));
                let headers = response.headers_mut();
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/xml; charset=utf-8"));
                if fault == Some(fault_code(ErrorKind::RateLimited)) {
                    headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
                }
                // Faults travel in HTTP 200, but are counted as what they are.
                seen.code = fault.map(counted_as);
                response
            }
            Err(error) => {
                let mut response = nephos_http::error(&error, id);
                if response.status() == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                }
                response
            }
        };
        response.extensions_mut().insert(seen);
        response
    }

    async fn dispatch(&self, call: Call, caller: &Caller<'_>, seen: &mut Seen) -> Result<Value, Fault> {
        if call.method != "system.multicall" {
            return self.one(call, caller, seen).await;
        }
        seen.route = "system.multicall".into();
        self.gate.anonymous(caller.peer).map_err(|error| fault(&error, caller.id))?;
        let [Value::Array(calls)] = <[Value; 1]>::try_from(call.params).map_err(|_| parameters("one array"))? else {
            return Err(parameters("one array"));
        };
        if calls.len() > MAX_CALLS {
            return Err(parameters(&format!("at most {MAX_CALLS} calls")));
        }
        let mut results = Vec::with_capacity(calls.len());
        for call in calls {
            let mut inner = Seen::default();
            let result = match into_call(call) {
                Ok(call) => self.one(call, caller, &mut inner).await,
                Err(fault) => Err(fault),
            };
            seen.changes |= inner.changes;
            seen.actor = seen.actor.take().or(inner.actor);
            seen.project = seen.project.take().or(inner.project);
            results.push(result.map_or_else(Fault::into_value, |value| Value::Array(vec![value])));
        }
        Ok(Value::Array(results))
    }

    async fn one(&self, call: Call, caller: &Caller<'_>, seen: &mut Seen) -> Result<Value, Fault> {
        if let Some((name, ..)) = SYSTEM.iter().find(|(name, ..)| *name == call.method) {
            seen.route = (*name).into();
            self.gate.anonymous(caller.peer).map_err(|error| fault(&error, caller.id))?;
            return self.system(&call);
        }
        let Offered { entry, fields } = match self.methods.find(&call.method) {
            Ok(method) => method,
            Err(unknown) => {
                self.gate.anonymous(caller.peer).map_err(|error| fault(&error, caller.id))?;
                return Err(unknown);
            }
        };
        seen.route = entry.spec.name.into();
        seen.changes = entry.spec.effect != Effect::Reads;
        let mut params = call.params.into_iter();
        let (given, input) = match (params.next(), params.next(), params.next()) {
            (None, ..) => (None, BTreeMap::new()),
            (Some(Value::Struct(input)), None, _) => (None, input),
            (Some(Value::String(token)), None, _) => (Some(token), BTreeMap::new()),
            (Some(Value::String(token)), Some(Value::Struct(input)), None) => (Some(token), input),
            _ => return Err(parameters("a struct, before it a token as string if it is not in the headers")),
        };
        let token = given.as_deref().or(caller.token);
        let answer = async {
            let mut context = self.gate.admit(token, entry.spec.permission, caller.peer, caller.id, "xmlrpc").await?;
            context.origin.clone_from(&caller.origin);
            rest::note(&context, seen);
            (entry.call)(context, Json::Object(object(fields, input)?)).await
        };
        match answer.await.map_err(|error| fault(&error, caller.id))? {
            Answer::Json(bytes) => serde_json::from_slice::<Json>(&bytes)
                .map(Value::from)
                .map_err(|error| fault(&Error::internal("An answer could not be rendered", error), caller.id)),
            _ => Ok(Value::Boolean(true)),
        }
    }

    fn system(&self, call: &Call) -> Result<Value, Fault> {
        let name = || match call.params.as_slice() {
            [Value::String(name)] => Ok(name.as_str()),
            _ => Err(parameters("one string, a method's name")),
        };
        let nothing = || if call.params.is_empty() { Ok(()) } else { Err(parameters("nothing")) };
        match call.method.as_str() {
            "system.listMethods" => nothing().map(|()| self.methods.list()),
            "system.methodHelp" => self.methods.help(name()?).map(Value::String),
            "system.methodSignature" => self.methods.signatures(name()?),
            "system.getCapabilities" => nothing().map(|()| capabilities()),
            _ => Err(Fault::new(code::INVALID_REQUEST, "`system.multicall` cannot be called within itself")),
        }
    }
}

fn capabilities() -> Value {
    let capability = |url: &str, version| {
        let url = ("specUrl".to_owned(), Value::from(url));
        Value::Struct(BTreeMap::from([url, ("specVersion".to_owned(), Value::Int(version))]))
    };
    Value::Struct(BTreeMap::from([
        ("xmlrpc".to_owned(), capability("http://xmlrpc.com/spec.md", 1)),
        ("introspect".to_owned(), capability("http://xmlrpc-c.sourceforge.net/introspection.html", 1)),
        ("system.multicall".to_owned(), capability("http://www.xmlrpc.com/discuss/msgReader$1208", 1)),
        (
            "faults_interop".to_owned(),
            capability("http://xmlrpc-epi.sourceforge.net/specs/rfc.fault_codes.php", 20_010_516),
        ),
        ("nil".to_owned(), capability("http://ws.apache.org/xmlrpc/types.html", 1)),
    ]))
}

/// One member of a multicall's array.
fn into_call(value: Value) -> Result<Call, Fault> {
    if let Value::Struct(mut members) = value
        && let Some(Value::String(method)) = members.remove("methodName")
        && let Some(Value::Array(params)) = members.remove("params")
        && members.is_empty()
    {
        return Ok(Call { method, params });
    }
    Err(parameters("structs with methodName and params"))
}

/// The input as JSON.
fn object(fields: &Fields, input: BTreeMap<String, Value>) -> Result<Map<String, Json>> {
    let mut object = Map::new();
    for (name, value) in input {
        let json = match value {
            Value::Nil if !fields.get(&name).is_some_and(takes_null) => continue,
            Value::String(text) => fields.coerce(&name, &text),
            other => other.into_json().map_err(|what| {
                Error::invalid("invalid_input", "The input is not valid")
                    .detail(format!("{}: {what}", shorten(&name)))
                    .reason(shorten(&name), "type", what)
            })?,
        };
        object.insert(name, json);
    }
    Ok(object)
}

fn takes_null(schema: &Json) -> bool {
    let null = Json::from("null");
    let choices = schema.get("anyOf").and_then(Json::as_array);
    schema.get("type").is_some_and(|kind| *kind == null || kind.as_array().is_some_and(|kinds| kinds.contains(&null)))
        || choices.is_some_and(|choices| choices.iter().any(takes_null))
}

fn parameters(wanted: &str) -> Fault {
    Fault::new(code::INVALID_PARAMETERS, format!("The parameters are not what this method takes: {wanted}"))
}

/// The fault's code for a kind of error.
fn fault_code(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::Quota => 1429,
        kind => i32::from(kind.http_status()),
    }
}

/// The HTTP status as which a fault is counted.
fn counted_as(code: i32) -> u16 {
    match code {
        code::METHOD_NOT_FOUND => 404,
        code::INTERNAL => 500,
        code if code < 0 => 400,
        code => u16::try_from(code % 1000).unwrap_or(500),
    }
}

fn fault(error: &Error, request: RequestId) -> Fault {
    let mut text = error.to_string();
    if error.kind == ErrorKind::Internal {
        tracing::error!(request_id = %request, code = %error.code, error = %error.chain(), "request failed");
        text = format!("{text} [{request}]");
    }
    Fault::new(fault_code(error.kind), text)
}

fn must_be_xml(headers: &HeaderMap) -> Result<()> {
    let refuse = |detail: String| {
        Err(Error::new(ErrorKind::UnsupportedMedia, "not_xml", "The body is not XML")
            .detail(detail)
            .next("send the header `Content-Type: text/xml`", None))
    };
    if headers.get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
        return refuse("compressed bodies are not accepted".to_owned());
    }
    let Some(value) = headers.get(CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim();
    if ["text/xml", "application/xml"].iter().any(|known| essence.eq_ignore_ascii_case(known)) {
        Ok(())
    } else {
        refuse(format!("`Content-Type` is `{}`", shorten(text)))
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}
