//! One JSON object out of path, query and body.

use std::collections::BTreeSet;

use hyper::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};
use nephos_types::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

use crate::route::{Route, decode};

/// The fields that the path's variable parts fill.
pub(crate) fn from_path(route: &Route, parts: Vec<String>) -> Map<String, Value> {
    route
        .path_fields
        .iter()
        .zip(parts)
        .map(|(name, text)| ((*name).to_owned(), route.fields.coerce(name, &text)))
        .collect()
}

/// Adds the fields of the query. Parameters that the operation does not know, or that come twice, are refused by name.
pub(crate) fn add_query(route: &Route, query: Option<&str>, input: &mut Map<String, Value>) -> Result<()> {
    let mut refused: Vec<(String, &str, String)> = Vec::new();
    let mut seen = BTreeSet::new();
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, text) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(&name.replace('+', " "))?;
        let text = decode(&text.replace('+', " "))?;
        if route.path_fields.contains(&name.as_str()) {
            refused.push((name, "misplaced", "it is part of the path".to_owned()));
        } else if route.fields.get(&name).is_none() {
            refused.push((name, "unknown", format!("{} knows no such parameter", route.entry.spec.name)));
        } else if !route.from_query {
            refused.push((name, "misplaced", "it belongs into the body".to_owned()));
        } else if !seen.insert(name.clone()) {
            refused.push((name, "duplicate", "it is given more than once".to_owned()));
        } else {
            let value = route.fields.coerce(&name, &text);
            input.insert(name, value);
        }
    }
    refuse("invalid_query", "The query is not valid", refused)
}

/// Adds the fields of a JSON object in the body; no body is an empty object.
pub(crate) fn add_body(route: &Route, body: &[u8], input: &mut Map<String, Value>) -> Result<()> {
    if body.is_empty() {
        return Ok(());
    }
    // serde_json refuses more than 128 levels.
    let body: Value = serde_json::from_slice(body)
        .map_err(|error| Error::invalid("invalid_json", "The body is not valid JSON").detail(error.to_string()))?;
    let Value::Object(fields) = body else {
        return Err(Error::invalid("invalid_json", "The body is not a JSON object")
            .next(format!("pass the fields of {} as one object", route.entry.spec.name), None));
    };
    let mut refused = Vec::new();
    for (name, value) in fields {
        if route.path_fields.contains(&name.as_str()) {
            refused.push((name, "misplaced", "it is part of the path".to_owned()));
        } else {
            input.insert(name, value);
        }
    }
    refuse("invalid_input", "The body is not valid", refused)
}

fn refuse(code: &'static str, title: &'static str, refused: Vec<(String, &str, String)>) -> Result<()> {
    let Some((name, _, what)) = refused.first() else { return Ok(()) };
    let error = Error::invalid(code, title).detail(format!("`{}`: {what}", shorten(name)));
    Err(refused
        .into_iter()
        .take(20)
        .fold(error, |error, (name, constraint, what)| error.reason(shorten(&name), constraint, what)))
}

/// What a caller made up, in a length that an error can repeat.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Whether a body with these headers is JSON as it stands.
pub(crate) fn must_be_json(headers: &HeaderMap) -> Result<()> {
    let refuse = |detail: String| {
        Err(Error::new(ErrorKind::UnsupportedMedia, "not_json", "The body is not JSON")
            .detail(detail)
            .next("send the header `Content-Type: application/json`", None))
    };
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        return refuse("compressed bodies are not accepted".to_owned());
    }
    let Some(value) = headers.get(CONTENT_TYPE) else {
        return refuse("there is no `Content-Type`".to_owned());
    };
    let text = value.to_str().unwrap_or_default();
    let mut parts = text.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    if !essence.eq_ignore_ascii_case("application/json") {
        return refuse(format!("`Content-Type` is `{}`", shorten(text)));
    }
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.eq_ignore_ascii_case("charset")
            && !value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        {
            return refuse("JSON is UTF-8".to_owned());
        }
    }
    Ok(())
}
