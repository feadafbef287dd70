//! A container's accounts: passwords and keys, in the files where programs look for them.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown, lchown},
    path::Path,
};

use nephos_driver::Answer;
use nephos_types::Error;
use sha_crypt::{PasswordHasher, ShaCrypt};

use super::{list, refusal};

const ACCOUNTS: &str = "/etc/passwd";
const SECRETS: &str = "/etc/shadow";

fn unknown(user: &str) -> Error {
    Error::conflict("guest_refused", "The server refuses").detail(format!("it has no user {user}"))
}

/// Sets a password, passwd(5) and shadow(5).
pub(super) fn set_password(user: &str, password: &str) -> Result<Answer, Error> {
    let accounts = list(ACCOUNTS).map_err(|error| refusal(ACCOUNTS, error))?;
    if field(&accounts, user, 1).is_none() {
        return Err(unknown(user));
    }
    let hash = ShaCrypt::default().hash_password(password.as_bytes());
    let hash = hash.map_err(|error| refusal(user, io::Error::other(error.to_string())))?;
    let hash = hash.as_str();
    let put = || -> io::Result<()> {
        match list(SECRETS) {
            Ok(secrets) if field(&secrets, user, 1).is_some() => replace(SECRETS, &with(&secrets, user, hash)),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => replace(ACCOUNTS, &with(&accounts, user, hash)),
        }
    };
    put().map(|()| Answer::Done).map_err(|error| refusal(ACCOUNTS, error))
}

/// Puts keys where OpenSSH and dropbear look for them.
pub(super) fn set_keys(user: &str, keys: &[String]) -> Result<Answer, Error> {
    let accounts = list(ACCOUNTS).map_err(|error| refusal(ACCOUNTS, error))?;
    let number = |place| field(&accounts, user, place)?.parse::<u32>().ok();
    let found = number(2).zip(number(3)).zip(field(&accounts, user, 5));
    let Some(((uid, gid), home)) = found.filter(|(_, home)| home.starts_with('/')) else {
        return Err(unknown(user));
    };
    let put = || -> io::Result<()> {
        let folder = Path::new(home).join(".ssh");
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => lchown(&folder, Some(uid), Some(gid))?,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let text: String = keys.iter().flat_map(|key| [key, "\n"]).collect();
        write_whole(&folder.join("authorized_keys"), &text, 0o600, (uid, gid))
    };
    put().map(|()| Answer::Done).map_err(|error| refusal(home, error))
}

/// A field of a user's line.
fn field<'a>(list: &'a str, user: &str, place: usize) -> Option<&'a str> {
    list.lines().map(|line| line.split(':')).find(|line| line.clone().next() == Some(user))?.nth(place)
}

/// The list with another password of this user.
fn with(list: &str, user: &str, hash: &str) -> String {
    let mut text = String::with_capacity(list.len() + hash.len());
    for line in list.lines() {
        let mut fields: Vec<&str> = line.split(':').collect();
        if let [name, password, ..] = fields.as_mut_slice()
            && *name == user
        {
            *password = hash;
        }
        text.push_str(&fields.join(":"));
        text.push('\n');
    }
    text
}

/// Puts another list in a list's place, for the same readers.
fn replace(path: &str, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let before = fs::metadata(&path)?;
    write_whole(&path, text, before.mode() & 0o7777, (before.uid(), before.gid()))
}

/// Replaced as a whole, so that nobody is let in, or locked out, by half a list.
fn write_whole(path: &Path, text: &str, mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = Path::new(&name);
    nephos_host::files::gone(fs::remove_file(fresh))?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(fresh)?;
    file.write_all(text.as_bytes())?;
    fchown(&file, Some(uid), Some(gid))?;
    file.sync_all()?;
    fs::rename(fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_password_changes_and_nothing_else() {
        let list = "root:old:0:0::/root:/bin/sh\nodd\nroots:x:1:1::/:\n";
        assert_eq!(with(list, "root", "new"), "root:new:0:0::/root:/bin/sh\nodd\nroots:x:1:1::/:\n");
        assert_eq!(with(list, "nobody", "new"), list);
        assert_eq!(field(list, "root", 5), Some("/root"));
        assert_eq!(field(list, "odd", 1), None);
    }
}
