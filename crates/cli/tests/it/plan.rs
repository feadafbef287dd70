//! `--plan` says what would change, by reading alone.

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, Place, Ran, Seen};

fn flavor() -> Value {
    json!({"id": "flv-1", "name": "small", "vcpus": 1, "memory_mib": 512, "disk_gib": 0, "labels": {"a": "b"}})
}

fn absent() -> Answer {
    Answer::Json(404, json!({"error": {"kind": "not_found", "code": "flavor_not_found", "title": "none"}}))
}

async fn planned(line: &str, script: impl IntoIterator<Item = Answer>) -> (Ran, Vec<Seen>) {
    let fake = Fake::start(script).await;
    let ran = Place::at(&fake).run(line).await;
    let seen = fake.finish();
    assert!(seen.iter().all(|seen| seen.line.starts_with("GET ")), "only looked: {seen:?}");
    (ran, seen)
}

#[tokio::test]
async fn a_creation_is_planned_unless_the_name_is_taken() {
    let line = "flavor create small --vcpus 1 --memory-mib 512 --plan";
    let (ran, _) = planned(line, [absent()]).await;
    assert_eq!((ran.code, ran.out.lines().next()), (10, Some("+ create flavor small")), "{ran:?}");
    assert!(ran.out.contains("    vcpus: 1\n") && ran.out.contains("    memory_mib: 512\n"), "{ran:?}");
    let (ran, _) = planned(line, [Answer::Json(200, flavor())]).await;
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("name_taken"), "{ran:?}");
}

#[tokio::test]
async fn a_change_shows_what_differs_and_no_difference_is_no_change() {
    let server = || Answer::Json(200, json!({"id": "srv-1", "name": "web", "state": "active", "labels": {"a": "b"}}));
    let (ran, _) = planned("server update web --label a=c --dry-run -o json", [server()]).await;
    assert_eq!(ran.code, 10, "{ran:?}");
    let plans: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(plans[0]["fields"]["labels"], json!({"from": {"a": "b"}, "to": {"a": "c"}}), "{plans}");
    let (ran, _) = planned("server update web --label a=b --plan", [server()]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", "Nothing would change\n"));
}

#[tokio::test]
async fn a_deletion_is_planned_without_being_confirmed() {
    let (ran, seen) = planned("flavor delete small other --plan", [Answer::Json(200, flavor()), absent()]).await;
    assert_eq!((ran.code, seen.len()), (3, 2), "what is not there cannot be deleted: {ran:?}");
    let (ran, _) = planned("flavor delete small --plan", [Answer::Json(200, flavor())]).await;
    assert_eq!((ran.code, ran.out.as_str()), (10, "- delete flavor small\n"), "{ran:?}");
}

#[tokio::test]
async fn what_a_field_refers_to_must_exist() {
    let line = "server create web --image micro --flavor small --plan";
    let found = Answer::Json(200, json!({"id": "x", "name": "x"}));
    let (ran, _) = planned(line, [absent()]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let again = Answer::Json(200, json!({"id": "x", "name": "x"}));
    let (ran, _) = planned(line, [found, again, absent()]).await;
    assert_eq!(ran.code, 10, "{ran:?}");
}

#[tokio::test]
async fn reading_changes_nothing_and_what_cannot_be_planned_is_not_done() {
    let (ran, seen) = planned("flavor list --plan", []).await;
    assert_eq!((ran.code, seen.len()), (0, 0), "{ran:?}");
    let (ran, _) = planned("logout --plan", []).await;
    assert_eq!(ran.code, 2, "{ran:?}");
}
