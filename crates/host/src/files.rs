//! Folders of guests, and files in them that are whole.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags};
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

/// The largest file that is read: a definition holds a configuration drive of at most 8 MiB, which JSON may make a few
/// times longer.
const MAX_STATE: u64 = 64 << 20;
/// Ending of the name of a folder whose guest has been removed.
const REMOVED: &str = ".removed";

/// A whole JSON file; `None` if there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![];
    file.take(MAX_STATE).read_to_end(&mut bytes)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// Writes a JSON file. It has the old content or the new one, whatever happens.
pub fn replace(path: &Path, value: &impl Serialize) -> io::Result<()> {
    replace_bytes(path, &serde_json::to_vec(value)?)
}

/// Writes a file. It has the old content or the new one, whatever happens.
pub fn replace_bytes(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = beside(path, ".new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&fresh, path)
}

/// What is not there need not be removed.
pub fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes a guest's folder be gone. The guest is, as soon as its folder has another name; what is left of it is
/// [swept](sweep) later.
pub fn remove(folder: &Path) -> io::Result<()> {
    let removed = beside(folder, REMOVED);
    match fs::rename(folder, &removed) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        // Left over from an earlier try.
        Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => {
            fs::remove_dir_all(&removed)?;
            fs::rename(folder, &removed)?;
        }
        Err(error) => return Err(error),
    }
    gone(fs::remove_dir_all(&removed))
}

/// The guests that have a folder, by the folder's name. Finishes removals that were interrupted.
pub fn sweep<Id: std::str::FromStr>(guests: &Path) -> io::Result<Vec<Id>> {
    let mut found = vec![];
    for entry in fs::read_dir(guests)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if name.ends_with(REMOVED) {
            fs::remove_dir_all(entry.path())?;
        } else if let Ok(id) = name.parse() {
            found.push(id);
        }
    }
    Ok(found)
}

/// A folder as a descriptor: what is reached through it needs no path, hence no short one. A link is not followed.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Connects to a socket in a folder. The address goes through a descriptor, because a socket's path may have at most
/// 107 bytes and the folder's may be longer.
pub async fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = open_folder(folder)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd())).await
}

/// The same name with something behind it.
fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(ending);
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use nephos_types::ServerId;

    use super::*;

    #[test]
    fn an_interrupted_removal_is_finished() {
        let guests = tempfile::tempdir().unwrap();
        let [kept, removed] = [(); 2].map(|()| guests.path().join(ServerId::new().to_string()));
        for folder in [&kept, &removed] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("file"), "x").unwrap();
        }
        fs::rename(&removed, beside(&removed, REMOVED)).unwrap();
        assert_eq!(sweep::<ServerId>(guests.path()).unwrap().len(), 1);
        assert_eq!(fs::read_dir(guests.path()).unwrap().count(), 1);
        for _ in 0..2 {
            remove(&kept).unwrap();
        }
        assert_eq!(fs::read_dir(guests.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_is_replaced_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        for number in [1_u32, 2] {
            replace(&path, &number).unwrap();
            assert_eq!(read::<u32>(&path).unwrap(), Some(number));
        }
        replace_bytes(&path, b"{").unwrap();
        assert_eq!(read::<u32>(&path).unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_socket_is_reached_in_a_folder_with_a_long_path() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a".repeat(100)).join("b".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        let within = open_folder(&deep).unwrap();
        let listener = tokio::net::UnixListener::bind(format!("/proc/self/fd/{}/socket", within.as_raw_fd())).unwrap();
        let (connected, accepted) = tokio::join!(connect(&deep, "socket"), listener.accept());
        connected.unwrap();
        accepted.unwrap();
    }
}
