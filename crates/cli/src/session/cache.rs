//! Tokens remembered between commands, so that not every command checks a password.

use std::{
    fs,
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use nephos_types::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Login;

/// How long before its end a token is no longer used.
const MARGIN: Duration = Duration::from_secs(60);

/// A token and when it ends.
#[derive(Serialize, Deserialize)]
pub(crate) struct Issued {
    pub(crate) token: String,
    pub(crate) expires_at: Timestamp,
}

/// The program's folder for what may be lost; `None` without a home to keep it in.
pub(crate) fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(folder.join("nephos"))
}

/// The file for this login.
pub(super) fn place(url: &str, login: &Login) -> Option<PathBuf> {
    // The password is part of the name: with another one the token must be asked for anew.
    let mut parts = login.parts();
    parts.insert(0, url.to_owned());
    Some(folder()?.join(format!("token-{}.json", digest(&parts))))
}

/// A name for what belongs to these texts together, which tells none of them.
pub(crate) fn digest(parts: &[String]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// The remembered token, if it lasts long enough to be used.
pub(super) fn read(path: &Path) -> Option<String> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        return None;
    }
    let issued: Issued = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (issued.expires_at > Timestamp::now().plus(MARGIN)).then_some(issued.token)
}

/// Remembers a token. That this fails costs a login next time, so it is no error.
pub(super) fn write(path: &Path, issued: &Issued) {
    if let Ok(text) = serde_json::to_vec(issued) {
        let _ = write_private(path, &text);
    }
}

/// Writes a file that only its owner can read, whole or not at all.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{:016x}.part", rand::random::<u64>()));
    let part = PathBuf::from(part);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&part)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written
}
