//! Logging in and out, and what ends a token.

use std::time::Instant;

use nephos_cloud::identity::kinds::Revocation;
use nephos_ops::{
    Scope,
    identity::{
        CreateToken, DeleteAssignment, DeleteUser, ListAssignments, ResetPassword, RevokeToken, SetPassword, ShowToken,
        UpdateDomain, UpdateProject, UpdateUser,
    },
};
use nephos_store::{Author, Draft, Query, Transaction};
use nephos_types::{ErrorKind, RevocationId, Timestamp, UserId};
use serde_json::{Value, json};

use super::world::{PASSWORD, World, code, input, password_of};

#[tokio::test]
async fn every_wrong_credential_is_refused_in_the_same_words() {
    let world = World::new().await;
    world.user("alice", "default", None).await;
    world.user("off", "default", None).await;
    world.admin().await.call(input::<UpdateUser>(json!({ "user": "off", "enabled": false }))).await.unwrap();
    let tries = [
        json!({ "user": "alice", "password": "wrong" }),
        json!({ "user": "nobody", "password": "wrong" }),
        json!({ "user": "off", "password": password_of("off") }),
        json!({ "user": "alice", "user_domain": "nowhere", "password": password_of("alice") }),
        json!({ "application_credential": "appcred-0000000000000", "secret": "x" }),
        json!({ "application_credential": "x", "user": "alice", "secret": "x" }),
    ];
    let mut errors = vec![];
    for login in tries {
        errors.push(world.token(login).await.unwrap_err());
    }
    assert_eq!(errors[0].kind, ErrorKind::Unauthenticated);
    assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
}

#[tokio::test]
async fn unclear_logins_are_invalid() {
    let world = World::new().await;
    let tries = [
        json!({}),
        json!({ "user": "admin" }),
        json!({ "password": "x" }),
        json!({ "user": "admin", "password": "x", "token": "y" }),
        json!({ "application_credential": "x" }),
        json!({ "user": "admin", "password": PASSWORD, "system": true, "project": "demo" }),
        json!({ "user": "admin", "password": PASSWORD, "project_domain": "default" }),
    ];
    for login in tries {
        assert_eq!(world.token(login.clone()).await.unwrap_err().kind, ErrorKind::Invalid, "{login}");
    }
}

