//! The core itself: repeated creations, panicking handlers, operations nobody handles.

use std::sync::Arc;

use futures_util::future::join_all;
use nephos_cloud::{Handlers, Session, idempotency};
use nephos_ops::{
    Context,
    compute::{CreateFlavor, Flavor, ListFlavors},
    identity::{CreateAccessKey, CreateApplicationCredential, CreateProject, ListProjects},
};
use nephos_types::{ErrorKind, Page, Result};
use serde_json::json;

use crate::identity::world::{PASSWORD, World, code, input};

fn keyed(context: &Context, key: &str) -> Context {
    let mut context = context.clone();
    context.idempotency_key = Some(key.to_owned());
    context
}

fn project(name: &str) -> CreateProject {
    input(json!({ "name": name }))
}

#[tokio::test]
async fn a_repeated_creation_gives_what_the_first_one_made() {
    let world = World::new().await;
    let admin = world.admin().await;
    let first = keyed(&admin, "k1").call(project("shop")).await.unwrap();
    assert_eq!(keyed(&admin, "k1").call(project("shop")).await.unwrap(), first);
    let error = keyed(&admin, "k1").call(project("other")).await.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "idempotency_mismatch"));
    assert_eq!(code(keyed(&admin, "k2").call(project("shop")).await), "name_taken");
    // A refused call leaves nothing behind under its key.
    keyed(&admin, "k2").call(project("other")).await.unwrap();
    for bad in ["", "a\nb", &"x".repeat(256)] {
        assert_eq!(code(keyed(&admin, bad).call(project("third")).await), "invalid_idempotency_key");
    }
    assert_eq!(idempotency::sweep(&world.store).await.unwrap(), 0, "kept for a day");
}

#[tokio::test]
async fn keys_of_different_users_do_not_meet() {
    let world = World::new().await;
    world.user("second", "default", Some(json!({ "role": "admin", "system": true }))).await;
    let login = json!({ "user": "second", "password": "second's password", "system": true });
    let second = world.log_in(login).await.unwrap();
    let one = keyed(&world.admin().await, "key").call(project("one")).await.unwrap();
    let two = keyed(&second, "key").call(project("two")).await.unwrap();
    assert_ne!(one.id, two.id);
}

#[tokio::test]
async fn many_calls_at_once_with_one_key_make_one_thing() {
    let world = World::new().await;
    let admin = keyed(&world.admin().await, "key");
    let answers = join_all((0..16).map(|_| admin.call(project("shop")))).await;
    let ids: std::collections::BTreeSet<_> = answers.into_iter().map(|answer| answer.unwrap().id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(admin.call(ListProjects::default()).await.unwrap().items.len(), 3);
}

#[tokio::test]
async fn secrets_that_are_not_kept_are_not_repeated() {
    let world = World::new().await;
    let demo = keyed(&world.log_in(json!({ "user": "admin", "password": PASSWORD })).await.unwrap(), "key");
    let key = demo.call(CreateAccessKey::default()).await.unwrap();
    assert_eq!(demo.call(CreateAccessKey::default()).await.unwrap(), key, "an access key's secret is kept, sealed");
    let other = keyed(&demo, "other");
    let credential = || input::<CreateApplicationCredential>(json!({ "name": "backup" }));
    other.call(credential()).await.unwrap();
    assert_eq!(code(other.call(credential()).await), "secret_not_repeated");
}

async fn panics(_: Arc<()>, _: Session, _: ListFlavors) -> Result<Page<Flavor>> {
    panic!("inner workings")
}

#[tokio::test]
async fn a_panic_is_an_error_and_the_core_goes_on() {
    let mut handlers = Handlers::new();
    handlers.handle(&Arc::new(()), panics);
    let world = World::open(tempfile::tempdir().unwrap(), vec![], Some(PASSWORD), handlers).await;
    let admin = world.admin().await;
    let error = admin.call(ListFlavors::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Internal);
    assert!(!error.to_string().contains("inner workings"), "internals are for the log");
    assert!(admin.call(ListProjects::default()).await.is_ok());
    let unhandled = json!({ "name": "x", "vcpus": 1, "memory_mib": 64 });
    assert_eq!(admin.call(input::<CreateFlavor>(unhandled)).await.unwrap_err().kind, ErrorKind::Unsupported);
}

#[tokio::test]
async fn every_operation_of_identity_has_a_handler() {
    let mut handlers = Handlers::new();
    let world = World::new().await;
    nephos_cloud::identity::register(&mut handlers, &world.authority);
    let missing = handlers.missing();
    for noun in ["token", "domain", "project", "user", "group", "role", "assignment", "access-key"] {
        assert!(missing.iter().all(|name| !name.starts_with(&format!("{noun}."))), "{missing:?}");
    }
}
