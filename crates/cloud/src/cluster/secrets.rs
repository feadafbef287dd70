//! The keys that all processes must have alike: they sign tokens, seal secrets, and are the nodes' authority.
//!
//! They are in the database, sealed under a key that is in a file beside it: whoever has a copy of the database, or
//! administers the server, has none of the cloud's keys. The file is small, never changes, and is copied to each machine
//! once; everything else a new process finds in the database. It then keeps the keys in its data folder as a process
//! that is alone does, and whatever uses them does not know the difference.

use std::{collections::BTreeMap, fs, io, path::Path};

use nephos_auth::{Authority, KeyRing, Vault, write_private};
use nephos_store::{Author, CommitError, Draft, Kind, Store, Transaction};
use nephos_types::{ControllerId, Error, ErrorKind, Id, Result};
use serde::{Deserialize, Serialize};

/// The keys' files in the folder `keys`.
const FILES: [&str; 3] = ["token", "vault", "authority"];
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
        if let Some(record) = store.get::<SharedSecrets>(the_one()) {
            return take(&record.body, &keys, secret);
        }
        let sealed = give(&keys, secret)?;
        let draft = Draft::new(the_one(), sealed);
        match store.commit(Transaction::new(Author::new("cloud").operation("share-keys")).create(draft)).await {
            Ok(_) => return Ok(()),
            // Two that start at once: the other one was first.
            Err(CommitError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The keys of the database into the folder.
fn take(shared: &SharedSecrets, keys: &Path, secret: &Path) -> Result<()> {
    if !secret.exists() {
        return Err(Error::invalid("secret_file_missing", "The key to the cloud's secrets is missing")
            .detail(format!("{} does not exist", secret.display()))
            .next(
                "copy it from a machine on which a controller of this cloud runs, or name it with --secret-file",
                None,
            ));
    }
    let vault = Vault::new(KeyRing::open(secret)?);
    let other = |error: Error| {
        Error::new(ErrorKind::Invalid, "wrong_secret_file", "This is not the key to the cloud's secrets")
            .detail(secret.display().to_string())
            .source(error)
            .next("copy it from a machine on which a controller of this cloud runs", None)
    };
    for (name, pieces) in &shared.0 {
        if !FILES.contains(&name.as_str()) {
            return Err(Error::bug(format!("the cloud's keys hold an unknown one, `{name}`")));
        }
        let mut text = String::new();
        for (number, piece) in pieces.iter().enumerate() {
            text.push_str(vault.open(&owner(name, number), piece).map_err(other)?.reveal());
        }
        let path = keys.join(name);
        match fs::read_to_string(&path) {
            Ok(known) if known == text => {}
            Ok(_) => {
                return Err(Error::conflict("other_keys", "The data folder holds the keys of another cloud")
                    .detail(path.display().to_string())
                    .next("choose a new data folder with --data", None));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => write_private(&path, text.as_bytes())?,
            Err(error) => return Err(Error::internal(format!("{} cannot be read", path.display()), error)),
        }
    }
    Ok(())
}

/// The keys of the folder, made if they are not there, sealed for the database.
fn give(keys: &Path, secret: &Path) -> Result<SharedSecrets> {
    let vault = Vault::new(KeyRing::open(secret)?);
    KeyRing::open(&keys.join("token"))?;
    KeyRing::open(&keys.join("vault"))?;
    Authority::open(&keys.join("authority"))?;
    let mut all = BTreeMap::new();
    for name in FILES {
        let path = keys.join(name);
        let text = fs::read_to_string(&path)
            .map_err(|error| Error::internal(format!("{} cannot be read", path.display()), error))?;
        let mut pieces = vec![];
        // All of it is ASCII.
        for (number, piece) in text.as_bytes().chunks(PIECE).enumerate() {
            let piece = std::str::from_utf8(piece).map_err(|error| Error::internal("A key is not text", error))?;
            pieces.push(vault.seal(&owner(name, number), &piece.parse()?)?);
        }
        all.insert(name.to_owned(), pieces);
    }
    Ok(SharedSecrets(all))
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
        KeyRing::open(&third.join("keys/token")).unwrap();
        assert_eq!(share(&store, &third, &secret).await.unwrap_err().code, "other_keys");
    }
}
