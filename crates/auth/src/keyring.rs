//! Secret keys kept in a file: one active, older ones still accepted.
//!
//! The file has one key per line, `<id> <created, RFC 3339> <32 bytes in base64url>`, the active one last, mode 0600. It is replaced whole,
//! so a crash leaves the old or the new one.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nephos_types::{Error, Result, Timestamp};
use ring::rand::{SecureRandom, SystemRandom};

/// One 256-bit key.
#[derive(Clone)]
pub struct Key {
    /// Its number; newer keys have greater ones.
    pub id: u32,
    /// When it was made.
    pub created_at: Timestamp,
    pub(crate) bytes: [u8; 32],
}

/// Keys of one purpose; never empty. A value: who changes it keeps it with [`KeyRing::save`].
#[derive(Clone)]
pub struct KeyRing {
    active: Key,
    /// The oldest first.
    older: Vec<Key>,
}

impl KeyRing {
    /// A ring with one fresh key that is kept nowhere: for tests.
    pub fn ephemeral() -> Result<Self> {
        Ok(Self { active: fresh(1)?, older: vec![] })
    }

    /// Opens the file, or makes it with a fresh key.
    pub fn open(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            Ok(text) => Self::from_text(&text)
                .map_err(|error| Error::bug(format!("{} is not a key file", path.display())).detail(error.detail)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let ring = Self::ephemeral()?;
                ring.save(path)?;
                Ok(ring)
            }
            Err(error) => Err(Error::internal(format!("{} cannot be read", path.display()), error)),
        }
    }

    /// The ring that a file's text stands for.
    pub fn from_text(text: &str) -> Result<Self> {
        parse(text).ok_or_else(|| {
            Error::bug("keys cannot be read")
                .detail("each line holds a key's number, time and 32 bytes in base64url; restore it from a backup")
        })
    }

    /// What is in its file. Secret.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.keys().fold(String::new(), |mut text, key| {
            text.push_str(&format!("{} {} {}\n", key.id, key.created_at, URL_SAFE_NO_PAD.encode(key.bytes)));
            text
        })
    }

    /// Replaces the file.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_private(path, self.to_text().as_bytes())
    }

    /// The key that new things are made with.
    #[must_use]
    pub fn active(&self) -> &Key {
        &self.active
    }

    /// All keys that are accepted, the oldest first, the active one last.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.older.iter().chain([&self.active])
    }

    /// The key with this number, if it is still accepted.
    #[must_use]
    pub fn get(&self, id: u32) -> Option<&Key> {
        if self.active.id == id { Some(&self.active) } else { self.older.iter().find(|key| key.id == id) }
    }

    /// With a fresh key in force; all others are still accepted.
    pub fn rotated(&self) -> Result<Self> {
        let next = self.active.id.checked_add(1).ok_or_else(|| Error::bug("no key numbers are left"))?;
        Ok(Self { active: fresh(next)?, older: self.keys().cloned().collect() })
    }

    /// Without the keys that another one replaced before `time`.
    #[must_use]
    pub fn without_replaced_before(&self, time: Timestamp) -> Self {
        let successors = self.keys().skip(1);
        let older = self.older.iter().zip(successors).filter(|(_, successor)| successor.created_at >= time);
        Self { active: self.active.clone(), older: older.map(|(key, _)| key.clone()).collect() }
    }
}

fn fresh(id: u32) -> Result<Key> {
    Ok(Key { id, created_at: Timestamp::now(), bytes: random()? })
}

/// Bytes from the operating system's generator.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::bug("the operating system gives no random numbers"))?;
    Ok(bytes)
}

fn parse(text: &str) -> Option<KeyRing> {
    let mut keys = text
        .lines()
        .map(|line| {
            let mut words = line.split_ascii_whitespace();
            let id = words.next()?.parse().ok()?;
            let created_at = words.next()?.parse().ok()?;
            let bytes = URL_SAFE_NO_PAD.decode(words.next()?).ok()?.try_into().ok()?;
            Some(Key { id, created_at, bytes })
        })
        .collect::<Option<Vec<Key>>>()?;
    let active = keys.pop()?;
    Some(KeyRing { active, older: keys })
}

/// Replaces a file whole, readable by its owner only; on disk when this returns.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let fresh = folder.join(name);
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        // A file left by a crash keeps its mode when it is opened again.
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(|error| Error::internal(format!("{} cannot be written", path.display()), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_survives_and_forgets_what_was_replaced_long_ago() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys/token");
        let first = KeyRing::open(&path).unwrap();
        let ring = first.rotated().unwrap();
        let replaced = ring.active().created_at;
        let ring = ring.rotated().unwrap();
        ring.save(&path).unwrap();
        let again = KeyRing::open(&path).unwrap();
        assert_eq!(again.to_text(), ring.to_text());
        assert_eq!(again.get(1).unwrap().bytes, first.active().bytes);
        assert_eq!(again.active().id, 3);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let numbers = |ring: &KeyRing| ring.keys().map(|key| key.id).collect::<Vec<_>>();
        assert_eq!(numbers(&ring.without_replaced_before(replaced)), [1, 2, 3]);
        let newest = ring.active().created_at.plus(std::time::Duration::from_secs(1));
        assert_eq!(numbers(&ring.without_replaced_before(newest)), [3]);
    }

    #[test]
    fn a_damaged_file_is_refused_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for text in ["", "1 2 3", "garbage\n"] {
            fs::write(&path, text).unwrap();
            assert!(KeyRing::open(&path).is_err(), "{text:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
