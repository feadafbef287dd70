//! Logging in, and the file that `nephos login` keeps.

use std::{collections::BTreeMap, env, fs, os::unix::fs::PermissionsExt, path::PathBuf};

use nephos_ops::identity::{CreateToken, NewToken};
use nephos_types::{Error, Reference, Result, Timestamp};
use serde::{Deserialize, Serialize};

use super::{
    Login,
    cache::{Issued, write_private},
};
use crate::client::Client;

/// What `~/.config/nephos/credentials.toml` holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stored {
    /// The cloud that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    #[serde(default)]
    pub(crate) clouds: BTreeMap<String, StoredCloud>,
}

/// One login.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoredCloud {
    pub(crate) url: String,
    pub(crate) token: String,
    pub(crate) expires_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) project: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cacert: Option<PathBuf>,
}

impl std::fmt::Debug for StoredCloud {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

/// Where the file is; `None` without a home.
pub(crate) fn path() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".config"));
    let base = env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home)?;
    Some(base.join("nephos").join("credentials.toml"))
}

/// Reads the file; an absent one is empty, one that others can read is refused.
pub(crate) fn read(path: &std::path::Path) -> Result<Stored> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Stored::default()),
        Err(error) => {
            return Err(
                Error::invalid("unreadable_file", format!("Cannot read {}", path.display())).detail(error.to_string())
            );
        }
    };
    let mode = fs::metadata(path).map_or(0, |about| about.permissions().mode());
    if mode & 0o077 != 0 {
        return Err(Error::invalid("readable_by_others", format!("{} can be read by others", path.display()))
            .detail("it holds tokens, so only its owner may")
            .next("take their rights away", Some(format!("chmod 600 {}", path.display()))));
    }
    toml::from_str(&text).map_err(|error| {
        Error::invalid("invalid_credentials", format!("{} is not understood", path.display())).detail(error.to_string())
    })
}

/// Writes the file, readable by its owner alone.
pub(crate) fn write(stored: &Stored) -> Result<PathBuf> {
    let path = path().ok_or_else(|| {
        Error::invalid("no_home", "There is no home folder to keep the login in").next("print the token: --print", None)
    })?;
    let text = toml::to_string(stored).map_err(|error| Error::internal("The login could not be written", error))?;
    write_private(&path, text.as_bytes()).map_err(|error| {
        Error::invalid("unwritable_file", format!("Cannot write {}", path.display())).detail(error.to_string())
    })?;
    Ok(path)
}

/// Asks the cloud for a token by user and password.
pub(crate) async fn issue(client: &Client, login: &Login) -> Result<Issued> {
    let reference = |name: &Option<String>| name.as_deref().map(str::parse::<Reference>).transpose();
    let wanted = CreateToken {
        user: Some(login.user.parse()?),
        user_domain: reference(&login.user_domain)?,
        password: Some(login.password.parse()?),
        project: reference(&login.project)?,
        project_domain: if login.project.is_some() { reference(&login.project_domain)? } else { None },
        ..CreateToken::default()
    };
    Ok(issued(client.call(wanted).await?))
}

/// Exchanges a token for one that is good for a project.
pub(crate) async fn exchange(client: &Client, token: &str, project: &str) -> Result<Issued> {
    let wanted = CreateToken { token: Some(token.parse()?), project: Some(project.parse()?), ..CreateToken::default() };
    Ok(issued(client.call(wanted).await?))
}

fn issued(new: NewToken) -> Issued {
    Issued { token: new.token.reveal().to_owned(), expires_at: new.identity.expires_at }
}
