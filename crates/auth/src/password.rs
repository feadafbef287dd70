//! Passwords: argon2id, never more at a time than the machine bears.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use argon2::{
    Algorithm, Argon2, Params, Version,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nephos_types::{Error, ErrorKind, Result, Secret};
use ring::digest;
use tokio::sync::Semaphore;

use crate::keyring::random;

/// Logins that may wait for their turn; more are refused at once.
const MAX_WAITING: usize = 256;
/// Marks the hash of a generated secret.
const GENERATED: &str = "$sha256$";

/// How costly one hash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cost {
    /// 19 MiB, two passes: OWASP's recommendation for argon2id; some 20 ms on a present-day core.
    Standard,
    /// As little as the algorithm allows: for tests that make many users.
    Minimal,
}

/// Hashes and checks passwords.
#[derive(Clone)]
pub struct Passwords {
    argon2: Argon2<'static>,
    turns: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    /// What the password of an unknown user is checked against, so that it takes as long as that of a known one.
    decoy: Arc<str>,
}

impl Passwords {
    /// At this cost, on at most half of the machine's cores.
    pub fn new(cost: Cost) -> Result<Self> {
        let params = match cost {
            Cost::Standard => Params::new(19 * 1024, 2, 1, None),
            Cost::Minimal => Params::new(Params::MIN_M_COST, 1, 1, None),
        };
        let params = params.map_err(|error| Error::internal("argon2's parameters are not usable", error))?;
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        let decoy = hash(&argon2, &generate_secret()?)?;
        let parallel = thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
        Ok(Self { argon2, turns: Arc::new(Semaphore::new(parallel)), waiting: Arc::default(), decoy: decoy.into() })
    }

    /// The hash to keep for a password that a person chose.
    pub async fn hash(&self, password: Secret) -> Result<String> {
        let argon2 = self.argon2.clone();
        self.take_turn(move || hash(&argon2, &password)).await?
    }

    /// Whether the password belongs to the kept hash. With no hash (no such user, or one without a password) the answer
    /// is no, after the same time.
    pub async fn verify(&self, password: Secret, kept: Option<&str>) -> Result<bool> {
        if let Some(kept) = kept.and_then(|kept| kept.strip_prefix(GENERATED)) {
            return Ok(equal(kept.as_bytes(), sha256(&password).as_bytes()));
        }
        let known = kept.is_some();
        let kept: Arc<str> = kept.map_or_else(|| Arc::clone(&self.decoy), Arc::from);
        let argon2 = self.argon2.clone();
        let matches = self
            .take_turn(move || {
                let parsed = PasswordHash::new(&kept)
                    .map_err(|error| Error::internal("a kept password hash is damaged", error))?;
                Ok::<_, Error>(argon2.verify_password(password.reveal().as_bytes(), &parsed).is_ok())
            })
            .await??;
        Ok(known && matches)
    }

    /// Runs costly work on a thread of its own when it is its turn.
    async fn take_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let place = Place::take(&self.waiting)?;
        let turn = Arc::clone(&self.turns)
            .acquire_owned()
            .await
            .map_err(|error| Error::internal("password hashing has shut down", error))?;
        drop(place);
        tokio::task::spawn_blocking(move || {
            // Held by the work, not by who waits for it: a caller who leaves does not free a core that still works.
            let _turn = turn;
            work()
        })
        .await
        .map_err(|error| Error::internal("password hashing failed", error))
    }
}

/// A place in the queue.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(waiting: &Arc<AtomicUsize>) -> Result<Self> {
        let place = Self(Arc::clone(waiting));
        if waiting.fetch_add(1, Ordering::Relaxed) < MAX_WAITING {
            Ok(place)
        } else {
            Err(Error::new(ErrorKind::RateLimited, "too_many_logins", "Too many logins at once")
                .detail(format!("{MAX_WAITING} are waiting already"))
                .next("try again in a few seconds", None))
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn hash(argon2: &Argon2<'_>, password: &Secret) -> Result<String> {
    argon2
        .hash_password(password.reveal().as_bytes())
        .map(|hash| hash.to_string())
        .map_err(|error| Error::internal("a password could not be hashed", error))
}

/// A secret with 256 random bits, in 43 characters.
pub fn generate_secret() -> Result<Secret> {
    URL_SAFE_NO_PAD.encode(random::<32>()?).parse()
}

/// A password that people can type: 20 characters, some 99 bits, none easily mistaken for another.
pub fn generate_password() -> Result<Secret> {
    const ALPHABET: &[u8; 32] = b"abcdefghjkmnpqrstuvwxyz23456789-";
    let mut text: String = random::<20>()?.iter().map(|byte| char::from(ALPHABET[usize::from(byte & 31)])).collect();
    // A leading dash would be taken for a flag on a command line.
    if text.starts_with('-') {
        text.replace_range(..1, "k");
    }
    text.parse()
}

/// The hash to keep for a secret from [`generate_secret`]: it cannot be guessed, so a fast hash protects it.
#[must_use]
pub fn hash_generated(secret: &Secret) -> String {
    format!("{GENERATED}{}", sha256(secret))
}

fn sha256(secret: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, secret.reveal().as_bytes()))
}

/// Compares without telling by the time where the difference is.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_only() {
        let passwords = Passwords::new(Cost::Minimal).unwrap();
        let kept = passwords.hash(secret("correct horse")).await.unwrap();
        assert!(kept.starts_with("$argon2id$") && !kept.contains("correct"));
        assert_ne!(kept, passwords.hash(secret("correct horse")).await.unwrap());
        assert!(passwords.verify(secret("correct horse"), Some(&kept)).await.unwrap());
        assert!(!passwords.verify(secret("correct hors"), Some(&kept)).await.unwrap());
        assert!(!passwords.verify(secret("correct horse"), None).await.unwrap());
        assert!(passwords.verify(secret("x"), Some("$argon2id$damaged")).await.is_err());
    }

    #[tokio::test]
    async fn generated_secrets_are_checked_by_a_fast_hash() {
        let passwords = Passwords::new(Cost::Minimal).unwrap();
        let generated = generate_secret().unwrap();
        let kept = hash_generated(&generated);
        assert!(passwords.verify(generated, Some(&kept)).await.unwrap());
        assert!(!passwords.verify(generate_secret().unwrap(), Some(&kept)).await.unwrap());
    }

    #[tokio::test]
    async fn the_queue_is_bounded_and_empties() {
        let passwords = Passwords::new(Cost::Minimal).unwrap();
        let places: Vec<_> = (0..MAX_WAITING).map(|_| Place::take(&passwords.waiting).unwrap()).collect();
        assert_eq!(passwords.hash(secret("x")).await.unwrap_err().kind, ErrorKind::RateLimited);
        drop(places);
        assert!(passwords.hash(secret("x")).await.is_ok());
        assert_eq!(passwords.waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn generated_passwords_can_be_typed() {
        for _ in 0..100 {
            let password = generate_password().unwrap();
            assert!(password.reveal().len() == 20 && !password.reveal().starts_with('-'));
        }
    }
}
