//! Who this node is: enrolment with a token, the certificate that comes of it, and its renewal.
//!
//! One file holds key, certificate, the cloud's authority and where its control plane is; mode 0600, replaced as a
//! whole. The private key never leaves the machine.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use nephos_node_api::{
    Client, Enrolment, EnrolmentAnswer, NODE_REMOVED, Renewal,
    client::{Proxy, Tls},
    tls::{self, NodeCertificate},
};
use nephos_types::{Error, ErrorKind, NodeId, Result};
use rcgen::{CertificateParams, KeyPair};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Agent, Ended},
    config::Config,
    drivers::Drivers,
    records::{Records, private_folder, replace},
};

/// What stands for no proxy where one could stand.
const NO_PROXY: &str = "none";
/// How often it is looked whether the certificate has to be renewed; by the wall clock, so that a machine that slept
/// notices when it wakes.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What `nephos node join-token` prints: where the control plane is, and a token that names its authority.
#[derive(Clone, PartialEq, Eq)]
pub struct Join {
    address: String,
    /// A machine that is a node already needs none.
    token: Option<(String, tls::Fingerprint)>,
}

impl Join {
    /// Reads `https://HOST:PORT` (further ones after commas) and `TOKEN.FINGERPRINT`. Without a token it says where the
    /// control plane of a node is by now.
    pub fn parse(url: &str, token: Option<&str>) -> Result<Self> {
        let address = url
            .strip_prefix("https://")
            .map(|address| address.trim_end_matches('/'))
            .filter(|addresses| addresses.split(',').all(is_address))
            .ok_or_else(|| {
                Error::invalid("invalid_join_address", "Not the address of a control plane")
                    .detail(format!("`{url}` is not `https://HOST:PORT`"))
                    .next("copy the whole command", Some("nephos node join-token".to_owned()))
            })?;
        let bad_token = |why: &str| {
            Error::invalid("invalid_join_token", "Not a join token")
                .detail(why)
                .next("copy the whole command", Some("nephos node join-token".to_owned()))
        };
        let Some(token) = token else { return Ok(Self { address: address.to_owned(), token: None }) };
        let (secret, fingerprint) =
            token.split_once('.').ok_or_else(|| bad_token("it has two parts with a dot between"))?;
        let fingerprint = hex::decode(fingerprint)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| bad_token("its second part is 64 hexadecimal digits"))?;
        if secret.is_empty() {
            return Err(bad_token("its first part is missing"));
        }
        Ok(Self { address: address.to_owned(), token: Some((secret.to_owned(), fingerprint)) })
    }
}

fn is_address(address: &str) -> bool {
    address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        && !address.contains(['/', '?', '#', '@'])
}

#[derive(Clone, Serialize, Deserialize)]
struct Identity {
    control_plane: String,
    node: NodeId,
    key: String,
    certificate: String,
    authority: String,
    /// The HTTP proxy that leads there.
    #[serde(default)]
    proxy: Option<String>,
}

/// This machine as a node of a remote control plane.
pub struct RemoteNode {
    file: PathBuf,
    identity: Mutex<Identity>,
    tls: Arc<Tls>,
}

impl RemoteNode {
    /// Takes up the identity in the agent's folder; without one, joins. `proxy` is one to use from now on, or `none`;
    /// absent for the one that was used before.
    pub async fn open(data: &Path, join: Option<&Join>, proxy: Option<&str>) -> Result<Self> {
        private_folder(data)?;
        let file = data.join("identity.json");
        let mut identity = Self::read(&file)?;
        if let Some(identity) = &mut identity {
            Self::move_to(&file, identity, join, proxy)?;
        }
        let proxy = proxy.filter(|proxy| *proxy != NO_PROXY);
        match (identity, join) {
            (Some(identity), None | Some(Join { token: None, .. })) => Self::new(file, identity),
            (Some(identity), Some(join)) => {
                let proxy = identity.proxy.clone();
                let known = Self::new(file.clone(), identity)?;
                match Client::new(known.connector()).desired(None, Duration::ZERO).await {
                    Err(error) if error.code == NODE_REMOVED => {
                        tracing::info!(node = %known.node(), "this machine was removed from its cloud and joins again");
                        Self::join(file, join, proxy.as_deref()).await
                    }
                    _ => {
                        tracing::info!(node = %known.node(), "this machine is a node already; the join token is not used");
                        Ok(known)
                    }
                }
            }
            (None, Some(join)) => Self::join(file, join, proxy).await,
            (None, None) => Err(Error::invalid("not_joined", "This machine is no node yet")
                .detail(format!("{} holds no identity", data.display()))
                .next(
                    "make a join token at the control plane and run the command that it prints",
                    Some("nephos node join-token".to_owned()),
                )),
        }
    }

