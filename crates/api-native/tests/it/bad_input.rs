//! Bad input, walked over every operation in the table: the right class each time, and the core is never reached.

use nephos_ops::{AnswerKind, Entry, Grant, Method, schema::Fields};
use serde_json::{Map, Value};

use crate::fake::{Answered, Running, TABLE, TOKEN, start};

/// The operation's path with its variable parts filled, and a query with the required rest of its fields if those go
/// there. The values fit the declared type, no more.
fn target(entry: &Entry, fields: &Fields) -> String {
    let mut path = entry.spec.path.to_owned();
    for name in entry.spec.path_fields() {
        // One of a few words, where only those are taken.
        let schema = fields.get(name).cloned().unwrap_or_default();
        let word = schema.pointer("/enum/0").or_else(|| schema.pointer("/oneOf/0/const")).and_then(Value::as_str);
        path = path.replace(&format!("{{{name}}}"), word.unwrap_or("x"));
    }
    if in_query(entry) {
        let query: Vec<String> = others(entry, fields)
            .filter(|name| fields.required(name))
            .map(|name| format!("{name}={}", if fields.json_type(name) == "integer" { "1" } else { "x" }))
            .collect();
        if !query.is_empty() {
            path = format!("{path}?{}", query.join("&"));
        }
    }
    path
}

fn in_query(entry: &Entry) -> bool {
    entry.spec.upload || matches!(entry.spec.method, Method::Get | Method::Delete)
}

fn others<'a>(entry: &'a Entry, fields: &'a Fields) -> impl Iterator<Item = &'a str> {
    fields.names().filter(|name| !entry.spec.path_fields().any(|field| field == *name))
}

fn with(path: &str, parameter: &str) -> String {
    format!("{path}{}{parameter}", if path.contains('?') { '&' } else { '?' })
}

/// A value that no field of this type takes.
fn wrong(json_type: &str) -> Value {
    match json_type {
        "object" | "array" | "boolean" => Value::from(7),
        "integer" | "number" => Value::from("many"),
        _ => Value::from(vec![1]),
    }
}

async fn refused(server: &Running, entry: &Entry, answer: Answered, statuses: &[u16], what: &str) {
    let name = entry.spec.name;
    assert!(statuses.contains(&answer.status.as_u16()), "{name}, {what}: {answer:?}");
    answer.code();
    assert_eq!(*server.core.reached.lock().unwrap(), Vec::<&str>::new(), "{name}, {what}: the core was reached");
}

#[tokio::test]
async fn without_a_token_or_with_a_wrong_one() {
    let server = start().await;
    for entry in TABLE.iter().filter(|entry| !entry.spec.permission.0.contains(&Grant::Anyone)) {
        let path = target(entry, &Fields::of(entry));
        let answer = server.send(entry.spec.method.as_str(), &path, &[], "").await;
        refused(&server, entry, answer, &[401], "no token").await;
        let answer = server.send(entry.spec.method.as_str(), &path, &[("x-auth-token", "bad")], "").await;
        refused(&server, entry, answer, &[401], "wrong token").await;
    }
}

#[tokio::test]
async fn paths_with_values_that_cannot_be() {
    let server = start().await;
    for entry in TABLE.iter().filter(|entry| entry.spec.path_fields().next().is_some()) {
        let method = entry.spec.method.as_str();
        for (bad, what) in [
            ("x".repeat(300).as_str(), "too long"),
            ("%20x", "leading blank"),
            ("a%2Fb", "slash"),
            ("%00", "control character"),
            ("%ff", "not UTF-8"),
        ] {
            let mut path = entry.spec.path.to_owned();
            for name in entry.spec.path_fields() {
                path = path.replace(&format!("{{{name}}}"), bad);
            }
            let answer = server.ask(method, &path, "").await;
            refused(&server, entry, answer, &[400], what).await;
        }
    }
}

#[tokio::test]
async fn methods_that_do_not_apply() {
    let server = start().await;
    for entry in TABLE.iter() {
        let path = target(entry, &Fields::of(entry));
        for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "NONSENSE"] {
            let pattern = |path: &str| -> Vec<bool> { path.split('/').map(|part| part.starts_with('{')).collect() };
            let known = TABLE.iter().any(|other| {
                other.spec.method.as_str() == method
                    && pattern(other.spec.path).len() == pattern(entry.spec.path).len()
                    && other
                        .spec
                        .path
                        .split('/')
                        .zip(entry.spec.path.split('/'))
                        .all(|(ours, theirs)| ours == theirs || ours.starts_with('{'))
            });
            if known {
                continue;
            }
            let answer = server.ask(method, &path, "").await;
            assert!(
                answer.headers["allow"].to_str().unwrap().split(", ").any(|name| name == entry.spec.method.as_str()),
                "{}: {answer:?}",
                entry.spec.name
            );
            refused(&server, entry, answer, &[405], method).await;
        }
    }
}

