//! Waiting for conditions.

use std::{future::Future, time::Duration};

/// Nothing that a test waits for takes this long, even on a machine that does ten other things.
pub const LIMIT: Duration = Duration::from_secs(180);

/// Looks again and again until there is something; panics with `what` if there never is.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, look: impl FnMut() -> F) -> T {
    until_within(LIMIT, what, look).await
}

/// The same for what takes longer: a large guest that boots under emulation.
pub async fn until_within<T, F: Future<Output = Option<T>>>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(limit, looking).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain for: {what}"),
    }
}
