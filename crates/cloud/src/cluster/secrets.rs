//! The keys that all processes must have alike: they sign tokens, seal secrets, and are the nodes' authority.
//!
//! They are in the database, sealed under a key that is in a file beside it: whoever has a copy of the database, or
//! administers the server, has none of the cloud's keys. The file is small, never changes, and is copied to each machine
//! once; everything else a new process finds in the database. It then keeps the keys in its data folder as a process
//! that is alone does. The keys that sign tokens are replaced now and then: those in the database count.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_auth::{Authority, KeyRing, Vault, write_private};
use nephos_store::{Author, CommitError, Draft, Kind, Record, Store, Transaction};
use nephos_types::{ControllerId, Error, ErrorKind, Id, Result};
use serde::{Deserialize, Serialize};

use crate::{
    BoxFuture,
    identity::{Decide, KeepKeys},
};

/// The keys' files in the folder `keys`.
const FILES: [&str; 3] = [TOKEN, "vault", "authority"];
/// The one with the keys that sign tokens.
const TOKEN: &str = "token";
/// A sealed secret holds no more.
const PIECE: usize = 512;

/// The keys' files, sealed in pieces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SharedSecrets(BTreeMap<String, Vec<String>>);

impl Kind for SharedSecrets {
    type Id = ControllerId;
    const NAME: &'static str = "shared_secrets";
    const SECRET: bool = true;
}

/// The one record of its kind.
fn the_one() -> ControllerId {
    ControllerId::from_bits(0)
}

/// To what a piece is bound.
fn owner(file: &str, piece: usize) -> String {
    format!("keys/{file}/{piece}")
}

