//! The typed client.

use bytes::Bytes;
use futures_util::StreamExt;
use nephos_cli::client::{self, Client, Upload};
use nephos_ops::{
    compute::{CreateFlavor, DeleteFlavor, ListFlavors, ListServers, ShowFlavor},
    system::{BackUp, WatchEvents},
};
use nephos_types::{ErrorKind, Labels};
use serde_json::json;

use crate::fake::{Answer, Fake, Place};

fn flavor() -> serde_json::Value {
    json!({"id": "flv-01hzx3k7q9m2c", "name": "small", "vcpus": 1, "memory_mib": 512, "disk_gib": 0,
           "created_at": "2026-01-01T00:00:00.000000Z"})
}

fn create() -> CreateFlavor {
    serde_json::from_value(json!({"name": "small", "vcpus": 1, "memory_mib": 512})).unwrap()
}

#[tokio::test]
async fn operations_are_called_by_their_types() {
    let mut sample = flavor();
    sample["id"] = nephos_types::FlavorId::new().to_string().into();
    let fake = Fake::start([
        Answer::Json(200, sample.clone()),
        Answer::Json(200, json!({"items": [sample]})),
        Answer::Empty(204),
    ])
    .await;
    let client = Client::new(&fake.url(), Some("token-1".into())).unwrap();
    assert_eq!(client.call(create()).await.unwrap().name.as_str(), "small");
    assert_eq!(
        client.call(serde_json::from_value::<ListFlavors>(json!({"limit": 5})).unwrap()).await.unwrap().items.len(),
        1
    );
    client.call(DeleteFlavor { flavor: "a b".parse().unwrap() }).await.unwrap();
    let seen = fake.finish();
    assert_eq!(seen[0].line, "POST /v1/flavors");
    assert_eq!(seen[0].json()["memory_mib"], 512);
    assert_eq!(seen[0].header("authorization"), Some("Bearer token-1"));
    assert!(seen[0].header("idempotency-key").is_some());
    assert_eq!(seen[1].line, "GET /v1/flavors?limit=5");
    assert_eq!(seen[1].header("idempotency-key"), None);
    assert_eq!(seen[2].line, "DELETE /v1/flavors/a%20b");
}

#[tokio::test]
async fn a_lost_connection_is_taken_up_again_with_the_same_key() {
    let mut sample = flavor();
    sample["id"] = nephos_types::FlavorId::new().to_string().into();
    let fake = Fake::start([Answer::HangUp, Answer::HangUp, Answer::Json(200, sample)]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    client.call(create()).await.unwrap();
    let seen = fake.finish();
    let keys: Vec<_> = seen.iter().map(|seen| seen.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
}

#[tokio::test]
async fn refusals_arrive_whole() {
    let refusal = json!({"error": {"code": "quota_exceeded", "title": "No", "detail": "why", "kind": "quota",
        "reasons": [{"subject": "vcpus", "constraint": "quota", "detail": "need 2, have 1"}],
        "next": [{"do": "ask for more"}], "request_id": "req-1", "retryable": false}});
    let fake = Fake::start([Answer::Json(429, refusal)]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    let error = client.call(create()).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref(), error.detail.as_str()), (ErrorKind::Quota, "quota_exceeded", "why"));
    assert_eq!((error.reasons.len(), error.next.len()), (1, 1));
    assert_eq!(client::request_id(&error), Some("req-1"));
    assert!(!client::is_unreachable(&error));
    fake.finish();
}

#[tokio::test]
async fn nobody_there_is_told_apart() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::new(&url, None).unwrap();
    let error = client.call(ShowFlavor { flavor: "x".parse().unwrap() }).await.unwrap_err();
    assert!(client::is_unreachable(&error), "{error:?}");
    assert_eq!(error.code, "unreachable");
    assert!(error.title.contains(&url));
}

