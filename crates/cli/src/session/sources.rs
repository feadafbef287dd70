//! Where the cloud's URL and the credentials come from.

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use nephos_types::{Error, Result};
use serde::Deserialize;

use super::credentials;
use crate::command::global::Globals;

/// Where `nephos up` listens unless told otherwise.
pub(crate) const DEFAULT_URL: &str = "http://127.0.0.1:6780";
/// The entry of the data folder's `clouds.yaml` that is used when none is named.
const DEFAULT_CLOUD: &str = "nephos";

/// A cloud and a way to prove who one is.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) url: String,
    /// PEM of the certificate authority that an https URL is checked against.
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) proof: Proof,
    /// The project worked in, where known.
    pub(crate) project: Option<String>,
    /// In words, for `nephos` alone.
    pub(crate) origin: String,
}

impl Source {
    /// All that tells one cloud and identity from another, secrets included.
    pub(crate) fn parts(&self) -> Vec<String> {
        let mut parts = vec![self.url.clone()];
        match &self.proof {
            Proof::None => {}
            Proof::Token { token, project } => parts.extend([token.clone(), project.clone().unwrap_or_default()]),
            Proof::Password(login) => parts.extend(login.parts()),
        }
        parts
    }
}

/// How one proves who one is.
pub(crate) enum Proof {
    None,
    /// A token, to be exchanged for one of another project if one is named.
    Token {
        token: String,
        project: Option<String>,
    },
    Password(Login),
}

impl std::fmt::Debug for Proof {
    /// Without what proves.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("nobody"),
            Self::Token { project, .. } => write!(f, "a token for {project:?}"),
            Self::Password(login) => write!(f, "{login:?}"),
        }
    }
}

/// A user name and password with the project to work in.
#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) user: String,
    pub(crate) user_domain: Option<String>,
    pub(crate) password: String,
    /// Absent: what the cloud chooses for this user.
    pub(crate) project: Option<String>,
    pub(crate) project_domain: Option<String>,
}

impl Login {
    /// All that tells one login from another, the password included.
    pub(crate) fn parts(&self) -> Vec<String> {
        let or_empty = |part: &Option<String>| part.clone().unwrap_or_default();
        vec![
            self.user.clone(),
            or_empty(&self.user_domain),
            self.password.clone(),
            or_empty(&self.project),
            or_empty(&self.project_domain),
        ]
    }
}

impl std::fmt::Debug for Login {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} for {:?}", self.user, self.project)
    }
}

/// What is looked at to decide; gathered first, so that deciding can be tested.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) url: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) cloud: Option<String>,
    pub(crate) project: Option<String>,
    pub(crate) data: Option<PathBuf>,
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) authority: Option<PathBuf>,
}

impl Surroundings {
    fn of(globals: &Globals) -> Self {
        let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            url: globals.url.clone().or_else(|| variable("NEPHOS_URL")),
            token: variable("NEPHOS_TOKEN"),
            cloud: globals.cloud.clone().or_else(|| variable("NEPHOS_CLOUD")),
            project: globals.project.clone().or_else(|| variable("NEPHOS_PROJECT")),
            data: data_folder(),
            credentials: credentials::path(),
            authority: variable("NEPHOS_CACERT").map(PathBuf::from),
        }
    }
}

/// The folder of a cloud on this machine (`NEPHOS_DATA`, else `/var/lib/nephos` for root, else `$XDG_DATA_HOME/nephos`).
fn data_folder() -> Option<PathBuf> {
    if let Some(folder) = env::var_os("NEPHOS_DATA").filter(|folder| !folder.is_empty()) {
        return Some(folder.into());
    }
    if nix::unistd::geteuid().is_root() {
        return Some("/var/lib/nephos".into());
    }
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".local/share"));
    let base = env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home)?;
    Some(base.join("nephos"))
}

impl Source {
    pub(crate) fn find(globals: &Globals) -> Result<Self> {
        Self::decide(&Surroundings::of(globals))
    }

