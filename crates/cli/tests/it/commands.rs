//! Commands as a person or a script runs them.

use serde_json::{Value, json};

use crate::fake::{Answer, Fake, Place};

fn flavor(name: &str) -> Value {
    json!({"id": format!("flv-{name}"), "name": name, "vcpus": 1, "memory_mib": 512, "disk_gib": 0,
           "created_at": "2026-01-01T00:00:00.000000Z"})
}

fn refusal(status: u16, kind: &str) -> Answer {
    Answer::Json(status, json!({"error": {"code": "some_code", "title": "A title", "detail": "the why", "kind": kind}}))
}

#[tokio::test]
async fn exit_codes_are_those_of_the_convention() {
    for (status, kind, code) in [
        (400, "invalid", 2),
        (401, "unauthenticated", 5),
        (403, "forbidden", 6),
        (404, "not_found", 3),
        (409, "conflict", 4),
        (412, "precondition", 4),
        (413, "too_large", 11),
        (429, "quota", 11),
        (500, "internal", 1),
        (503, "unavailable", 1),
        (504, "timeout", 7),
        (507, "capacity", 11),
    ] {
        let fake = Fake::start([refusal(status, kind)]).await;
        let ran = Place::at(&fake).run("flavor show small").await;
        assert_eq!(ran.code, code, "{kind}: {ran:?}");
        assert_eq!(ran.out, "");
        assert!(ran.err.starts_with("✖ A title"), "{}", ran.err);
        assert!(ran.err.contains("[some_code]") && ran.err.contains("  the why\n"), "{}", ran.err);
        assert!(ran.err.contains("request req-0123456789abc"), "{}", ran.err);
        fake.finish();
    }
}

#[tokio::test]
async fn usage_and_reach_have_their_own_codes() {
    let place = Place::new().with("NEPHOS_URL", "http://127.0.0.1:1");
    for (line, code) in [
        ("flavor list", 8),
        ("flavor lst", 2),
        ("flavr list", 2),
        ("flavor create", 2),
        ("flavor create a --vcpus 0 --memory-mib 512", 2),
        ("flavor list -o sideways", 2),
        ("flavor delete small", 2),
        ("help exit", 0),
        ("flavor create --help", 0),
        ("flavor -h", 0),
        ("version", 0),
        ("help nothing-such", 3),
        ("help no_placement", 0),
        ("help keypair_not_found", 0),
        ("help image", 0),
        ("server list --cloud nowhere", 3),
    ] {
        let ran = place.run(line).await;
        assert_eq!(ran.code, code, "{line}: {ran:?}");
        assert_eq!(ran.out.is_empty(), code != 0, "{line}: data only on success: {ran:?}");
    }
    let ran = place.run("flavor lst").await;
    assert!(ran.err.contains("did you mean `list`?"), "{}", ran.err);
    let ran = place.run("flavor delete small").await;
    assert!(ran.err.contains("--yes"), "{}", ran.err);
}

#[tokio::test]
async fn short_help_fits_a_screen() {
    let place = Place::new();
    for noun_verb in [
        "server create",
        "flavor create",
        "server list",
        "workflow wait",
        "network create",
        "subnet create",
        "port create",
        "security-group-rule create",
    ] {
        let ran = place.run(&format!("{noun_verb} -h")).await;
        assert!(ran.out.lines().count() <= 24, "{noun_verb}:\n{}", ran.out);
    }
    let ran = place.run("flavor create -h").await;
    assert_eq!(
        ran.out,
        "Make a size that servers can be created in

Usage: nephos flavor create [OPTIONS] --memory-mib <SIZE> --vcpus <N> <NAME>

Arguments:
  <NAME>  Name, unique in the cloud

Options:
      --memory-mib <SIZE>        Memory in MiB, 16 to 16777216
      --vcpus <N>                Virtual CPUs, 1 to 512
      --disk-gib <SIZE>          Root disk in GiB, up to 65536; 0 means the image's own size
      --forbidden-trait <TRAIT>  Traits that a node must not have, at most 50
      --label <KEY=VALUE>        Labels
      --property <KEY=VALUE>     Properties that the aggregates of a node must have
      --required-trait <TRAIT>   Traits that a node must have, at most 50
  -h, --help                     Print help (see more with '--help')

More, with examples: --help
"
    );
}

#[tokio::test]
async fn all_pages_are_followed_on_request() {
    let page = |name: &str, next: Option<&str>| {
        let mut page = json!({"items": [flavor(name)]});
        if let Some(next) = next {
            page["next"] = next.into();
        }
        Answer::Json(200, page)
    };
    let fake =
        Fake::start([page("a", Some("x-1")), page("b", Some("x-2")), page("c", None), page("a", Some("x-1"))]).await;
    let place = Place::at(&fake);
    let ran = place.run("flavor list --all -o name --limit 1").await;
    assert_eq!(ran.out, "a\nb\nc\n");
    let ran = place.run("flavor list -o name").await;
    assert_eq!(ran.out, "a\n");
    assert!(ran.err.contains("--all, or --after x-1"), "{}", ran.err);
    let seen = fake.finish();
    assert_eq!(seen[1].line, "GET /v1/flavors?after=x-1&limit=1");
}