#[tokio::test]
async fn labels_travel_in_the_query_as_json() {
    let fake = Fake::start([Answer::Json(200, json!({"items": []}))]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    let labels = Labels([("a".to_owned(), "b".to_owned())].into());
    client.call(ListServers { labels, ..ListServers::default() }).await.unwrap();
    assert!(fake.finish()[0].line.contains("labels=%7B%22a%22%3A%22b%22%7D"));
}

#[tokio::test]
async fn events_resume_after_the_last_one_seen() {
    let part = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
    let fake = Fake::start([
        Answer::Stream("text/event-stream", vec![part("id: 7\nevent: create\ndata: {}\n\nid: 8\nda"), Err(())]),
        Answer::HangUp,
        Answer::Stream("text/event-stream", vec![part("id: 8\nevent: delete\ndata: {\"n\":1}\n\n")]),
    ])
    .await;
    let client = Client::new(&fake.url(), None).unwrap();
    let events = client.events(WatchEvents::default()).await.unwrap();
    let events: Vec<_> = events.0.map(|event| event.unwrap()).collect().await;
    let names: Vec<_> = events.iter().map(|event| event.name.as_ref()).collect();
    assert_eq!(names, ["create", "delete"]);
    let seen = fake.finish();
    assert_eq!(seen[0].header("accept"), Some("text/event-stream"));
    assert_eq!(seen[0].header("last-event-id"), None);
    assert_eq!(seen.last().unwrap().header("last-event-id"), Some("8"));
}

#[tokio::test]
async fn a_stream_that_cannot_go_on_says_why() {
    let part = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
    let error = r#"data: {"error":{"kind":"precondition","code":"compacted","title":"gone","request_id":"req-1"}}"#;
    let error: &'static str = Box::leak(format!("event: error\n{error}\n\n").into_boxed_str());
    let script = || Answer::Stream("text/event-stream", vec![part("id: 7\nevent: create\ndata: {}\n\n"), part(error)]);
    let fake = Fake::start([script(), script()]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    let events: Vec<_> = client.events(WatchEvents::default()).await.unwrap().0.collect().await;
    assert_eq!(events.len(), 2, "{events:?}");
    let refused = events[1].as_ref().unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Precondition, "compacted"));
    assert_eq!(client::request_id(refused), Some("req-1"));

    let ran = Place::at(&fake).run("event watch -o json").await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.out.contains("create") && ran.err.contains("compacted"), "{ran:?}");
    assert_eq!(fake.finish().len(), 2, "not asked for again");
}

#[tokio::test]
async fn downloads_are_streams() {
    let part = |text: &'static str| Ok(Bytes::from_static(text.as_bytes()));
    let fake = Fake::start([Answer::Stream("application/x-tar", vec![part("abc"), part("def")])]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    let download = client.download(BackUp::default()).await.unwrap();
    let body: Vec<Bytes> = download.body.map(|part| part.unwrap()).collect().await;
    assert_eq!(body.concat(), b"abcdef");
    fake.finish();
}

#[tokio::test]
async fn uploads_are_streams() {
    let fake = Fake::start([Answer::Json(200, json!({"received": true}))]).await;
    let client = Client::new(&fake.url(), None).unwrap();
    let spec = nephos_ops::Spec {
        name: "thing.upload",
        path: "/v1/things/{thing}/file",
        method: nephos_ops::Method::Put,
        upload: true,
        ..nephos_ops::Spec::DEFAULT
    };
    let parts = [Ok(Bytes::from_static(b"abc")), Ok(Bytes::from_static(b"def"))];
    let upload = Upload { body: Box::pin(futures_util::stream::iter(parts)), length: Some(6) };
    let answer = client.upload_json(&spec, &json!({"thing": "x", "size": 6}), upload).await.unwrap();
    assert_eq!(answer["received"], true);
    let seen = fake.finish();
    assert_eq!(seen[0].line, "PUT /v1/things/x/file?size=6");
    assert_eq!(seen[0].header("content-length"), Some("6"));
    assert_eq!(&seen[0].body[..], b"abcdef");
}
