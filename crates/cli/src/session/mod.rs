//! Which cloud, and as whom: flags before environment before files.
//!
//! 1. `--url`, `NEPHOS_URL` with `NEPHOS_TOKEN`
//! 2. what `nephos login` left in `~/.config/nephos/credentials.toml`
//! 3. `clouds.yaml` in the data folder of a cloud on this machine
//!
//! Invariants: passwords are sent only to the URL they stand beside; what is written is readable by its owner alone.

pub(crate) mod cache;
pub(crate) mod credentials;
mod sources;

use nephos_ops::Spec;
use nephos_types::{Error, ErrorKind, Result};
use serde_json::Value;

pub(crate) use sources::{Login, Proof, Source};

use crate::{client::Client, command::global::Globals, terminal::Terminal, trace};

/// A connection to one cloud in one identity.
pub(crate) struct Session {
    source: Source,
    client: Client,
    ready: bool,
}

impl Session {
    /// Decides which cloud and who; sends nothing yet.
    pub(crate) fn open(globals: &Globals, _: &Terminal) -> Result<Self> {
        Self::of(Source::find(globals)?, globals)
    }

    pub(crate) fn of(source: Source, globals: &Globals) -> Result<Self> {
        let mut client = match &source.authority {
            Some(authority) => Client::with_authority(&source.url, None, authority)?,
            None => Client::new(&source.url, None)?,
        };
        if let Some(observer) = trace::observer(globals) {
            client = client.observed_by(observer);
        }
        Ok(Self { source, client, ready: false })
    }

    /// The client before logging in.
    pub(crate) fn anonymous(&self) -> &Client {
        &self.client
    }

    /// Where commands work, as far as it is known without asking.
    pub(crate) fn project(&self) -> Option<&str> {
        self.source.project.as_deref()
    }

    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// The client, logged in where credentials are known.
    pub(crate) async fn client(&mut self) -> Result<&Client> {
        if !self.ready {
            let token = match &self.source.proof {
                Proof::None => None,
                Proof::Token { token, project: None } => Some(token.clone()),
                Proof::Token { token, project: Some(project) } => {
                    Some(credentials::exchange(&self.client, token, project).await?.token)
                }
                Proof::Password(login) => Some(self.token_for(login, false).await?),
            };
            self.client = self.client.with_token(token)?;
            self.ready = true;
        }
        Ok(&self.client)
    }

    /// Calls an operation; where a remembered token is refused, logs in again once.
    pub(crate) async fn call(&mut self, spec: &Spec, input: &Value) -> Result<Value> {
        let first = self.client().await?.call_json(spec, input).await;
        match (first, &self.source.proof) {
            (Err(error), Proof::Password(login)) if error.kind == ErrorKind::Unauthenticated => {
                let token = self.token_for(login, true).await?;
                self.client = self.client.with_token(Some(token))?;
                self.client.call_json(spec, input).await
            }
            (Err(error), Proof::None) if error.kind == ErrorKind::Unauthenticated => Err(logged_out(error)),
            (outcome, _) => outcome,
        }
    }

    /// [`Self::call`] where [`Self::client`] was called before.
    pub(crate) async fn call_ready(&self, spec: &Spec, input: &Value) -> Result<Value> {
        self.client.call_json(spec, input).await
    }

    async fn token_for(&self, login: &Login, fresh: bool) -> Result<String> {
        let place = cache::place(&self.source.url, login);
        if !fresh
            && let Some(place) = &place
            && let Some(token) = cache::read(place)
        {
            return Ok(token);
        }
        let issued = credentials::issue(&self.client.with_token(None)?, login).await?;
        if let Some(place) = &place {
            cache::write(place, &issued);
        }
        Ok(issued.token)
    }
}

fn logged_out(mut error: Error) -> Error {
    let known = error.next.iter().any(|step| step.cmd.as_deref() == Some("nephos login"));
    if !known {
        error = error.next("log in, or set NEPHOS_TOKEN", Some("nephos login".into()));
    }
    error
}
