//! From an operation's input to a request: which field goes into the path, the query or the body.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Uri, header};
use nephos_ops::{Effect, Method, Spec};
use nephos_types::{Error, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

/// Everything but the characters that mean nothing anywhere in a URL (RFC 3986, unreserved).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A request without its token, as it will be sent (any number of times).
#[derive(Clone, Debug)]
pub struct Prepared {
    /// The method.
    pub method: http::Method,
    /// The whole URL.
    pub uri: Uri,
    /// Headers other than `Authorization`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The JSON body, if there is one.
    pub body: Option<Bytes>,
    /// Whether sending it twice does no harm.
    pub repeatable: bool,
}

impl Prepared {
    /// The request that calls an operation with this input, a JSON object.
    pub(super) fn of_operation(base: &str, spec: &Spec, input: &Value) -> Result<Self> {
        let mut fields = match input {
            Value::Object(fields) => fields.clone(),
            Value::Null => Map::new(),
            _ => return Err(Error::bug("an operation's input is an object")),
        };
        let mut url = String::from(base);
        for part in spec.path.split('/').skip(1) {
            url.push('/');
            match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(field) => {
                    let value = fields.remove(field).map(|value| plain(&value)).unwrap_or_default();
                    // `.` and `..` would be taken out of the path by proxies and URL libraries.
                    if matches!(value.as_str(), "" | "." | "..") {
                        return Err(Error::invalid("invalid_input", format!("`{value}` cannot be used as a {field}")));
                    }
                    url.extend(utf8_percent_encode(&value, ESCAPED));
                }
                None => url.push_str(part),
            }
        }
        fields.retain(|_, value| !value.is_null());
        let method = match spec.method {
            Method::Get => http::Method::GET,
            Method::Post => http::Method::POST,
            Method::Put => http::Method::PUT,
            Method::Patch => http::Method::PATCH,
            Method::Delete => http::Method::DELETE,
        };
        let mut headers = vec![(header::ACCEPT, HeaderValue::from_static("application/json"))];
        let in_query = matches!(spec.method, Method::Get | Method::Delete) || spec.upload;
        let body = if in_query {
            push_query(&mut url, &fields);
            None
        } else {
            headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
            Some(Bytes::from(Value::Object(fields).to_string()))
        };
        if spec.effect == Effect::Creates {
            headers.push((HeaderName::from_static("idempotency-key"), fresh_key()?));
        }
        let uri = url.parse().map_err(|error| Error::internal("a URL could not be built", error))?;
        let repeatable = !spec.upload && spec.effect != Effect::Acts;
        Ok(Self { method, uri, headers, body, repeatable })
    }

    /// Any request: a path below the cloud's URL and perhaps a JSON body.
    pub fn raw(base: &str, method: &str, path: &str, body: Option<&Value>) -> Result<Self> {
        let method = http::Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .map_err(|_| Error::invalid("usage", format!("`{method}` is not an HTTP method")))?;
        if !path.starts_with('/') {
            return Err(Error::invalid("usage", format!("`{path}` is not a path")).detail("a path starts with `/`"));
        }
        let uri = format!("{base}{path}")
            .parse()
            .map_err(|_| Error::invalid("usage", format!("`{path}` is not a usable path")))?;
        let mut headers = vec![(header::ACCEPT, HeaderValue::from_static("application/json"))];
        if body.is_some() {
            headers.push((header::CONTENT_TYPE, HeaderValue::from_static("application/json")));
        }
        let repeatable = method.is_safe();
        Ok(Self { method, uri, headers, body: body.map(|body| Bytes::from(body.to_string())), repeatable })
    }
}

/// Arrays and objects travel as JSON text; `null` was left out.
fn push_query(url: &mut String, fields: &Map<String, Value>) {
    let mut separator = '?';
    for (name, value) in fields {
        url.push(separator);
        separator = '&';
        url.extend(utf8_percent_encode(name, ESCAPED));
        url.push('=');
        url.extend(utf8_percent_encode(&plain(value), ESCAPED));
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// An idempotency key nobody has used.
fn fresh_key() -> Result<HeaderValue> {
    let key = format!("cli-{:032x}", rand::random::<u128>());
    HeaderValue::from_str(&key).map_err(|error| Error::internal("a key could not be built", error))
}

/// Checks a cloud's URL: http or https, a host, no query; gives it without a trailing slash.
pub(super) fn base_url(url: &str) -> Result<String> {
    let refuse = |why: &str| {
        Err(Error::invalid("invalid_url", format!("`{url}` is not the URL of a cloud"))
            .detail(why.to_owned())
            .next("give it as http://127.0.0.1:6780", None))
    };
    let Ok(uri) = url.parse::<Uri>() else { return refuse("it does not parse") };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return refuse("it starts with neither http:// nor https://");
    }
    if uri.host().is_none_or(str::is_empty) {
        return refuse("it names no host");
    }
    if uri.query().is_some() {
        return refuse("it has a query");
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return refuse("it holds credentials; give them by `nephos login` or NEPHOS_TOKEN");
    }
    Ok(url.trim_end_matches('/').to_owned())
}

pub(super) fn check_token(token: &str) -> Result<()> {
    bearer(token).map(|_| ())
}

pub(super) fn bearer(token: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
        Error::new(nephos_types::ErrorKind::Unauthenticated, "invalid_token", "The token is not usable")
            .detail("it holds characters that cannot be sent in a header")
            .next("log in again: nephos login", Some("nephos login".into()))
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SPEC: Spec = Spec { name: "flavor.show", path: "/v1/flavors/{flavor}", method: Method::Get, ..Spec::DEFAULT };

    #[test]
    fn fields_go_where_the_route_wants_them() {
        let input = json!({"flavor": "a b/ä?", "tags": ["x", "y&z"], "labels": {"a": "b"}, "none": null, "n": 3});
        let prepared = Prepared::of_operation("http://h:1", &SPEC, &input).unwrap();
        assert_eq!(
            prepared.uri.to_string(),
            "http://h:1/v1/flavors/a%20b%2F%C3%A4%3F?labels=%7B%22a%22%3A%22b%22%7D&n=3&tags=%5B%22x%22%2C%22y%26z%22%5D"
        );
        assert!(prepared.body.is_none() && prepared.repeatable);

        let spec = Spec { method: Method::Patch, effect: Effect::Creates, ..SPEC };
        let prepared = Prepared::of_operation("http://h:1", &spec, &input).unwrap();
        assert_eq!(prepared.uri.path(), "/v1/flavors/a%20b%2F%C3%A4%3F");
        let body: Value = serde_json::from_slice(&prepared.body.unwrap()).unwrap();
        assert_eq!(body, json!({"tags": ["x", "y&z"], "labels": {"a": "b"}, "n": 3}));
        assert!(prepared.headers.iter().any(|(name, _)| name == "idempotency-key"));
    }

    #[test]
    fn a_path_field_cannot_leave_the_path() {
        for bad in ["", ".", ".."] {
            assert!(Prepared::of_operation("http://h:1", &SPEC, &json!({"flavor": bad})).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn urls_are_checked() {
        assert_eq!(base_url("http://h:1/").unwrap(), "http://h:1");
        for bad in ["h:1", "ftp://h", "http://", "http://a:b@h", "http://h/?x=1", ""] {
            assert_eq!(base_url(bad).unwrap_err().code, "invalid_url", "{bad:?}");
        }
    }
}
