//! The first start.

use std::{fs, os::unix::fs::PermissionsExt};

use nephos_cloud::{
    Handlers,
    identity::{self, FirstStart},
};
use nephos_store::ChangeQuery;
use serde_json::json;

use super::world::{PASSWORD, URL, World};

const FILES: [&str; 4] = ["clouds.yaml", "openrc", "openrc-admin", "aws-credentials"];

#[tokio::test]
async fn a_generated_password_is_told_once_and_logs_in_to_both_projects_and_the_system() {
    let world = World::open(tempfile::tempdir().unwrap(), vec![], None, Handlers::new()).await;
    let printed = world.printed.as_ref().unwrap();
    let password = printed.password.as_ref().unwrap().reveal();
    assert_eq!((printed.user, printed.files.len()), ("admin", FILES.len()));
    for scope in [json!({}), json!({ "project": "admin" }), json!({ "project": "demo" }), json!({ "system": true })] {
        let mut login = scope.clone();
        login["user"] = "admin".into();
        login["password"] = password.into();
        let context = world.log_in(login).await.unwrap();
        let identity = context.caller.identity.clone().unwrap();
        assert_eq!(
            identity.roles.iter().map(String::as_str).collect::<Vec<_>>(),
            ["admin", "manager", "member", "reader"]
        );
        if scope == json!({}) {
            assert!(matches!(&identity.scope, nephos_ops::Scope::Project { name, .. } if name.as_str() == "demo"));
        }
    }
    let clouds = fs::read_to_string(world.folder.path().join("clouds.yaml")).unwrap();
    assert!(
        clouds.contains(&format!("password: \"{password}\""))
            && clouds.contains("auth_url: http://127.0.0.1:6780/identity/v3")
    );
}

#[tokio::test]
async fn files_are_private_and_secrets_are_nowhere_else() {
    let world = World::new().await;
    assert!(world.printed.as_ref().unwrap().password.is_none(), "a given password is not printed");
    let aws = fs::read_to_string(world.folder.path().join("aws-credentials")).unwrap();
    let secret = aws.lines().find_map(|line| line.strip_prefix("aws_secret_access_key = ")).unwrap().to_owned();
    for entry in fs::read_dir(world.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if FILES.contains(&name.as_str()) {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
            continue;
        }
        let content = fs::read(&path).unwrap();
        for hidden in [PASSWORD, &secret] {
            assert!(!content.windows(hidden.len()).any(|part| part == hidden.as_bytes()), "{name} holds a secret");
        }
    }
    let log = world.store.changes(&ChangeQuery::new().limit(1000)).await.unwrap();
    assert_eq!(log.iter().filter(|change| change.kind.ends_with("_secret")).count(), 2);
    for change in log {
        let shown = change.after_json().unwrap().unwrap();
        assert_eq!(shown["body"].is_null(), change.kind.ends_with("_secret"), "{shown}");
        assert!(!shown.to_string().contains("argon2"), "{shown}");
    }
}

#[tokio::test]
async fn later_starts_change_nothing_but_the_address() {
    let world = World::new().await;
    let revision = world.store.revision();
    let data = world.folder.path();
    let before = fs::read_to_string(data.join("clouds.yaml")).unwrap();
    let same = FirstStart {
        admin_password: Some("another".parse().unwrap()),
        url: URL.to_owned(),
        authority: data.join("ca.pem"),
    };
    assert!(identity::bootstrap(&world.authority, data, same).await.unwrap().is_none());
    assert_eq!(fs::read_to_string(data.join("clouds.yaml")).unwrap(), before);

    fs::remove_file(data.join("openrc-admin")).unwrap();
    let moved =
        FirstStart { admin_password: None, url: "http://192.0.2.1:80".to_owned(), authority: "/moved/ca.pem".into() };
    assert!(identity::bootstrap(&world.authority, data, moved).await.unwrap().is_none());
    for name in ["clouds.yaml", "openrc"] {
        let text = fs::read_to_string(data.join(name)).unwrap();
        assert!(text.contains("http://192.0.2.1:80/identity/v3") && !text.contains(URL), "{name}");
        assert!(text.contains("/moved/ca.pem") && !text.contains(data.to_str().unwrap()), "{name}: {text}");
    }
    assert!(!data.join("openrc-admin").exists(), "what people removed stays away");
    assert_eq!(world.store.revision(), revision);
}

#[tokio::test]
async fn awkward_passwords_survive_the_files() {
    let password = r#"it's "quoted" $HOME \ #1: {x}"#;
    let world = World::open(tempfile::tempdir().unwrap(), vec![], Some(password), Handlers::new()).await;
    let openrc = world.folder.path().join("openrc");
    let output = std::process::Command::new("sh")
        .args(["-c", ". \"$0\"; printf %s \"$OS_PASSWORD\"", openrc.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), password);
    let clouds = fs::read_to_string(world.folder.path().join("clouds.yaml")).unwrap();
    let clouds: serde_json::Value = serde_yaml_ng::from_str(&clouds).unwrap();
    for (cloud, project) in [("nephos", "demo"), ("nephos-admin", "admin")] {
        let expected = serde_json::json!({
            "auth": {
                "auth_url": "http://127.0.0.1:6780/identity/v3",
                "username": "admin",
                "password": password,
                "project_name": project,
                "user_domain_name": "default",
                "project_domain_name": "default",
            },
            "identity_api_version": 3,
            "region_name": "RegionOne",
            "interface": "public",
            "cacert": world.folder.path().join("ca.pem"),
        });
        assert_eq!(clouds["clouds"][cloud], expected);
    }
}