/// Brings the keys in the data folder and those in the database into agreement: the first process puts its own (or new
/// ones) there, every other one takes those.
pub(crate) async fn share(store: &Store, data: &Path, secret: &Path) -> Result<()> {
    let keys = data.join("keys");
    loop {
        let transaction = Transaction::new(Author::new("cloud").operation("share-keys"));
        let transaction = match store.get::<SharedSecrets>(the_one()) {
            Some(record) => match take(&record.body, &keys, secret)? {
                Some(newer) => transaction.update(&record, newer),
                None => return Ok(()),
            },
            None => transaction.create(Draft::new(the_one(), give(&keys, secret)?)),
        };
        match store.commit(transaction).await {
            Ok(_) => return Ok(()),
            // Two that start at once: the other one was first.
            Err(CommitError::Exists { .. } | CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The keys of the database into the folder. Where the folder has newer token keys, because it went on while the database
/// was elsewhere, the database shall have those.
fn take(shared: &SharedSecrets, keys: &Path, secret: &Path) -> Result<Option<SharedSecrets>> {
    if !secret.exists() {
        return Err(Error::invalid("secret_file_missing", "The key to the cloud's secrets is missing")
            .detail(format!("{} does not exist", secret.display()))
            .next(
                "copy it from a machine on which a controller of this cloud runs, or name it with --secret-file",
                None,
            ));
    }
    let vault = Vault::new(KeyRing::open(secret)?);
    let mut missing = vec![];
    // Token keys are replaced now and then; by the others it is seen whose folder this is.
    for name in FILES.into_iter().filter(|name| *name != TOKEN) {
        let text = unseal(shared, &vault, name, secret)?;
        let path = keys.join(name);
        match read(&path)? {
            Some(known) if known == text => {}
            Some(_) => {
                return Err(Error::conflict("other_keys", "The data folder holds the keys of another cloud")
                    .detail(path.display().to_string())
                    .next("choose a new data folder with --data", None));
            }
            None => missing.push((path, text)),
        }
    }
    for (path, text) in missing {
        write_private(&path, text.as_bytes())?;
    }
    let text = unseal(shared, &vault, TOKEN, secret)?;
    let path = keys.join(TOKEN);
    let known = read(&path)?;
    if let Some(known) = &known
        && KeyRing::from_text(known)?.active().id > KeyRing::from_text(&text)?.active().id
    {
        return Ok(Some(shared.with(&vault, TOKEN, known)?));
    }
    if known.is_none_or(|known| known != text) {
        write_private(&path, text.as_bytes())?;
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::internal(format!("{} cannot be read", path.display()), error)),
    }
}

/// One of the keys' files out of the database.
fn unseal(shared: &SharedSecrets, vault: &Vault, name: &str, secret: &Path) -> Result<String> {
    let pieces = shared.0.get(name).ok_or_else(|| Error::bug(format!("the cloud's keys lack `{name}`")))?;
    let mut text = String::new();
    for (number, piece) in pieces.iter().enumerate() {
        let piece = vault.open(&owner(name, number), piece).map_err(|error| {
            Error::new(ErrorKind::Invalid, "wrong_secret_file", "This is not the key to the cloud's secrets")
                .detail(secret.display().to_string())
                .source(error)
                .next("copy it from a machine on which a controller of this cloud runs", None)
        })?;
        text.push_str(piece.reveal());
    }
    Ok(text)
}

impl SharedSecrets {
    /// With another content of one of the files.
    fn with(&self, vault: &Vault, name: &str, text: &str) -> Result<Self> {
        let mut all = self.0.clone();
        let mut pieces = vec![];
        // All of it is ASCII.
        for (number, piece) in text.as_bytes().chunks(PIECE).enumerate() {
            let piece = std::str::from_utf8(piece).map_err(|error| Error::internal("A key is not text", error))?;
            pieces.push(vault.seal(&owner(name, number), &piece.parse()?)?);
        }
        all.insert(name.to_owned(), pieces);
        Ok(Self(all))
    }
}

/// The keys of the folder, made if they are not there, sealed for the database.
fn give(keys: &Path, secret: &Path) -> Result<SharedSecrets> {
    let vault = Vault::new(KeyRing::open(secret)?);
    KeyRing::open(&keys.join(TOKEN))?;
    KeyRing::open(&keys.join("vault"))?;
    Authority::open(&keys.join("authority"))?;
    FILES.into_iter().try_fold(SharedSecrets(BTreeMap::new()), |all, name| {
        let text = read(&keys.join(name))?.ok_or_else(|| Error::bug(format!("the key file `{name}` is gone")))?;
        all.with(&vault, name, &text)
    })
}

/// The token keys in the database, of which each process keeps a copy in its folder, for its backups.
pub(crate) struct SharedTokenKeys {
    store: Store,
    vault: Vault,
    secret: PathBuf,
    copy: PathBuf,
}

impl SharedTokenKeys {
    /// After [`share`].
    pub(crate) fn open(store: &Store, data: &Path, secret: &Path) -> Result<Self> {
        Ok(Self {
            store: store.clone(),
            vault: Vault::new(KeyRing::open(secret)?),
            secret: secret.to_owned(),
            copy: data.join("keys").join(TOKEN),
        })
    }

    fn record(&self) -> Result<Arc<Record<SharedSecrets>>> {
        self.store.get::<SharedSecrets>(the_one()).ok_or_else(|| Error::bug("the cloud's keys are not in the database"))
    }

    fn ring(&self, shared: &SharedSecrets) -> Result<KeyRing> {
        KeyRing::from_text(&unseal(shared, &self.vault, TOKEN, &self.secret)?)
    }
}

impl KeepKeys for SharedTokenKeys {
    fn generation(&self) -> u64 {
        self.store.generation::<SharedSecrets>()
    }

    fn load(&self) -> Result<KeyRing> {
        let ring = self.ring(&self.record()?.body)?;
        if let Err(error) = ring.save(&self.copy) {
            tracing::warn!(error = %error.chain(), "a copy of the keys that sign tokens could not be kept");
        }
        Ok(ring)
    }

    fn change<'a>(&'a self, author: Author, decide: Decide<'a>) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let author = Arc::new(author);
            loop {
                let record = self.record()?;
                let Some(next) = decide(&self.ring(&record.body)?)? else { return Ok(false) };
                let sealed = record.body.with(&self.vault, TOKEN, &next.to_text())?;
                match self.store.commit(Transaction::new(author.clone()).update(&record, sealed)).await {
                    Ok(_) => return Ok(true),
                    Err(CommitError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use nephos_store::{Kinds, Sqlite};

    use super::*;

    #[tokio::test]
    async fn everybody_has_the_same_keys_and_nobody_without_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
        let store = Store::open(backend, Kinds::new().with::<SharedSecrets>()).await.unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        for data in [&one, &other] {
            fs::create_dir(data).unwrap();
        }
        let secret = one.join("secret.key");
        share(&store, &one, &secret).await.unwrap();
        // Again after a restart.
        share(&store, &one, &secret).await.unwrap();
        let without = share(&store, &other, &other.join("secret.key")).await.unwrap_err();
        assert_eq!(without.code, "secret_file_missing");
        KeyRing::open(&other.join("another.key")).unwrap();
        let wrong = share(&store, &other, &other.join("another.key")).await.unwrap_err();
        assert_eq!(wrong.code, "wrong_secret_file");
        share(&store, &other, &secret).await.unwrap();
        for name in FILES {
            let read = |data: &Path| fs::read_to_string(data.join("keys").join(name)).unwrap();
            assert_eq!(read(&one), read(&other), "{name}");
            let record = store.get::<SharedSecrets>(the_one()).unwrap();
            let stored = format!("{:?}", record.body);
            assert!(read(&one).lines().all(|line| line.len() < 30 || !stored.contains(line)), "{name} is in the clear");
        }
        // Not over the keys of another cloud.
        let third = folder.path().join("third");
        KeyRing::open(&third.join("keys/vault")).unwrap();
        assert_eq!(share(&store, &third, &secret).await.unwrap_err().code, "other_keys");
        assert!(!third.join("keys/token").exists());
    }

    #[tokio::test]
    async fn token_keys_are_those_of_the_database_unless_the_folder_went_on_alone() {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
        let store = Store::open(backend, Kinds::new().with::<SharedSecrets>()).await.unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let secret = folder.path().join("secret.key");
        for data in [&one, &other] {
            share(&store, data, &secret).await.unwrap();
        }
        let keys = SharedTokenKeys::open(&store, &one, &secret).unwrap();
        assert!(keys.change(Author::new("test"), &|ring| ring.rotated().map(Some)).await.unwrap());
        assert_eq!(keys.load().unwrap().active().id, 2);
        let copy = |data: &Path| KeyRing::open(&data.join("keys/token")).unwrap().active().id;
        assert_eq!((copy(&one), copy(&other)), (2, 1));
        share(&store, &other, &secret).await.unwrap();
        assert_eq!(copy(&other), 2);
        // Alone for a while.
        let newer = keys.load().unwrap().rotated().unwrap();
        newer.save(&other.join("keys/token")).unwrap();
        share(&store, &other, &secret).await.unwrap();
        assert_eq!(keys.load().unwrap().to_text(), newer.to_text());
    }
}