#[tokio::test]
async fn guessing_is_slowed_down_per_user_and_forgiven_by_a_success() {
    let world = World::new().await;
    world.user("alice", "default", None).await;
    let wrong = json!({ "user": "alice", "password": "wrong" });
    for _ in 0..4 {
        assert_eq!(code(world.token(wrong.clone()).await), "wrong_credentials");
    }
    world.token(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    for _ in 0..6 {
        assert_eq!(code(world.token(wrong.clone()).await), "wrong_credentials");
    }
    let error = world.token(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimited);
    assert!(error.detail.contains(" s"), "{}", error.detail);
    world.admin().await;
}

#[tokio::test]
async fn guessing_at_several_processes_gives_no_more_tries() {
    let worlds = World::pair().await;
    worlds[0].user("alice", "default", None).await;
    let wrong = json!({ "user": "alice", "password": "wrong" });
    let begin = Instant::now();
    // The waits only grow, so however slow this is they are both refused in the end.
    let (mut tried, mut refused) = (0, 0);
    for world in worlds.iter().cycle() {
        match code(world.token(wrong.clone()).await).as_str() {
            "wrong_credentials" => (tried, refused) = (tried + 1, 0),
            "too_many_attempts" => refused += 1,
            other => panic!("{other}"),
        }
        if refused == 2 {
            break;
        }
    }
    assert!(tried <= 6 + begin.elapsed().as_secs(), "{tried} tries");

    // All at once.
    let begin = Instant::now();
    let tries = (0..80).map(|number| worlds[number % 2].token(json!({ "user": "admin", "password": "wrong" })));
    let codes: Vec<_> = futures_util::future::join_all(tries).await.into_iter().map(code).collect();
    let tried = codes.iter().filter(|code| *code == "wrong_credentials").count();
    assert!(tried <= 32 + begin.elapsed().as_secs() as usize, "{tried} tries: {codes:?}");
    assert!(codes.iter().all(|code| code == "wrong_credentials" || code == "too_many_attempts"), "{codes:?}");
}

#[tokio::test]
async fn a_login_of_who_has_not_failed_writes_nothing() {
    let world = World::new().await;
    let before = world.store.revision();
    world.token(json!({ "user": "admin", "password": PASSWORD })).await.unwrap();
    assert_eq!(world.store.revision(), before);
}

#[tokio::test]
async fn guessing_at_many_users_is_slowed_down_per_address_but_not_from_loopback() {
    let world = World::new().await;
    for (address, limited) in [("198.51.100.9:1", true), ("[2001:db8::1]:1", true), ("127.0.0.1:1", false)] {
        let mut refused = false;
        for guess in 0..40 {
            let login = json!({ "user": format!("user{guess}"), "password": "wrong" });
            let address = format!("{address}{guess}");
            refused |= code(world.from(&address, None).call(input::<CreateToken>(login)).await) == "too_many_attempts";
        }
        assert_eq!(refused, limited, "{address}");
    }
}

#[tokio::test]
async fn the_scope_is_what_was_asked_for_or_the_only_project() {
    let world = World::new().await;
    world.project("one", "default").await;
    world.project("two", "default").await;
    world.user("alice", "default", None).await;
    let login = |scope: Value| {
        let mut login = scope;
        login["user"] = "alice".into();
        login["password"] = password_of("alice").into();
        login
    };
    let scope_of = async |scope: Value| {
        world.log_in(login(scope)).await.map(|one| one.caller.identity.clone().unwrap().scope.clone())
    };

    assert_eq!(scope_of(json!({})).await.unwrap(), Scope::Unscoped);
    for nowhere in [
        json!({ "project": "one" }),
        json!({ "project": "none" }),
        json!({ "system": true }),
        json!({ "domain": "default" }),
    ] {
        let error = scope_of(nowhere.clone()).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Unauthenticated, "no_role"), "{nowhere}");
    }
    world.give("alice", "default", json!({ "role": "member", "project": "one" })).await;
    assert!(matches!(scope_of(json!({})).await.unwrap(), Scope::Project { name, .. } if name.as_str() == "one"));
    world.give("alice", "default", json!({ "role": "reader", "domain": "default", "inherited": true })).await;
    assert_eq!(scope_of(json!({})).await.unwrap(), Scope::Unscoped, "several projects, none of them the default");
    assert!(scope_of(json!({ "project": "two" })).await.is_ok(), "inherited from the domain");
    assert!(
        scope_of(json!({ "domain": "default" })).await.is_err(),
        "inherited roles do not hold on the domain itself"
    );
    let update = json!({ "user": "alice", "default_project": "two" });
    world.admin().await.call(input::<UpdateUser>(update)).await.unwrap();
    assert!(matches!(scope_of(json!({})).await.unwrap(), Scope::Project { name, .. } if name.as_str() == "two"));
    assert_eq!(scope_of(json!({ "unscoped": true })).await.unwrap(), Scope::Unscoped);
}

#[tokio::test]
async fn a_token_is_rescoped_without_living_longer() {
    let world = World::new().await;
    let first = world.token(json!({ "user": "admin", "password": PASSWORD, "unscoped": true })).await.unwrap();
    let second = world.token(json!({ "token": first.reveal(), "project": "admin" })).await.unwrap();
    let one = world.with(&first).await.unwrap().caller.identity.clone().unwrap();
    let two = world.with(&second).await.unwrap().caller.identity.clone().unwrap();
    assert_eq!(one.expires_at, two.expires_at);
    assert_eq!(two.login.parent, one.login.token);
    assert_eq!(two.login.methods.iter().map(String::as_str).collect::<Vec<_>>(), ["password", "token"]);
    assert!(one.roles.is_empty() && two.roles.contains("admin"));
}

#[tokio::test]
async fn revoking_ends_one_token_and_repeating_it_is_fine() {
    let world = World::new().await;
    let login = json!({ "user": "admin", "password": PASSWORD });
    let (one, two) = (world.token(login.clone()).await.unwrap(), world.token(login).await.unwrap());
    let context = world.with(&one).await.unwrap();
    context.call(RevokeToken::default()).await.unwrap();
    context.call(RevokeToken::default()).await.unwrap();
    assert_eq!(world.with(&one).await.map(|_| ()).unwrap_err().kind, ErrorKind::Unauthenticated);
    let other = world.with(&two).await.unwrap();
    assert_eq!(code(other.call(input::<ShowToken>(json!({ "token": one.reveal() }))).await), "token_not_found");
}

