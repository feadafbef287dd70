//! Waiting for what a command started.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::fake::{Answer, Fake, Place};

fn server(state: &str) -> Value {
    json!({"id": "srv-1", "name": "web-1", "state": state})
}

fn started(workflow: &str) -> Answer {
    Answer::Json(202, json!({"workflow": workflow, "resource": server("building")}))
}

fn workflow(id: &str, state: &str, steps: &[(&str, &str)], error: Option<Value>) -> Value {
    let steps: Vec<_> =
        steps.iter().map(|(name, state)| json!({"name": name, "state": state, "attempts": 1})).collect();
    let mut workflow = json!({"id": id, "name": "server.create", "state": state, "steps": steps,
        "created_at": "2026-01-01T00:00:00.000000Z", "updated_at": "2026-01-01T00:00:00.000000Z"});
    if let Some(error) = error {
        workflow["error"] = error;
    }
    workflow
}

fn events(views: &[Value]) -> Answer {
    let text = views.iter().map(|view| format!("event: workflow\ndata: {view}\n\n")).collect::<String>();
    Answer::Stream("text/event-stream", vec![Ok(Bytes::from(text))])
}

const CREATE: &str = "server create web-1 --image micro --flavor small";

fn id() -> String {
    nephos_types::WorkflowId::new().to_string()
}

#[tokio::test]
async fn a_command_waits_and_shows_each_step() {
    let id = id();
    let fake = Fake::start([
        started(&id),
        events(&[
            workflow(&id, "running", &[("find capacity", "running"), ("start server", "pending")], None),
            workflow(&id, "running", &[("find capacity", "succeeded"), ("start server", "running")], None),
            workflow(&id, "succeeded", &[("find capacity", "succeeded"), ("start server", "succeeded")], None),
        ]),
        Answer::Json(200, server("active")),
    ])
    .await;
    let ran = Place::at(&fake).run(&format!("{CREATE} -o json")).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), server("active"));
    let lines: Vec<_> = ran.err.lines().map(str::trim_end).collect();
    assert_eq!(
        lines[..5],
        [
            format!("server web-1  {id}  (resume: nephos workflow wait {id})").as_str(),
            "  ◐ find capacity",
            "  ✔ find capacity",
            "  ◐ start server",
            "  ✔ start server"
        ]
    );
    assert!(lines[5].starts_with("✔ server web-1 is active in "), "{}", ran.err);
    let seen = fake.finish();
    assert_eq!(seen[1].line, format!("GET /v1/workflows/{id}/watch"));
    assert_eq!(seen[2].line, "GET /v1/servers/srv-1");
}

#[tokio::test]
async fn a_failed_workflow_fails_the_command() {
    for (error, code) in [
        (json!({"kind": "capacity", "code": "no_placement", "title": "No node can run web-1"}), 11),
        (json!({"kind": "invalid", "code": "bad_image", "title": "The image does not boot"}), 1),
    ] {
        let id = id();
        let title = error["title"].as_str().unwrap().to_owned();
        let last = workflow(&id, "failed", &[("find capacity", "failed")], Some(error));
        let fake = Fake::start([started(&id), events(&[last])]).await;
        let ran = Place::at(&fake).run(CREATE).await;
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{ran:?}");
        assert!(ran.err.contains(&format!("✖ {title}")), "{}", ran.err);
        assert!(ran.err.contains(&format!("nephos workflow show {id}")), "{}", ran.err);
        fake.finish();
    }
}

#[tokio::test]
async fn waiting_can_be_left_out_or_bounded() {
    let fake = Fake::start([started("wf-1")]).await;
    let ran = Place::at(&fake).run(&format!("{CREATE} --no-wait -o value -c id")).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "srv-1\n"), "{ran:?}");
    assert!(ran.err.contains("nephos workflow wait wf-1"), "{}", ran.err);
    fake.finish();

    // The workflow never ends: the stream does, and asking again gives the same.
    let id = id();
    let running = workflow(&id, "running", &[("find capacity", "running")], None);
    let mut script = vec![started(&id)];
    for _ in 0..40 {
        script.push(events(std::slice::from_ref(&running)));
        script.push(Answer::Json(200, running.clone()));
    }
    let fake = Fake::start(script).await;
    let ran = Place::at(&fake).run(&format!("{CREATE} --wait=1")).await;
    assert_eq!(ran.code, 7, "{ran:?}");
    assert!(ran.err.contains(&format!("nephos workflow wait {id}")), "{}", ran.err);
}

#[tokio::test]
async fn waiting_survives_a_restart_of_the_cloud() {
    let id = id();
    let running = workflow(&id, "running", &[("find capacity", "running")], None);
    let broken = match events(&[running]) {
        Answer::Stream(kind, mut parts) => {
            parts.push(Err(()));
            Answer::Stream(kind, parts)
        }
        other => other,
    };
    let done = events(&[workflow(&id, "succeeded", &[("find capacity", "succeeded")], None)]);
    let fake = Fake::start([broken, Answer::HangUp, done]).await;
    let ran = Place::at(&fake).run(&format!("workflow wait {id}")).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    fake.finish();
}

#[tokio::test]
async fn what_is_deleted_is_gone() {
    let id = id();
    let fake = Fake::start([
        started(&id),
        events(&[workflow(&id, "succeeded", &[], None)]),
        Answer::Json(404, json!({"error": {"code": "server_not_found", "title": "No server"}})),
    ])
    .await;
    let ran = Place::at(&fake).run("server delete web-1 -y").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""), "{ran:?}");
    assert!(ran.err.contains("server web-1 is deleted in"), "{}", ran.err);
    fake.finish();
}
