//! Key pairs: SSH public keys. They belong to a user, whatever project that user works in.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::STANDARD_NO_PAD};
use nephos_ops::compute::{self as ops, CreateKeyPair, DeleteKeyPair, ListKeyPairs, ShowKeyPair};
use nephos_store::{Bound, CommitError, Draft, Kind, Query, Record, Store};
use nephos_types::{Error, ErrorKind, KeyPairId, Page, PageRequest, Result, UserId};
use ring::digest;
use serde::{Deserialize, Serialize};

use super::Compute;
use crate::{
    core::Handlers,
    idempotency::Made,
    resolve::{Named, name_claim, name_of},
    session::{Session, refusal},
};

/// The most key pairs of one user.
pub(super) const MOST: i64 = 100;

const BY_USER: &str = "user";

/// The key types that OpenSSH accepts today (RFC 4253, RFC 5656, RFC 8709, OpenSSH's PROTOCOL.u2f).
const TYPES: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A key pair as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPair {
    /// Whose it is.
    pub user: UserId,
    /// One line: type, base64, comment.
    pub public_key: String,
    /// `SHA256:…`.
    pub fingerprint: String,
}

impl Kind for KeyPair {
    type Id = KeyPairId;
    const NAME: &'static str = "keypair";
    const INDEXES: &'static [&'static str] = &[BY_USER];
    fn index(record: &Record<Self>, _: &str) -> Vec<String> {
        vec![record.body.user.to_string()]
    }
}

impl Named for KeyPair {
    const NOUN: &'static str = "keypair";
    fn spaces(session: &Session) -> Vec<String> {
        session.identity().map(|identity| identity.user.to_string()).into_iter().collect()
    }
    fn visible(session: &Session, record: &Record<Self>) -> bool {
        session.identity().is_ok_and(|identity| identity.user == record.body.user)
    }
}

/// The counter of a user's key pairs.
pub(super) fn counter(user: UserId) -> String {
    format!("quota/{user}/keypairs")
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle_creation(compute, create, |compute: Arc<Compute>, _: Session, made: Made| async move {
        shown(&compute.store, made.id::<KeyPair>()?)
    });
    handlers.handle(compute, list);
    handlers.handle(compute, show);
    handlers.handle(compute, delete);
}

fn view(record: &Record<KeyPair>) -> Result<ops::KeyPair> {
    Ok(ops::KeyPair {
        id: record.meta.id,
        name: name_of(record)?,
        public_key: record.body.public_key.clone(),
        fingerprint: record.body.fingerprint.clone(),
        created_at: record.meta.created_at,
    })
}

fn shown(store: &Store, id: KeyPairId) -> Result<ops::KeyPair> {
    view(&*store.get::<KeyPair>(id).ok_or_else(|| Error::not_found("keypair", id))?)
}

/// Checks one line of `authorized_keys` without options; returns it tidied, and its fingerprint.
fn parse(line: &str) -> Result<(String, String)> {
    let refuse = |why: String| {
        Error::invalid("invalid_public_key", "Not an SSH public key")
            .detail(why)
            .next("pass the content of a file like ~/.ssh/id_ed25519.pub, one line", None)
    };
    let line = line.trim();
    if line.contains(['\n', '\r']) {
        return Err(refuse("it has more than one line".to_owned()));
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(kind), Some(data)) = (words.next(), words.next()) else {
        return Err(refuse("it is not a key type followed by base64".to_owned()));
    };
    if !TYPES.contains(&kind) {
        return Err(refuse(format!("`{}` is none of {}", kind.chars().take(40).collect::<String>(), TYPES.join(", "))));
    }
    let bytes = STANDARD.decode(data).map_err(|_| refuse("its second word is not base64".to_owned()))?;
    // The data repeats the type, as a string with a length of four bytes before it.
    let inner = bytes.first_chunk::<4>().map(|length| u32::from_be_bytes(*length) as usize);
    if inner.and_then(|length| bytes.get(4..4usize.checked_add(length)?)) != Some(kind.as_bytes()) {
        return Err(refuse("its data are not those of a key of that type".to_owned()));
    }
    let hash = digest::digest(&digest::SHA256, &bytes);
    let comment = words.collect::<Vec<_>>().join(" ");
    let tidy = if comment.is_empty() { format!("{kind} {data}") } else { format!("{kind} {data} {comment}") };
    Ok((tidy, format!("SHA256:{}", STANDARD_NO_PAD.encode(hash))))
}

async fn create(compute: Arc<Compute>, session: Session, input: CreateKeyPair) -> Result<ops::KeyPair> {
    let user = session.identity()?.user;
    let (public_key, fingerprint) = parse(input.public_key.as_str())?;
    let id = KeyPairId::new();
    let transaction = session
        .transaction()
        .create(Draft::new(id, KeyPair { user, public_key, fingerprint }).name(input.name.clone()))
        .claim(name_claim::<KeyPair>(&user.to_string(), &input.name), id)
        .add(counter(user), 1, Bound::AtMost(MOST));
    session.commit_creation::<KeyPair>(transaction, id, None).await.map_err(|error| match error {
        CommitError::Exceeded { limit, .. } => {
            Error::new(ErrorKind::Quota, "quota_exceeded", "You have too many key pairs")
                .detail(format!("have {limit} of {limit}"))
                .next("delete what is not needed", Some("nephos keypair list".to_owned()))
        }
        other => refusal(other),
    })?;
    shown(&compute.store, id)
}

async fn list(compute: Arc<Compute>, session: Session, input: ListKeyPairs) -> Result<Page<ops::KeyPair>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let query = Query::all().index(BY_USER, session.identity()?.user).page::<KeyPair>(&request)?;
    let page = compute.store.list::<KeyPair>(&query);
    Ok(Page { items: page.items.iter().map(|record| view(record)).collect::<Result<_>>()?, next: page.next })
}

async fn show(_: Arc<Compute>, session: Session, input: ShowKeyPair) -> Result<ops::KeyPair> {
    view(&*session.find::<KeyPair>(&input.keypair)?)
}

async fn delete(_: Arc<Compute>, session: Session, input: DeleteKeyPair) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session.find::<KeyPair>(&input.keypair)?;
            let claim = name_claim::<KeyPair>(&record.body.user.to_string(), name_of(&record)?);
            let transaction = transaction.delete(&record).release(claim, record.meta.id);
            Ok((transaction.add(counter(record.body.user), -1, Bound::Any), ()))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::parse;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJmb28gYmFyIGJheiBxdXggcXV1eCBjb3JnZSBn";

    #[test]
    fn keys_are_tidied_and_fingerprinted() {
        let (tidy, fingerprint) = parse(&format!("  {KEY}   me@laptop \n")).unwrap();
        assert_eq!(tidy, format!("{KEY} me@laptop"));
        assert!(fingerprint.starts_with("SHA256:") && fingerprint.len() == 50, "{fingerprint}");
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in [
            "",
            "ssh-ed25519",
            "ssh-dss AAAAB3NzaC1kc3M=",
            "ssh-ed25519 !!!!",
            "ssh-ed25519 AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIGJmb28gYmFyIGJheiBxdXggcXV1eCBjb3JnZSBn",
            &format!("{KEY}\n{KEY}"),
            "command=\"rm\" ssh-ed25519 AAAA",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