#[tokio::test]
async fn several_targets_fail_in_part() {
    let fake = Fake::start([Answer::Empty(204), refusal(404, "not_found"), Answer::Empty(204)]).await;
    let ran = Place::at(&fake).run_with("flavor delete - --yes", b"a\nb\nc\n").await;
    assert_eq!(ran.code, 9, "{ran:?}");
    assert!(ran.err.contains("1 of 3 failed"), "{}", ran.err);
    assert_eq!(fake.finish().len(), 3);

    let fake = Fake::start([refusal(404, "not_found"), refusal(404, "not_found")]).await;
    let ran = Place::at(&fake).run("flavor rm a b -y").await;
    assert_eq!(ran.code, 3, "{ran:?}");
    fake.finish();
}

#[tokio::test]
async fn nothing_is_sent_when_only_explaining() {
    let fake = Fake::start([]).await;
    let place = Place::at(&fake);
    let ran = place.run("user create alice --password hush --explain").await;
    assert!(ran.out.contains("operation  user.create") && !ran.out.contains("hush"), "{ran:?}");
    let ran = place.run("flavor create a --vcpus 1 --memory-mib 512 --curl").await;
    assert!(ran.out.contains("$NEPHOS_TOKEN") && !ran.out.contains("token-1"), "{}", ran.out);
    assert!(ran.out.contains(r#"-d '{"memory_mib":512,"name":"a","vcpus":1}'"#), "{}", ran.out);
    assert!(fake.finish().is_empty());
}

#[tokio::test]
async fn debugging_masks_secrets() {
    let fake = Fake::start([Answer::Json(200, json!({"id": "x", "secret": "hush-2"}))]).await;
    let ran = Place::at(&fake).run("user create alice --password hush-1 --debug").await;
    assert!(ran.err.contains("> POST ") && ran.err.contains("< 200"), "{}", ran.err);
    assert!(!ran.err.contains("hush") && !ran.err.contains("token-1"), "{}", ran.err);
    fake.finish();
}

#[tokio::test]
async fn any_request_can_be_sent() {
    let fake = Fake::start([Answer::Json(200, json!({"b": 1, "a": [2]})), Answer::Empty(204)]).await;
    let place = Place::at(&fake);
    let ran = place.run("api GET /v1/servers?limit=1").await;
    assert_eq!(ran.out, "{\n  \"a\": [\n    2\n  ],\n  \"b\": 1\n}\n");
    let ran = place.run_with("api post /v1/x -d -", b"{\"y\": 1}").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    let seen = fake.finish();
    assert_eq!(seen[0].line, "GET /v1/servers?limit=1");
    assert_eq!(seen[0].header("authorization"), Some("Bearer token-1"));
    assert_eq!((seen[1].line.as_str(), seen[1].json()), ("POST /v1/x", json!({"y": 1})));
}

fn new_token(token: &str) -> Answer {
    let identity = json!({
        "user": nephos_types::UserId::new(), "user_name": "admin", "user_domain": nephos_types::DomainId::new(),
        "scope": {"type": "unscoped"}, "roles": ["admin"], "methods": ["password"],
        "issued_at": nephos_types::Timestamp::now(),
        "expires_at": nephos_types::Timestamp::now().plus(std::time::Duration::from_secs(3600)),
    });
    Answer::Json(200, json!({"token": token, "identity": identity}))
}

#[tokio::test]
async fn the_data_folders_password_becomes_a_remembered_token() {
    let list = || Answer::Json(200, json!({"items": []}));
    let fake = Fake::start([
        new_token("fresh-1"),
        list(),
        list(),
        refusal(401, "unauthenticated"),
        new_token("fresh-2"),
        list(),
    ])
    .await;
    let place = Place::new();
    let data = place.path().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(
        data.join("clouds.yaml"),
        format!(
            "clouds:\n  nephos:\n    auth: {{auth_url: '{}/identity/v3', username: admin, password: hush, project_name: demo, user_domain_name: Default, project_domain_name: Default}}\n",
            fake.url()
        ),
    )
    .unwrap();
    for _ in 0..3 {
        let ran = place.run("flavor list").await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.err.contains("No flavors in project demo."), "{}", ran.err);
    }
    let seen = fake.finish();
    assert_eq!(seen[0].line, "POST /v1/tokens");
    assert_eq!(seen[0].json()["project"], "demo");
    let tokens: Vec<_> = seen.iter().map(|seen| seen.header("authorization").unwrap_or("-")).collect();
    // Once for two commands; and once more when the remembered one was refused.
    assert_eq!(tokens, ["-", "Bearer fresh-1", "Bearer fresh-1", "Bearer fresh-1", "-", "Bearer fresh-2"]);
    for file in std::fs::read_dir(place.path().join(".cache/nephos")).unwrap() {
        use std::os::unix::fs::PermissionsExt;
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn a_login_is_kept_used_and_forgotten() {
    let fake = Fake::start([new_token("kept-1"), Answer::Json(200, json!({"items": []})), Answer::Empty(204)]).await;
    let place = Place::new();
    let line = format!("login --url {} --user admin --project demo --password -", fake.url());
    let ran = place.run_with(&line, b"hush\n").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let file = place.path().join(".config/nephos/credentials.toml");
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.contains("kept-1") && !kept.contains("hush"), "{kept}");
    assert_eq!(place.run("flavor list").await.code, 0);
    assert_eq!(place.run("logout").await.code, 0);
    assert_eq!(place.run("logout").await.code, 3);
    let seen = fake.finish();
    assert_eq!(seen[0].json()["password"], "hush");
    assert_eq!(seen[1].header("authorization"), Some("Bearer kept-1"));
    assert_eq!(seen[2].line, "POST /v1/tokens/revoke");

    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let ran = place.run("flavor list").await;
    assert!(ran.err.contains("[readable_by_others]"), "{}", ran.err);
}

#[tokio::test]
async fn downloads_go_to_files_whole_or_not_at_all() {
    let part = |text: &'static str| Ok(bytes::Bytes::from_static(text.as_bytes()));
    let fake = Fake::start([
        Answer::Stream("application/x-tar", vec![part("abc"), part("def")]),
        Answer::Stream("application/x-tar", vec![part("abc"), Err(())]),
        Answer::Stream("text/plain", vec![part("log\n")]),
    ])
    .await;
    let place = Place::at(&fake);
    let ran = place.run("system backup --file b.tar").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(std::fs::read(place.path().join("b.tar")).unwrap(), b"abcdef");
    let ran = place.run("system backup --file c.tar").await;
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(!place.path().join("c.tar").exists() && !place.path().join("c.tar.part").exists());
    let ran = place.run("server console-log web").await;
    assert_eq!(ran.out, "log\n");
    fake.finish();
}

#[tokio::test]
async fn every_shell_is_told_how_to_ask_for_completions() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = place.run(&format!("completion {shell}")).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.out.contains("NEPHOS_COMPLETE"), "{shell}: {}", ran.out);
    }
}

