//! The keys that sign tokens: which one does now, which are still accepted, and when a fresh one takes over.
//!
//! A key that was replaced is accepted until everything that it signed has ended, so a rotation logs nobody out. Where
//! several processes share a database the keys are in it, and a process signs with a fresh key only after that was
//! committed; since each call sees what was committed before it, whoever shows a token finds its key everywhere.

use std::{
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nephos_auth::{KeyRing, token};
use nephos_ops::system::{RotateKeys, ShowKeys, TokenKey, TokenKeys as View};
use nephos_store::Author;
use nephos_types::{Error, Result, Timestamp};

use super::Authority;
use crate::{BoxFuture, Session};

/// How much longer than the life of a token a replaced key is accepted: for processes that had not heard of the new one
/// when they signed, and for clocks that differ.
const SLACK: Duration = Duration::from_secs(15 * 60);
/// Keys that are accepted at most; a fresh one is refused until the oldest has run out.
const MOST: usize = 16;

/// What shall become of the keys; `None` leaves them.
pub(crate) type Decide<'a> = &'a (dyn Fn(&KeyRing) -> Result<Option<KeyRing>> + Send + Sync);

/// Where the keys are kept.
pub(crate) trait KeepKeys: Send + Sync {
    /// Changes when the keys have.
    fn generation(&self) -> u64;
    /// The keys as they are now.
    fn load(&self) -> Result<KeyRing>;
    /// Changes them, deciding again when somebody else was faster. Whether anything was changed.
    fn change<'a>(&'a self, author: Author, decide: Decide<'a>) -> BoxFuture<'a, Result<bool>>;
}

/// In a file, of one process alone.
pub(super) struct FileKeys {
    path: PathBuf,
    generation: AtomicU64,
    turn: tokio::sync::Mutex<()>,
}

impl FileKeys {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, generation: AtomicU64::new(0), turn: tokio::sync::Mutex::default() }
    }
}

impl KeepKeys for FileKeys {
    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn load(&self) -> Result<KeyRing> {
        KeyRing::open(&self.path)
    }

    fn change<'a>(&'a self, _: Author, decide: Decide<'a>) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let _turn = self.turn.lock().await;
            let Some(next) = decide(&self.load()?)? else { return Ok(false) };
            next.save(&self.path)?;
            self.generation.fetch_add(1, Ordering::AcqRel);
            Ok(true)
        })
    }
}

/// The keys in use.
pub(super) struct TokenKeys {
    keeper: Box<dyn KeepKeys>,
    /// With the generation at which they were read.
    ring: RwLock<(u64, Arc<KeyRing>)>,
    /// How long a token is good for.
    life: Duration,
}

impl TokenKeys {
    pub(super) fn open(keeper: Box<dyn KeepKeys>, life: Duration) -> Result<Self> {
        let generation = keeper.generation();
        let ring = RwLock::new((generation, Arc::new(keeper.load()?)));
        Ok(Self { keeper, ring, life })
    }

    /// Changes when the keys have.
    pub(super) fn generation(&self) -> u64 {
        self.keeper.generation()
    }

    /// The keys as they are now.
    pub(super) fn now(&self) -> Arc<KeyRing> {
        // Read first, so that what is loaded is at least as new.
        let generation = self.keeper.generation();
        {
            let known = self.ring.read().unwrap_or_else(PoisonError::into_inner);
            if known.0 == generation {
                return Arc::clone(&known.1);
            }
        }
        let mut known = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        match self.keeper.load() {
            Ok(ring) => *known = (generation, Arc::new(ring)),
            Err(error) => {
                tracing::error!(error = %error.chain(), "the keys that sign tokens were replaced and cannot be read");
                // Those known are as good as before.
                known.0 = generation;
            }
        }
        Arc::clone(&known.1)
    }

    /// Whether a token names a key that is newer than all that are known here.
    pub(super) fn is_of_a_newer_key(&self, shown: &str) -> bool {
        token::key_number(shown).is_some_and(|number| number > self.now().active().id)
    }

    /// When what a key signed until it was replaced has ended.
    fn run_out(&self, replaced: Timestamp) -> Timestamp {
        replaced.plus(self.life).plus(SLACK)
    }

    /// Without the keys of which everything that they signed has ended.
    fn still_needed(&self, ring: &KeyRing, now: Timestamp) -> KeyRing {
        let long_ago = i64::try_from((self.life + SLACK).as_micros()).unwrap_or(i64::MAX);
        ring.without_replaced_before(Timestamp::from_micros(now.as_micros().saturating_sub(long_ago)))
    }

    /// Puts a fresh key in force when the present one is older than `age`, and forgets those that have run out.
    pub(super) async fn tend(&self, age: Duration) -> Result<()> {
        let decide = |ring: &KeyRing| {
            let now = Timestamp::now();
            let needed = self.still_needed(ring, now);
            if now.since(needed.active().created_at) >= age {
                return needed.rotated().map(Some);
            }
            Ok((needed.keys().count() < ring.keys().count()).then_some(needed))
        };
        if self.keeper.change(Author::new("cloud").operation("system.rotate-keys"), &decide).await? {
            tracing::info!(key = self.now().active().id, "the keys that sign tokens were tended");
        }
        Ok(())
    }

    /// Puts a fresh key in force now; with `end_sessions` the others are forgotten at once.
    async fn rotate(&self, author: Author, end_sessions: bool) -> Result<()> {
        let decide = |ring: &KeyRing| {
            let now = Timestamp::now();
            let needed = self.still_needed(ring, now).rotated()?;
            let needed = if end_sessions { needed.without_replaced_before(now.plus(SLACK)) } else { needed };
            if needed.keys().count() <= MOST {
                return Ok(Some(needed));
            }
            let first = needed.keys().nth(1).map_or(now, |successor| self.run_out(successor.created_at));
            Err(Error::conflict("too_many_keys", "The keys were replaced too often")
                .detail(format!("tokens of {MOST} keys are accepted; the oldest is needed until {first}"))
                .next(
                    "wait until then, or end all sessions",
                    Some("nephos system rotate-keys --end-sessions".to_owned()),
                ))
        };
        self.keeper.change(author, &decide).await.map(drop)
    }

    fn view(&self) -> View {
        let ring = self.now();
        let successors = ring.keys().skip(1).map(Some).chain([None]);
        let items = ring.keys().zip(successors).map(|(key, successor)| TokenKey {
            number: key.id,
            created_at: key.created_at,
            signs: successor.is_none(),
            accepted_until: successor.map(|successor| self.run_out(successor.created_at)),
        });
        View { items: items.collect() }
    }
}

pub(super) async fn show(authority: Arc<Authority>, _: Session, _: ShowKeys) -> Result<View> {
    Ok(authority.token_keys.view())
}

pub(super) async fn rotate(authority: Arc<Authority>, session: Session, input: RotateKeys) -> Result<View> {
    authority.token_keys.rotate(session.author(), input.end_sessions).await?;
    let user = session.identity()?.user;
    tracing::info!(%user, end_sessions = input.end_sessions, "the key that signs tokens was replaced");
    Ok(authority.token_keys.view())
}