    /// Notes where the control plane is by now, and how it is reached, if that is told and news.
    fn move_to(file: &Path, identity: &mut Identity, join: Option<&Join>, proxy: Option<&str>) -> Result<()> {
        let authority = tls::fingerprint(&tls::certificate_from_pem(&identity.authority)?);
        // A token of another cloud does not tell where this one is.
        let told = join.filter(|join| join.token.as_ref().is_none_or(|(_, fingerprint)| *fingerprint == authority));
        let address = told.map_or_else(|| identity.control_plane.clone(), |join| join.address.clone());
        let proxy = match proxy {
            None => identity.proxy.clone(),
            Some(NO_PROXY) => None,
            Some(proxy) => Some(proxy.to_owned()),
        };
        if (&address, &proxy) == (&identity.control_plane, &identity.proxy) {
            return Ok(());
        }
        (identity.control_plane, identity.proxy) = (address, proxy);
        // What cannot be used is not kept.
        identity.proxy.as_deref().map(Proxy::parse).transpose()?;
        tracing::info!(control_plane = identity.control_plane, "the control plane is reached another way from now on");
        keep(file, identity)
    }

    fn read(file: &Path) -> Result<Option<Identity>> {
        match fs::read(file) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
                Error::internal("The node's identity cannot be read", error).detail(file.display().to_string())
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(Error::internal("The node's identity cannot be read", error).detail(file.display().to_string()))
            }
        }
    }

    fn new(file: PathBuf, identity: Identity) -> Result<Self> {
        let config = tls::node_config(&identity.authority, &identity.certificate, &identity.key)?;
        let proxy = identity.proxy.as_deref().map(Proxy::parse).transpose()?;
        let tls = Arc::new(Tls::new(identity.control_plane.clone(), config).through(proxy));
        Ok(Self { file, identity: Mutex::new(identity), tls })
    }

    async fn join(file: PathBuf, join: &Join, proxy: Option<&str>) -> Result<Self> {
        let (token, fingerprint) = join.token.clone().ok_or_else(|| {
            Error::invalid("join_token_missing", "A machine that is no node yet needs a token to join")
                .next("make one at the control plane", Some("nephos node join-token".to_owned()))
        })?;
        let through = proxy.map(Proxy::parse).transpose()?;
        let (key, signing_request) = signing_request()?;
        // The handshake checks the authority before anything is sent.
        let config = tls::joining_config(fingerprint)?;
        let connector = Arc::new(Tls::new(join.address.clone(), config).through(through));
        let enrolment = Enrolment { token, name: hostname(), signing_request };
        let answer = Client::new(connector).enrol(&enrolment).await?;
        if tls::fingerprint(&tls::certificate_from_pem(&answer.authority)?) != fingerprint {
            return Err(Error::new(
                ErrorKind::Forbidden,
                "wrong_authority",
                "The control plane named another authority than the join token",
            ));
        }
        let identity = identity_of((join.address.clone(), proxy.map(ToOwned::to_owned)), key, answer)?;
        keep(&file, &identity)?;
        tracing::info!(node = %identity.node, "joined");
        Self::new(file, identity)
    }

    /// The node's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).node
    }

    /// How the control plane is reached as this node.
    #[must_use]
    pub fn connector(&self) -> Arc<Tls> {
        self.tls.clone()
    }

    /// Runs the agent, and keeps its certificate fresh, until `shutdown`.
    ///
    /// # Errors
    /// As [`Agent::run`].
    pub async fn run(&self, config: Config, drivers: impl Into<Drivers>, shutdown: CancellationToken) -> Result<Ended> {
        let agent = Agent::run(config, self.connector(), drivers, shutdown.clone());
        tokio::select! {
            ended = agent => ended,
            error = self.stay_fresh() => Err(error),
        }
    }

    /// Whether this machine could run as the node that it is: its certificate and what it remembers can be read, and the
    /// control plane takes its calls.
    pub async fn check(&self, data: &Path) -> Result<()> {
        Records::open(Some(data))?.load()?;
        Client::new(self.connector()).desired(None, Duration::ZERO).await.map(drop)
    }

    /// Renews whenever a third of the certificate's time is left. Ends only when the node has been removed.
    async fn stay_fresh(&self) -> Error {
        loop {
            match self.renew_if_due(SystemTime::now()).await {
                Ok(_) => {}
                Err(error) if error.code == NODE_REMOVED => return error,
                Err(error) => tracing::warn!(error = %error.chain(), "the node's certificate could not be renewed yet"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Renews the certificate if less than a third of its time is left, expired ones included; says whether it did.
    pub async fn renew_if_due(&self, now: SystemTime) -> Result<bool> {
        let identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let certificate = NodeCertificate::parse_pem(&identity.certificate)?;
        let whole = certificate.not_after.duration_since(certificate.not_before).unwrap_or_default();
        let left = certificate.not_after.duration_since(now).unwrap_or_default();
        if left > whole / 3 {
            return Ok(false);
        }
        let (key, signing_request) = signing_request()?;
        let answer = Client::new(self.tls.clone()).renew(&Renewal { signing_request }).await?;
        let fresh = identity_of((identity.control_plane, identity.proxy), key, answer)?;
        keep(&self.file, &fresh)?;
        self.tls.replace(tls::node_config(&fresh.authority, &fresh.certificate, &fresh.key)?);
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
        tracing::info!("the node's certificate was renewed");
        Ok(true)
    }
}

fn identity_of(
    (control_plane, proxy): (String, Option<String>),
    key: String,
    answer: EnrolmentAnswer,
) -> Result<Identity> {
    let EnrolmentAnswer { node, certificate, authority } = answer;
    // What cannot be used is not kept.
    if NodeCertificate::parse_pem(&certificate)?.node != node {
        return Err(Error::bug("the control plane sent a certificate for another node"));
    }
    tls::node_config(&authority, &certificate, &key)?;
    Ok(Identity { control_plane, node, key, certificate, authority, proxy })
}

fn keep(file: &Path, identity: &Identity) -> Result<()> {
    let text = serde_json::to_vec(identity)
        .map_err(|error| Error::internal("The node's identity could not be written", error))?;
    replace(file, &text, true).map_err(|error| {
        Error::internal("The node's identity could not be kept", error).detail(file.display().to_string())
    })
}

fn signing_request() -> Result<(String, String)> {
    let broken = |error: rcgen::Error| Error::internal("A key for the node could not be made", error);
    let key = KeyPair::generate().map_err(broken)?;
    let request =
        CertificateParams::default().serialize_request(&key).and_then(|request| request.pem()).map_err(broken)?;
    Ok((key.serialize_pem(), request))
}

fn hostname() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "node".to_owned(), |system| system.nodename().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_commands_are_read_and_mistakes_named() {
        let fingerprint = "ab".repeat(32);
        let token = format!("secret.{fingerprint}");
        let join = Join::parse("https://10.0.0.1:6785", Some(&token)).unwrap();
        assert_eq!((join.address.as_str(), join.token.unwrap().0.as_str()), ("10.0.0.1:6785", "secret"));
        assert!(Join::parse("https://10.0.0.1:6785", None).unwrap().token.is_none());
        assert!(Join::parse("https://10.0.0.1:6785,10.0.0.2:6785", Some(&token)).is_ok());
        assert!(Join::parse("https://[fd00::1]:6785/", Some(&token)).is_ok());
        for url in [
            "",
            "10.0.0.1:6785",
            "http://a:1",
            "https://a",
            "https://a:99999",
            "https://:1",
            "https://a:1/x",
            "https://a:1,",
        ] {
            assert_eq!(Join::parse(url, Some("a.b")).err().unwrap().code, "invalid_join_address", "{url}");
        }
        for token in ["", "secret", &format!(".{fingerprint}"), "secret.zz", "secret.abcd"] {
            assert_eq!(Join::parse("https://a:1", Some(token)).err().unwrap().code, "invalid_join_token", "{token}");
        }
    }
}
