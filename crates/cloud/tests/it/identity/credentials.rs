//! Application credentials and access keys.

use nephos_cloud::identity::kinds::AccessKeySecret;
use nephos_ops::identity::{
    CreateAccessKey, CreateApplicationCredential, DeleteAccessKey, DeleteApplicationCredential, DeleteAssignment,
    ListAccessKeys, ListApplicationCredentials, ListAssignments, ShowAccessKey, ShowApplicationCredential,
};
use nephos_types::{ErrorKind, Timestamp};
use serde_json::{Value, json};

use super::world::{PASSWORD, World, code, input, password_of};

async fn world_with_alice() -> (World, nephos_ops::Context) {
    let world = World::new().await;
    world.user("alice", "default", Some(json!({ "role": "member", "project": "demo" }))).await;
    let alice = world.log_in(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    (world, alice)
}

fn credential(more: Value) -> CreateApplicationCredential {
    let mut all = json!({ "name": "backup" });
    all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    input(all)
}

#[tokio::test]
async fn an_application_credential_gives_what_was_chosen_and_is_shown_once() {
    let (world, alice) = world_with_alice().await;
    let made = alice.call(credential(json!({ "roles": ["reader"] }))).await.unwrap();
    let shown = alice.call(input::<ShowApplicationCredential>(json!({ "credential": "backup" }))).await.unwrap();
    assert_eq!(shown, made.credential);
    assert_eq!(shown.roles.iter().map(ToString::to_string).collect::<Vec<_>>(), ["reader"]);

    for login in [
        json!({ "application_credential": made.credential.id, "secret": made.secret }),
        json!({ "application_credential": "backup", "user": "alice", "secret": made.secret }),
    ] {
        let program = world.log_in(login).await.unwrap();
        let identity = program.caller.identity.clone().unwrap();
        assert_eq!(identity.roles.iter().map(String::as_str).collect::<Vec<_>>(), ["reader"]);
        assert_eq!(identity.login.application_credential, Some(made.credential.id));
        assert_eq!(code(program.call(credential(json!({}))).await), "restricted_credential");
        assert_eq!(code(program.call(CreateAccessKey::default()).await), "restricted_credential");
        let delete = json!({ "credential": "backup" });
        assert_eq!(code(program.call(input::<DeleteApplicationCredential>(delete)).await), "restricted_credential");
    }
    let scoped = json!({ "application_credential": made.credential.id, "secret": made.secret, "project": "demo" });
    assert_eq!(code(world.token(scoped).await), "scope_not_allowed");
    assert_eq!(code(alice.call(credential(json!({}))).await), "name_taken");
    assert_eq!(code(alice.call(credential(json!({ "name": "b", "roles": ["admin"] }))).await), "role_not_held");
    assert_eq!(code(alice.call(credential(json!({ "name": "b", "roles": [] }))).await), "no_roles");
    let past = json!({ "name": "b", "expires_at": "2020-01-01T00:00:00Z" });
    assert_eq!(code(alice.call(credential(past)).await), "expires_in_the_past");
}

#[tokio::test]
async fn a_chosen_secret_works_and_unrestricted_ones_make_more() {
    let (world, alice) = world_with_alice().await;
    let made = alice.call(credential(json!({ "secret": "chosen by alice", "unrestricted": true }))).await.unwrap();
    let login = json!({ "application_credential": made.credential.id, "secret": "chosen by alice" });
    let program = world.log_in(login).await.unwrap();
    program.call(credential(json!({ "name": "second" }))).await.unwrap();
    assert_eq!(alice.call(ListApplicationCredentials::default()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn its_tokens_end_with_it_with_its_time_and_with_its_roles() {
    let (world, alice) = world_with_alice().await;
    let soon = Timestamp::now().plus(std::time::Duration::from_secs(600));
    let made = alice.call(credential(json!({ "expires_at": soon }))).await.unwrap();
    let login = json!({ "application_credential": made.credential.id, "secret": made.secret });
    let token = world.token(login.clone()).await.unwrap();
    assert!(world.with(&token).await.unwrap().caller.identity.as_ref().unwrap().expires_at <= soon);

    let admin = world.admin().await;
    let held = admin.call(input::<ListAssignments>(json!({ "user": "alice" }))).await.unwrap();
    world.give("alice", "default", json!({ "role": "reader", "project": "demo" })).await;
    admin.call(DeleteAssignment { assignment: held.items[0].id }).await.unwrap();
    assert!(world.with(&token).await.is_err(), "one of its roles is gone, though not all");
    assert!(world.token(login.clone()).await.is_err());
    world.give("alice", "default", json!({ "role": "member", "project": "demo" })).await;
    assert!(world.with(&token).await.is_ok());

    alice.call(input::<DeleteApplicationCredential>(json!({ "credential": made.credential.id }))).await.unwrap();
    assert!(world.with(&token).await.is_err());
    assert_eq!(code(world.token(login).await), "wrong_credentials");
}

#[tokio::test]
async fn credentials_belong_to_their_owner() {
    let (world, alice) = world_with_alice().await;
    let made = alice.call(credential(json!({}))).await.unwrap();
    let key = alice.call(CreateAccessKey::default()).await.unwrap().key.id;
    world.user("bob", "default", Some(json!({ "role": "manager", "project": "demo" }))).await;
    let bob = world.log_in(json!({ "user": "bob", "password": password_of("bob") })).await.unwrap();
    let show = json!({ "credential": made.credential.id });
    assert_eq!(code(bob.call(input::<ShowApplicationCredential>(show)).await), "application_credential_not_found");
    let of_alice = json!({ "user": "alice" });
    assert_eq!(code(bob.call(input::<ListApplicationCredentials>(of_alice.clone())).await), "not_yours");
    assert_eq!(code(bob.call(ShowAccessKey { key }).await), "access_key_not_found");
    assert_eq!(code(bob.call(DeleteAccessKey { key }).await), "access_key_not_found");
    assert!(bob.call(ListAccessKeys::default()).await.unwrap().items.is_empty());
    let admin = world.admin().await;
    assert_eq!(admin.call(input::<ListAccessKeys>(of_alice)).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn an_access_keys_secret_is_sealed_and_signs_as_its_owner() {
    let (world, alice) = world_with_alice().await;
    let made = alice.call(CreateAccessKey::default()).await.unwrap();
    let stored = world.store.get::<AccessKeySecret>(made.key.id).unwrap();
    assert!(!stored.body.sealed.contains(made.secret.reveal()));
    let (secret, identity) = world.authority.access_key(made.key.id).unwrap();
    assert_eq!(secret, made.secret);
    assert_eq!((identity.user_name.as_str(), identity.roles.contains("member")), ("alice", true));
    assert_eq!(identity.project(), Some(made.key.project));

    alice.call(DeleteAccessKey { key: made.key.id }).await.unwrap();
    assert_eq!(world.authority.access_key(made.key.id).unwrap_err().kind, ErrorKind::Unauthenticated);
    assert!(world.store.get::<AccessKeySecret>(made.key.id).is_none());
}

#[tokio::test]
async fn an_access_key_made_with_a_credential_gives_no_more_and_ends_with_it() {
    let (world, alice) = world_with_alice().await;
    let made = alice.call(credential(json!({ "roles": ["reader"], "unrestricted": true }))).await.unwrap();
    let login = json!({ "application_credential": made.credential.id, "secret": made.secret });
    let key = world.log_in(login).await.unwrap().call(CreateAccessKey::default()).await.unwrap().key.id;
    let (_, identity) = world.authority.access_key(key).unwrap();
    assert!(identity.roles.contains("reader") && !identity.roles.contains("member"));
    alice.call(input::<DeleteApplicationCredential>(json!({ "credential": "backup" }))).await.unwrap();
    assert!(world.authority.access_key(key).is_err());
}

#[tokio::test]
async fn no_credential_without_a_project() {
    let world = World::new().await;
    let admin = world.log_in(json!({ "user": "admin", "password": PASSWORD, "system": true })).await.unwrap();
    assert_eq!(code(admin.call(CreateAccessKey::default()).await), "no_project");
    assert_eq!(code(admin.call(credential(json!({}))).await), "no_project");
}
