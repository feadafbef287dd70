//! REST: input from path, query and body, answers of every kind, who asks.

use nephos_api_native::Settings;
use nephos_http::rate::{Rate, Rates};
use nephos_types::ErrorKind;
use serde_json::json;

use crate::fake::{TOKEN, start, start_with};

#[tokio::test]
async fn path_query_and_body_become_one_input() {
    let server = start().await;
    let answer = server.ask("GET", "/v1/probes/a%20b+c/echo?count=7&tags=%5B%22x%22%2C%22y+z%22%5D", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let echoed = answer.json();
    assert_eq!(echoed["thing"], "a b+c");
    assert_eq!(echoed["count"], 7);
    assert_eq!(echoed["tags"], json!(["x", "y z"]));
    assert_eq!(echoed["request"], answer.headers["x-nephos-request-id"].to_str().unwrap());

    let answer = server.ask("POST", "/v1/probes", r#"{"thing": "web", "count": 3}"#).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!(answer.json()["resource"]["count"], 3);
}

#[tokio::test]
async fn both_token_headers_are_taken_and_wrong_ones_refused() {
    let server = start().await;
    let echo = "/v1/probes/x/echo";
    let bearer = format!("bearer {TOKEN}");
    for (headers, status) in [
        (vec![("authorization", bearer.as_str())], 200),
        (vec![("x-auth-token", TOKEN)], 200),
        (vec![], 401),
        (vec![("x-auth-token", "other")], 401),
        (vec![("authorization", "Bearer other")], 401),
        (vec![("authorization", "Basic YTpi")], 401),
        (vec![("authorization", TOKEN)], 401),
    ] {
        let answer = server.send("GET", echo, &headers, "").await;
        assert_eq!(answer.status, status, "{headers:?}");
        if status == 401 {
            assert!(answer.headers.contains_key("www-authenticate"));
            answer.code();
        } else {
            assert_eq!(answer.json()["actor"], "ada");
        }
    }
    // Where no login is needed, an old token is no hindrance, and a good one is used.
    let actor =
        async |headers: &[(&str, &str)]| server.send("GET", "/v1/probes", headers, "").await.json()["actor"].clone();
    assert_eq!(actor(&[]).await, json!(null));
    assert_eq!(actor(&[("x-auth-token", "other")]).await, json!(null));
    assert_eq!(actor(&[("x-auth-token", TOKEN)]).await, "ada");
}

#[tokio::test]
async fn idempotency_keys_reach_creating_operations() {
    let server = start().await;
    let send = async |key: &str| {
        let headers = [("x-auth-token", TOKEN), ("content-type", "application/json"), ("idempotency-key", key)];
        server.send("POST", "/v1/probes", &headers, r#"{"thing":"web"}"#).await
    };
    assert_eq!(send("k-1").await.json()["resource"]["idempotency_key"], "k-1");
    assert_eq!(send(&"x".repeat(255)).await.status, 202);
    for bad in ["", "a b", &"x".repeat(256)] {
        let answer = send(bad).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_idempotency_key"));
    }
}

#[tokio::test]
async fn streams_pass_through() {
    let server = start().await;
    let answer = server.ask("GET", "/v1/probes/x/data", "").await;
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"some data"[..]));
    assert_eq!(answer.headers["content-length"], "9");
    assert_eq!(answer.headers["content-type"], "application/octet-stream");

    // Larger than what a JSON body may be.
    let body = vec![7; 3 * 1024 * 1024];
    let answer = server.send("PUT", "/v1/probes/x/data", &[("x-auth-token", TOKEN)], body).await;
    assert_eq!(answer.json()["count"], 3 * 1024 * 1024, "{answer:?}");
}

#[tokio::test]
async fn head_is_get_without_the_body() {
    let server = start().await;
    let got = server.ask("GET", "/v1/probes/x/echo", "").await;
    let headed = server.ask("HEAD", "/v1/probes/x/echo", "").await;
    assert_eq!(headed.status, 200);
    assert!(headed.body.is_empty());
    assert_eq!(headed.headers["content-length"], got.headers["content-length"]);
    let headed = server.ask("HEAD", "/v1/probes/x/data", "").await;
    assert_eq!(headed.headers["content-length"], "9");
}

#[tokio::test]
async fn every_kind_of_error_has_its_status_and_the_one_shape() {
    let server = start().await;
    for kind in ErrorKind::ALL {
        let body = json!({ "kind": kind }).to_string();
        let answer = server.ask("POST", "/v1/probes/fail", &body).await;
        assert_eq!(answer.status.as_u16(), kind.http_status(), "{kind:?}");
        assert_eq!(answer.code(), "told_to");
        assert_eq!(answer.json()["error"]["detail"], "by a test");
        assert_eq!(answer.json()["error"]["retryable"], kind.retryable());
    }
    let answer = server.ask("POST", "/v1/probes/fail", r#"{"kind":"panic"}"#).await;
    assert_eq!(answer.status, 500);
    assert_eq!(answer.code(), "internal");
    assert!(!String::from_utf8_lossy(&answer.body).contains("told to"), "the panic's words stay inside");
}

#[tokio::test]
async fn callers_who_ask_too_often_are_told_when_to_come_back() {
    let slow = Rate { per_second: 1, burst: 3 };
    let fast = Rate { per_second: 1000, burst: 1000 };
    let server = start_with(Settings::default(), Rates { address: slow, user: fast }).await;
    for _ in 0..3 {
        assert_eq!(server.send("GET", "/v1/probes/x/echo", &[("x-auth-token", "guess")], "").await.status, 401);
    }
    let answer = server.send("GET", "/v1/probes/x/echo", &[("x-auth-token", "guess")], "").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (429, "rate_limited"));
    assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);

    let server = start_with(Settings::default(), Rates { address: slow, user: slow }).await;
    let mut statuses = vec![];
    for _ in 0..4 {
        statuses.push(server.ask("GET", "/v1/probes/x/echo", "").await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429]);
}