#[tokio::test]
async fn only_own_tokens_are_shown_and_ended() {
    let world = World::new().await;
    world.user("alice", "default", None).await;
    let alice = world.token(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    let admin = world.token(json!({ "user": "admin", "password": PASSWORD })).await.unwrap();
    let (by_alice, by_admin) = (world.with(&alice).await.unwrap(), world.with(&admin).await.unwrap());
    let (of_alice, of_admin) = (json!({ "token": alice.reveal() }), json!({ "token": admin.reveal() }));
    assert_eq!(by_alice.call(ShowToken::default()).await.unwrap().user_name.as_str(), "alice");
    assert_eq!(code(by_alice.call(input::<ShowToken>(of_admin.clone())).await), "token_not_found");
    assert_eq!(code(by_alice.call(input::<RevokeToken>(of_admin)).await), "token_not_found");
    assert_eq!(by_admin.call(input::<ShowToken>(of_alice.clone())).await.unwrap().user_name.as_str(), "alice");
    by_admin.call(input::<RevokeToken>(of_alice)).await.unwrap();
    assert!(world.with(&alice).await.is_err());
}

#[tokio::test]
async fn tokens_end_at_once_with_what_they_rest_on() {
    for change in ["password", "reset", "disable", "delete", "role", "project", "domain"] {
        let world = World::new().await;
        let domain = world.domain("blue").await;
        world.project("shop", "blue").await;
        let role = json!({ "role": "member", "project": "shop", "project_domain": "blue" });
        let id = world.user("alice", "blue", Some(role)).await;
        let login =
            json!({ "user": "alice", "user_domain": "blue", "password": password_of("alice"), "project": "shop" });
        let token = world.token(login).await.unwrap();
        let alice = world.with(&token).await.unwrap();
        assert!(alice.caller.identity.as_ref().unwrap().roles.contains("reader"), "roles imply");
        let admin = world.admin().await;
        match change {
            "password" => {
                let wrong = json!({ "original_password": "wrong", "password": "new" });
                assert_eq!(code(alice.call(input::<SetPassword>(wrong)).await), "wrong_credentials");
                assert!(world.with(&token).await.is_ok());
                let right = json!({ "original_password": password_of("alice"), "password": "new" });
                alice.call(input::<SetPassword>(right)).await.unwrap();
                world.token(json!({ "user": id, "user_domain": "blue", "password": "new" })).await.unwrap();
            }
            "reset" => admin.call(input::<ResetPassword>(json!({ "user": id, "password": "new" }))).await.unwrap(),
            "disable" => {
                for enabled in [false, true] {
                    admin.call(input::<UpdateUser>(json!({ "user": id, "enabled": enabled }))).await.unwrap();
                    assert!(world.with(&token).await.is_err(), "stays void when enabled again");
                }
            }
            "delete" => admin.call(input::<DeleteUser>(json!({ "user": id }))).await.unwrap(),
            "role" => {
                let held = admin.call(input::<ListAssignments>(json!({ "user": id }))).await.unwrap();
                for one in held.items {
                    admin.call(DeleteAssignment { assignment: one.id }).await.unwrap();
                }
            }
            "project" => {
                let project = alice.caller.identity.as_ref().unwrap().project().unwrap();
                let off = json!({ "project": project, "enabled": false });
                admin.call(input::<UpdateProject>(off)).await.unwrap();
            }
            _ => {
                admin.call(input::<UpdateDomain>(json!({ "domain": domain, "enabled": false }))).await.unwrap();
            }
        }
        assert_eq!(world.with(&token).await.map(|_| ()).unwrap_err().kind, ErrorKind::Unauthenticated, "{change}");
    }
}

#[tokio::test]
async fn revocations_are_forgotten_once_the_token_has_ended() {
    let world = World::new().await;
    let token = world.token(json!({ "user": "admin", "password": PASSWORD })).await.unwrap();
    world.with(&token).await.unwrap().call(RevokeToken::default()).await.unwrap();
    let ended = Revocation { user: UserId::new(), expires_at: Timestamp::now() };
    let past = Transaction::new(Author::new("test")).create(Draft::new(RevocationId::new(), ended));
    world.store.commit(past).await.unwrap();
    assert_eq!(world.authority.sweep().await.unwrap(), 1);
    assert_eq!(world.store.count::<Revocation>(&Query::all()), 1);
    assert!(world.with(&token).await.is_err());
}