#[tokio::test]
async fn words_are_completed_without_the_cloud_and_names_with_it() {
    let servers = json!({"items": [
        {"id": "srv-1", "name": "web-1"}, {"id": "srv-2", "name": "web-2"}, {"id": "srv-3", "name": "db"},
    ]});
    let fake = Fake::start([Answer::Json(200, servers)]).await;
    let place = Place::at(&fake).with("NEPHOS_COMPLETE", "fish");
    let offered = async |line: &str| {
        let ran = place.run(&format!("-- {line}")).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.lines().map(|line| line.split('\t').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(offered("nephos serv").await, ["server", "server-group"]);
    assert!(offered("nephos server con").await.contains(&"console-log".to_owned()));
    assert!(offered("nephos server create --fl").await.contains(&"--flavor".to_owned()));
    assert_eq!(offered("nephos server show web").await, ["web-1", "web-2"]);
    // From here on they are known.
    assert_eq!(offered("nephos server delete d").await, ["db"]);
    assert_eq!(offered("nephos server show srv-").await, ["srv-1", "srv-2", "srv-3"]);
    assert_eq!(offered("nephos server show nothing").await, Vec::<String>::new());
    let seen = fake.finish();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].line, "GET /v1/servers?limit=1000");
}

#[tokio::test]
async fn nothing_is_offered_where_no_cloud_answers() {
    let place = Place::new().with("NEPHOS_URL", "http://127.0.0.1:1").with("NEPHOS_COMPLETE", "fish");
    let ran = place.run("-- nephos server show w").await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "", ""));
}

#[tokio::test]
async fn an_image_is_created_and_sent_in_one_go() {
    let image = json!({"id": "img-1", "name": "micro", "state": "active"});
    let fake = Fake::start([Answer::Json(200, image.clone()), Answer::Json(200, image)]).await;
    let place = Place::at(&fake);
    std::fs::write(place.path().join("micro.raw"), b"0123456789").unwrap();
    let ran = place.run("image create micro --format raw --file micro.raw -o value -c id").await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "img-1\n"), "{ran:?}");
    assert!(ran.err.starts_with("sent 10 B in "), "{}", ran.err);
    let seen = fake.finish();
    assert_eq!(seen[0].line, "POST /v1/images");
    assert_eq!(seen[1].line, "PUT /v1/images/img-1/data");
    assert_eq!((seen[1].header("content-length"), &seen[1].body[..]), (Some("10"), &b"0123456789"[..]));
}

#[tokio::test]
async fn a_file_that_is_not_there_creates_nothing() {
    let fake = Fake::start([]).await;
    let ran = Place::at(&fake).run("image create micro --format raw --file nowhere").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("Cannot read nowhere"), "{}", ran.err);
    assert!(fake.finish().is_empty());
}

#[tokio::test]
async fn an_upload_reads_standard_input() {
    let fake = Fake::start([Answer::Json(200, json!({"id": "img-1", "name": "micro"}))]).await;
    let ran = Place::at(&fake).run_with("image upload micro --file - -q", b"abc").await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "micro\n", ""), "{ran:?}");
    assert_eq!(&fake.finish()[0].body[..], b"abc");
}
