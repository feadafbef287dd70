//! Replacing the keys that sign tokens.

use nephos_ops::system::{RotateKeys, ShowKeys};
use nephos_types::ErrorKind;
use serde_json::json;

use super::world::{PASSWORD, World, code, password_of};

#[tokio::test]
async fn a_rotation_logs_nobody_out_and_the_new_key_signs() {
    let world = World::new().await;
    let login = json!({ "user": "admin", "password": PASSWORD, "system": true });
    let before = world.token(login.clone()).await.unwrap();
    let admin = world.with(&before).await.unwrap();
    for _ in 0..2 {
        admin.call(RotateKeys::default()).await.unwrap();
        world.with(&before).await.unwrap();
    }
    let after = world.token(login).await.unwrap();
    world.with(&after).await.unwrap();
    let keys = admin.call(ShowKeys {}).await.unwrap().items;
    let shown: Vec<_> = keys.iter().map(|key| (key.number, key.signs, key.accepted_until.is_some())).collect();
    assert_eq!(shown, [(1, false, true), (2, false, true), (3, true, false)]);
    // As long as a token lives, and some.
    assert!(keys[0].accepted_until.unwrap().since(keys[1].created_at).as_secs() > 3600);

    // When a key has leaked, everybody has to log in again.
    admin.call(RotateKeys { end_sessions: true }).await.unwrap();
    for token in [&before, &after] {
        assert_eq!(world.with(token).await.map(|_| ()).unwrap_err().kind, ErrorKind::Unauthenticated);
    }
    assert_eq!(world.admin().await.call(ShowKeys {}).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn keys_are_replaced_when_they_are_old_and_not_more_often_than_tokens_end() {
    let world = World::new().await;
    let admin = world.admin().await;
    world.authority.tend_keys().await.unwrap();
    assert_eq!(admin.call(ShowKeys {}).await.unwrap().items.len(), 1, "a young key stays");
    let refused = loop {
        match admin.call(RotateKeys::default()).await {
            Ok(keys) => assert!(keys.items.len() <= 16),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.code, "too_many_keys");
    assert!(refused.detail.contains("needed until"), "{refused:?}");
    world.admin().await;

    // As they are after a year.
    let path = world.folder.path().join("keys/token");
    let aged: String = std::fs::read_to_string(&path)
        .unwrap()
        .lines()
        .map(|line| {
            let words: Vec<_> = line.split(' ').collect();
            format!("{} 2024-02-03T00:00:00Z {}\n", words[0], words[2])
        })
        .collect();
    std::fs::write(&path, aged).unwrap();
    world.authority.tend_keys().await.unwrap();
    let keys = world.admin().await.call(ShowKeys {}).await.unwrap().items;
    assert_eq!(keys.iter().map(|key| key.number).collect::<Vec<_>>(), [16, 17]);
}

#[tokio::test]
async fn only_administrators_of_the_system_replace_keys() {
    let world = World::new().await;
    world.user("alice", "default", Some(json!({ "role": "manager", "project": "demo" }))).await;
    let alice = world.log_in(json!({ "user": "alice", "password": password_of("alice") })).await.unwrap();
    assert_eq!(code(alice.call(RotateKeys::default()).await), "forbidden");
    assert_eq!(code(alice.call(ShowKeys {}).await), "forbidden");
}
