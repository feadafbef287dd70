//! Showing what goes over the wire: `-vv`, `--debug`, `--explain`, `--curl`. Secrets are masked.

use std::sync::Arc;

use nephos_ops::Spec;
use serde_json::Value;

use crate::{
    client::{Observer, Prepared, Traffic},
    command::{field::is_secret, global::Globals},
    terminal::harmless,
};

/// Someone who prints the wire to standard error, if the flags ask for it.
pub(crate) fn observer(globals: &Globals) -> Option<Observer> {
    let bodies = globals.debug;
    (globals.verbosity >= 2 || bodies).then(|| {
        let observer: Observer = Arc::new(move |traffic: &Traffic<'_>| match traffic {
            Traffic::Request { request } => {
                eprintln!("> {} {}", request.method, request.uri);
                if bodies && let Some(body) = &request.body {
                    eprintln!("> {}", masked_json(body));
                }
            }
            Traffic::Response { status, request_id, elapsed } => {
                eprintln!("< {status}  {} ms  {}", elapsed.as_millis(), harmless(request_id.unwrap_or_default()));
            }
            Traffic::Answer { body } => {
                if bodies {
                    eprintln!("< {}", masked_json(body));
                }
            }
        });
        observer
    })
}

fn masked_json(body: &[u8]) -> String {
    match serde_json::from_slice::<Value>(body) {
        Ok(value) => masked(&value).to_string(),
        Err(_) => format!("({} bytes)", body.len()),
    }
}

/// The value with everything that is secret by its name replaced.
pub(crate) fn masked(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| {
                let value = if is_secret(name) && value.is_string() { "***".into() } else { masked(value) };
                (name.clone(), value)
            })
            .collect(),
        Value::Array(items) => items.iter().map(masked).collect(),
        other => other.clone(),
    }
}

/// How a command line was understood.
pub(crate) fn explain(spec: &Spec, input: &Value, request: &Prepared) -> String {
    let mut text = format!(
        "operation  {}\ninput      {}\nrequest    {} {}\n",
        spec.name,
        masked(input),
        request.method,
        request.uri
    );
    if let Some(body) = &request.body {
        text.push_str(&format!("body       {}\n", masked_json(body)));
    }
    text
}

/// The same request by curl, with the token left to the environment.
pub(crate) fn curl(request: &Prepared, file: Option<&str>) -> String {
    let mut text = format!("curl -sS -X {} {}", request.method, quoted(&request.uri.to_string()));
    text.push_str(" \\\n  -H \"Authorization: Bearer $NEPHOS_TOKEN\"");
    for (name, value) in &request.headers {
        let value = value.to_str().unwrap_or_default();
        text.push_str(&format!(" \\\n  -H {}", quoted(&format!("{name}: {value}"))));
    }
    if let Some(body) = &request.body {
        text.push_str(&format!(" \\\n  -d {}", quoted(&String::from_utf8_lossy(body))));
    }
    if let Some(file) = file.filter(|_| request.method != http::Method::GET) {
        text.push_str(&format!(" \\\n  --data-binary {}", quoted(&format!("@{file}"))));
    }
    text.push('\n');
    text
}

/// For a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn secrets_are_masked_at_any_depth() {
        let value = json!({"auth": [{"user": "u", "password": "p", "client_secret": "s"}], "token": "t", "tokens": 3});
        let expected =
            json!({"auth": [{"user": "u", "password": "***", "client_secret": "***"}], "token": "***", "tokens": 3});
        assert_eq!(masked(&value), expected);
    }

    #[test]
    fn curl_quotes_for_the_shell() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