    pub(crate) fn decide(from: &Surroundings) -> Result<Self> {
        let mut source = Self::before_overrides(from)?;
        if let Some(path) = &from.authority {
            source.authority = Some(read(path)?);
        }
        if let Some(project) = &from.project {
            match &mut source.proof {
                Proof::Password(login) => login.project = Some(project.clone()),
                Proof::Token { project: wanted, .. } => *wanted = Some(project.clone()),
                Proof::None => {}
            }
            source.project = Some(project.clone());
        }
        Ok(source)
    }

    fn before_overrides(from: &Surroundings) -> Result<Self> {
        if let Some(token) = &from.token
            && from.cloud.is_none()
        {
            let url = from.url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
            let proof = Proof::Token { token: token.clone(), project: None };
            return Ok(Self { url, authority: None, proof, project: None, origin: "NEPHOS_TOKEN".to_owned() });
        }
        let mut known = Vec::new();
        if let Some(path) = &from.credentials {
            let stored = credentials::read(path)?;
            let wanted = from.cloud.as_ref().or(stored.current.as_ref());
            if let Some((name, cloud)) = wanted.and_then(|wanted| stored.clouds.get_key_value(wanted))
                && from.url.as_ref().is_none_or(|url| same_place(url, &cloud.url))
            {
                return Ok(Self {
                    url: cloud.url.clone(),
                    authority: cloud.cacert.as_deref().map(read).transpose()?,
                    proof: Proof::Token { token: cloud.token.clone(), project: None },
                    project: cloud.project.clone(),
                    origin: format!("login `{name}`"),
                });
            }
            known.extend(stored.clouds.into_keys());
        }
        if let Some(path) = from.data.as_ref().map(|data| data.join("clouds.yaml")) {
            let clouds = read_clouds(&path)?;
            let wanted = from.cloud.as_deref().unwrap_or(DEFAULT_CLOUD);
            if let Some(cloud) = clouds.get(wanted)
                && from.url.as_ref().is_none_or(|url| same_place(url, &cloud.url()))
            {
                return cloud.source(wanted, &path);
            }
            known.extend(clouds.into_keys());
        }
        if let Some(cloud) = &from.cloud {
            let mut error = Error::not_found("cloud", cloud);
            error.next.clear();
            let known = if known.is_empty() {
                "no cloud is known here".to_owned()
            } else {
                format!("known: {}", known.join(", "))
            };
            return Err(error.detail(known).next("log in to one", Some("nephos login".into())));
        }
        let url = from.url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
        Ok(Self { url, authority: None, proof: Proof::None, project: None, origin: "nobody logged in".to_owned() })
    }
}

/// Whether two URLs name the same host and port, so that a password may be sent.
fn same_place(a: &str, b: &str) -> bool {
    let place = |url: &str| {
        let uri: http::Uri = url.parse().ok()?;
        let scheme = uri.scheme_str()?.to_owned();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some((scheme, uri.host()?.to_ascii_lowercase(), port))
    };
    place(a).is_some() && place(a) == place(b)
}

fn read(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    fs::read(path).map_err(|error| {
        Error::invalid("unreadable_file", format!("Cannot read {}", path.display())).detail(error.to_string())
    })
}

/// One entry of `clouds.yaml`, as OpenStack's clients know it.
#[derive(Deserialize)]
struct CloudEntry {
    auth: Auth,
    cacert: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Auth {
    auth_url: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    project_name: String,
    user_domain_name: Option<String>,
    project_domain_name: Option<String>,
}

#[derive(Deserialize)]
struct Clouds {
    #[serde(default)]
    clouds: BTreeMap<String, CloudEntry>,
}

/// The entries; none if there is no such file, or it is another user's.
fn read_clouds(path: &Path) -> Result<BTreeMap<String, CloudEntry>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::NotADirectory => {
                return Ok(BTreeMap::new());
            }
            _ => {
                return Err(Error::invalid("unreadable_file", format!("Cannot read {}", path.display()))
                    .detail(error.to_string()));
            }
        },
    };
    serde_yaml_ng::from_str::<Clouds>(&text).map(|file| file.clouds).map_err(|error| {
        Error::invalid("invalid_clouds_yaml", format!("{} is not understood", path.display())).detail(error.to_string())
    })
}

