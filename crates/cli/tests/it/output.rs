//! What answers look like in each format.

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, Place};

fn servers() -> Value {
    json!({"items": [
        {"id": "srv-2", "name": "web-1", "state": "active", "flavor_name": "small", "memory_mib": 2048, "labels": {"a": "b"}},
        {"id": "srv-1", "name": "db", "state": "building", "flavor_name": "large, really", "memory_mib": 512},
    ]})
}

async fn printed(line: &str, answer: Value) -> crate::fake::Ran {
    let fake = Fake::start([Answer::Json(200, answer)]).await;
    let ran = Place::at(&fake).run(line).await;
    fake.finish();
    ran
}

#[tokio::test]
async fn tables_are_plain_and_their_footer_is_apart() {
    let ran = printed("server list -c name,state,memory_mib,flavor_name", servers()).await;
    assert_eq!(
        ran.out,
        "NAME   STATE       MEMORY  FLAVOR\n\
         web-1  ● active     2 GiB  small\n\
         db     ◐ building  512 MiB  large, really\n"
            .replace("STATE       MEMORY", "STATE        MEMORY")
            .replace("active     2 GiB", "active      2 GiB")
    );
    assert_eq!(ran.err, "2 servers (1 active, 1 building)\n");
}

#[tokio::test]
async fn an_empty_list_says_what_to_do_and_prints_no_data() {
    let ran = printed("server list", json!({"items": []})).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(ran.err, "No servers. Create one: nephos server create web-1 --image micro --flavor small\n");
    let ran = printed("server list -o json", json!({"items": []})).await;
    assert_eq!(ran.out, "[]\n");
}

#[tokio::test]
async fn every_format_holds_the_same_data() {
    for (format, expected) in [
        ("name", "web-1\ndb\n"),
        ("value -c id,name", "srv-2 web-1\nsrv-1 db\n"),
        ("value -c id,name --sort name", "srv-1 db\nsrv-2 web-1\n"),
        ("value -c name --sort -memory_mib", "web-1\ndb\n"),
        ("csv -c name,flavor_name", "name,flavor_name\nweb-1,small\ndb,\"large, really\"\n"),
        ("csv -c name,flavor_name --no-header", "web-1,small\ndb,\"large, really\"\n"),
        ("jsonl -c name,labels.a", "{\"labels.a\":\"b\",\"name\":\"web-1\"}\n{\"labels.a\":null,\"name\":\"db\"}\n"),
        ("yaml -c name", "- name: web-1\n- name: db\n"),
    ] {
        let ran = printed(&format!("server list -o {format}"), servers()).await;
        assert_eq!(ran.out, expected, "{format}: {}", ran.err);
        assert_eq!(ran.err, "", "{format}");
    }
    let ran = printed("server list -o json", servers()).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), servers()["items"]);
    let ran = printed("server list -q", servers()).await;
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("web-1\ndb\n", ""));
    let ran = printed("-o name server ls", servers()).await;
    assert_eq!(ran.out, "web-1\ndb\n");
}

#[tokio::test]
async fn one_object_is_lines_or_variables_or_itself() {
    let server = || servers()["items"][0].clone();
    let ran = printed("server show web-1", server()).await;
    assert_eq!(
        ran.out,
        "name:        web-1\nid:          srv-2\nstate:       ● active\nflavor_name: small\nlabels:      a=b\nmemory_mib:  2 GiB\n"
    );
    let ran = printed("server show web-1 -o env", server()).await;
    assert!(ran.out.contains("NEPHOS_SERVER_ID='srv-2'\n"), "{}", ran.out);
    let ran = printed("server show web-1 -o json", server()).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), server());
    let ran = printed("server list -o env", servers()).await;
    assert_eq!(ran.code, 2);
}

#[tokio::test]
async fn columns_are_listed_and_checked() {
    let ran = printed("server list -c help", servers()).await;
    assert!(ran.out.starts_with("name\nstate\n") && ran.out.contains("memory_mib\n"), "{}", ran.out);
    let ran = printed("server list -c nam", servers()).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("[unknown_column]"), "{}", ran.err);
}

#[tokio::test]
async fn names_cannot_steer_the_terminal() {
    let ran = printed("server show x", json!({"name": "a\u{1b}]0;owned\u{7}b", "id": "x"})).await;
    assert!(!ran.out.contains('\u{1b}') && !ran.out.contains('\u{7}'), "{:?}", ran.out);
}

#[tokio::test]
async fn colors_follow_flag_and_environment() {
    let fake = Fake::start((0..3).map(|_| Answer::Json(200, servers()))).await;
    assert!(!Place::at(&fake).run("server list").await.out.contains('\u{1b}'));
    assert!(Place::at(&fake).with("FORCE_COLOR", "1").run("server list").await.out.contains("\u{1b}[32m"));
    assert!(!Place::at(&fake).with("FORCE_COLOR", "1").run("server list --no-color").await.out.contains('\u{1b}'));
    fake.finish();
}

#[tokio::test]
async fn symbols_follow_the_locale() {
    let fake = Fake::start([Answer::Json(200, servers())]).await;
    let ran = Place::at(&fake).with("LC_ALL", "C").run("server list -c state").await;
    assert_eq!(ran.out, "STATE\n* active\n~ building\n");
    fake.finish();
}
