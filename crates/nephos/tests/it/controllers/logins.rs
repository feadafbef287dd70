//! Logging in at several controllers: guesses are counted together, and replacing keys logs nobody out.

use std::time::Instant;

use nephos_ops::{
    identity::{CreateToken, ShowToken},
    system::{RotateKeys, ShowKeys},
};
use nephos_testkit::PASSWORD;
use serde_json::json;

use super::plane::Plane;

fn login(password: &str) -> CreateToken {
    serde_json::from_value(json!({ "user": "admin", "password": password, "project": "admin" })).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_count_guesses_together_and_share_fresh_keys() {
    let plane = Plane::start(2, 0).await;
    let anonymous = [plane.controllers[0].anonymous(), plane.controllers[1].anonymous()];
    let (one, other) = (plane.admin(0).await, plane.admin(1).await);
    // Shown to each other's controller while keys are replaced: none is ever refused.
    for round in 0..6 {
        let rotated = [&one, &other][round % 2].call(RotateKeys::default());
        let shown = anonymous[(round + 1) % 2].call(login(PASSWORD));
        let (rotated, token) = tokio::join!(rotated, shown);
        let (keys, token) = (rotated.unwrap().items, token.unwrap().token.reveal().to_owned());
        assert_eq!(keys.iter().filter(|key| key.signs).count(), 1);
        let fresh = anonymous[round % 2].call(login(PASSWORD)).await.unwrap().token.reveal().to_owned();
        for token in [token, fresh] {
            for client in &anonymous {
                client.with_token(Some(token.clone())).unwrap().call(ShowToken::default()).await.unwrap();
            }
        }
        for client in [&one, &other] {
            assert_eq!(client.call(ShowKeys {}).await.unwrap().items, keys);
        }
    }
    one.call(RotateKeys { end_sessions: true }).await.unwrap();
    assert_eq!(other.call(ShowKeys {}).await.unwrap_err().code, "invalid_token");
    plane.admin(1).await.call(ShowKeys {}).await.unwrap();

    let begin = Instant::now();
    // The waits only grow, so however slow this is they are both refused in the end.
    let (mut tried, mut refused) = (0, 0);
    for client in anonymous.iter().cycle() {
        match client.call(login("wrong")).await.unwrap_err().code.as_ref() {
            "wrong_credentials" => (tried, refused) = (tried + 1, 0),
            "too_many_attempts" => refused += 1,
            code => panic!("{code}"),
        }
        if refused == 2 {
            break;
        }
    }
    assert!(tried <= 6 + begin.elapsed().as_secs(), "{tried} tries");
}