impl CloudEntry {
    /// The native API stands beside the identity service that the entry names.
    fn url(&self) -> String {
        let url = self.auth.auth_url.trim_end_matches('/');
        let url = url.strip_suffix("/v3").unwrap_or(url);
        url.strip_suffix("/identity").unwrap_or(url).to_owned()
    }

    fn source(&self, name: &str, path: &Path) -> Result<Source> {
        let auth = &self.auth;
        let login = Login {
            user: auth.username.clone(),
            user_domain: auth.user_domain_name.clone(),
            password: auth.password.clone(),
            project: Some(auth.project_name.clone()).filter(|project| !project.is_empty()),
            project_domain: auth.project_domain_name.clone(),
        };
        Ok(Source {
            url: self.url(),
            // A folder that was moved or copied has its certificate beside it.
            authority: match path.parent().map(|folder| folder.join("ca.pem")).filter(|beside| beside.exists()) {
                Some(beside) => Some(read(beside)?),
                None => self.cacert.as_deref().map(read).transpose()?,
            },
            project: login.project.clone(),
            proof: if login.user.is_empty() { Proof::None } else { Proof::Password(login) },
            origin: format!("cloud `{name}` of {}", path.display()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOUDS: &str = "
clouds:
  nephos:
    auth: {auth_url: 'http://127.0.0.1:6780/identity/v3', username: admin, password: secret-1, project_name: demo, user_domain_name: Default, project_domain_name: Default}
    region_name: nephos
  nephos-admin:
    auth: {auth_url: 'http://127.0.0.1:6780/identity/v3', username: admin, password: secret-1, project_name: admin}
";

    fn with_data() -> (tempfile::TempDir, Surroundings) {
        let data = tempfile::tempdir().unwrap();
        fs::write(data.path().join("clouds.yaml"), CLOUDS).unwrap();
        let from = Surroundings { data: Some(data.path().to_owned()), ..Surroundings::default() };
        (data, from)
    }

    #[test]
    fn the_data_folder_is_used_when_nothing_else_is_said() {
        let (_data, mut from) = with_data();
        let source = Source::decide(&from).unwrap();
        assert_eq!((source.url.as_str(), source.project.as_deref()), (DEFAULT_URL, Some("demo")));
        assert!(matches!(&source.proof, Proof::Password(login) if login.password == "secret-1"));
        assert!(!format!("{source:?}").contains("secret-1"));

        from.cloud = Some("nephos-admin".into());
        assert_eq!(Source::decide(&from).unwrap().project.as_deref(), Some("admin"));
        from.project = Some("other".into());
        assert!(
            matches!(Source::decide(&from).unwrap().proof, Proof::Password(login) if login.project.as_deref() == Some("other"))
        );
        from.cloud = Some("elsewhere".into());
        assert_eq!(Source::decide(&from).unwrap_err().code, "cloud_not_found");
    }

    #[test]
    fn a_password_stays_with_its_url() {
        let (_data, mut from) = with_data();
        from.url = Some("http://example.net:6780".into());
        let source = Source::decide(&from).unwrap();
        assert!(matches!(source.proof, Proof::None), "{source:?}");
        from.url = Some("http://127.0.0.1:6780/".into());
        assert!(matches!(Source::decide(&from).unwrap().proof, Proof::Password(_)));
    }

    #[test]
    fn a_token_of_the_environment_comes_first() {
        let (_data, mut from) = with_data();
        from.token = Some("t".into());
        assert!(matches!(Source::decide(&from).unwrap().proof, Proof::Token { token, project: None } if token == "t"));
        from.project = Some("other".into());
        let proof = Source::decide(&from).unwrap().proof;
        assert!(matches!(proof, Proof::Token { project: Some(project), .. } if project == "other"));
    }

    #[test]
    fn nothing_at_all_is_nobody_on_this_machine() {
        let source = Source::decide(&Surroundings::default()).unwrap();
        assert!(matches!(source.proof, Proof::None));
        assert_eq!(source.url, DEFAULT_URL);
    }
}