#[tokio::test]
async fn queries_with_unknown_duplicate_misplaced_or_wrong_parameters() {
    let server = start().await;
    for entry in TABLE.iter() {
        let method = entry.spec.method.as_str();
        let fields = Fields::of(entry);
        let path = target(entry, &fields);
        let answer = server.ask(method, &with(&path, "no_such_parameter=1"), "").await;
        assert!(answer.json()["error"]["detail"].as_str().unwrap().contains("no_such_parameter"), "{answer:?}");
        refused(&server, entry, answer, &[400], "unknown parameter").await;
        for name in entry.spec.path_fields() {
            let answer = server.ask(method, &with(&path, &format!("{name}=x")), "").await;
            refused(&server, entry, answer, &[400], "a path field in the query").await;
        }
        for name in others(entry, &fields) {
            if in_query(entry) {
                let answer = server.ask(method, &with(&path, &format!("{name}=1&{name}=1")), "").await;
                refused(&server, entry, answer, &[400], "duplicate").await;
                if matches!(fields.json_type(name), "integer" | "number" | "boolean" | "array" | "object") {
                    let base = path.split('?').next().unwrap();
                    let answer = server.ask(method, &format!("{base}?{name}=%20maybe"), "").await;
                    refused(&server, entry, answer, &[400], "wrong type in the query").await;
                }
            } else {
                let answer = server.ask(method, &with(&path, &format!("{name}=1")), "").await;
                refused(&server, entry, answer, &[400], "a body field in the query").await;
            }
        }
    }
}

#[tokio::test]
async fn bodies_that_are_not_what_they_should_be() {
    let server = start().await;
    for entry in TABLE.iter().filter(|entry| !in_query(entry)) {
        let method = entry.spec.method.as_str();
        let fields = Fields::of(entry);
        let path = target(entry, &fields);
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for (body, what) in
            [("{", "cut off"), ("[]", "not an object"), ("1", "a number"), ("nonsense", "no JSON"), (&deep, "deep")]
        {
            let answer = server.ask(method, &path, body).await;
            refused(&server, entry, answer, &[400], what).await;
        }
        let answer = server.ask(method, &path, &format!("{{\"x\":\"{}\"}}", "x".repeat(1024 * 1024))).await;
        refused(&server, entry, answer, &[413], "too large").await;
        for content_type in ["text/plain", "application/xml", "application/json; charset=latin1", "nonsense"] {
            let headers = [("x-auth-token", TOKEN), ("content-type", content_type)];
            let answer = server.send(method, &path, &headers, "{}").await;
            refused(&server, entry, answer, &[415], content_type).await;
        }
        let answer = server.send(method, &path, &[("x-auth-token", TOKEN)], "{}").await;
        refused(&server, entry, answer, &[415], "no content type").await;

        let answer = server.ask(method, &path, r#"{"no_such_field": 1}"#).await;
        refused(&server, entry, answer, &[400], "unknown field").await;
        for name in others(entry, &fields).filter(|name| fields.required(name)) {
            let answer = server.ask(method, &path, "{}").await;
            let text = answer.json()["error"].to_string();
            assert!(others(entry, &fields).any(|name| text.contains(name)), "{name}: {text}");
            refused(&server, entry, answer, &[400], "missing field").await;
        }
        for name in others(entry, &fields) {
            let mut body = Map::new();
            body.insert(name.to_owned(), wrong(fields.json_type(name)));
            let answer = server.ask(method, &path, &Value::Object(body).to_string()).await;
            refused(&server, entry, answer, &[400], &format!("wrong type of {name}")).await;
        }
    }
}

#[tokio::test]
async fn requests_that_take_no_body() {
    let server = start().await;
    for entry in TABLE.iter().filter(|entry| in_query(entry) && !entry.spec.upload) {
        let path = target(entry, &Fields::of(entry));
        let answer = server.ask(entry.spec.method.as_str(), &path, "{}").await;
        refused(&server, entry, answer, &[400], "body").await;
    }
}

#[tokio::test]
async fn tunnels_want_a_websocket() {
    let server = start().await;
    for entry in TABLE.iter().filter(|entry| entry.answer == AnswerKind::Tunnel) {
        let path = target(entry, &Fields::of(entry));
        let answer = server.ask(entry.spec.method.as_str(), &path, "").await;
        refused(&server, entry, answer, &[400], "no upgrade").await;
    }
}

#[tokio::test]
async fn paths_that_do_not_exist() {
    let server = start().await;
    for path in ["/v1", "/v1/", "/v1/nothing", "/v1//flavors", "/v1/flavors/", "/", "/v2/flavors"] {
        let answer = server.ask("GET", path, "").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "path_not_found"), "{path}");
    }
}
