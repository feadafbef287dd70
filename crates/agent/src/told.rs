//! What servers are told about themselves, and the passwords that they made up and encrypted for their owners.

use std::{
    collections::HashMap,
    fs, io,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
};

use futures_util::future::BoxFuture;
use nephos_network_services::MetadataSource;
use nephos_node_api::metadata::ServerMetadata;
use nephos_types::{Error, Result, ServerId};

use crate::records::{private_folder, replace};

/// The folder of passwords, below the agent's.
const PASSWORDS: &str = "passwords";

/// What is known of the node's servers.
pub(crate) struct Told {
    servers: RwLock<HashMap<ServerId, Arc<ServerMetadata>>>,
    folder: Option<PathBuf>,
}

impl Told {
    pub(crate) fn new(folder: Option<PathBuf>) -> Self {
        Self { servers: RwLock::default(), folder: folder.map(|folder| folder.join(PASSWORDS)) }
    }

    /// What a server is told from now on; with `None` nothing, and its password is forgotten.
    pub(crate) fn set(&self, server: ServerId, metadata: Option<&ServerMetadata>) {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        match metadata {
            Some(metadata) => {
                servers.insert(server, Arc::new(metadata.clone()));
            }
            None => {
                servers.remove(&server);
                if let Some(file) = self.file(server) {
                    // What is not there need not be removed.
                    let _ = fs::remove_file(file);
                }
            }
        }
    }

    fn file(&self, server: ServerId) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(server.to_string()))
    }

    fn read(&self, server: ServerId) -> Result<Option<String>> {
        match self.file(server).map(fs::read_to_string) {
            None => Ok(None),
            Some(Ok(password)) => Ok(Some(password)),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Some(Err(error)) => Err(Error::internal("The server's password cannot be read", error)),
        }
    }
}

impl MetadataSource for Told {
    fn server(&self, server: ServerId) -> Option<Arc<ServerMetadata>> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).get(&server).cloned()
    }

    fn password(&self, server: ServerId) -> BoxFuture<'_, Result<Option<String>, Error>> {
        Box::pin(async move { self.read(server) })
    }

    fn set_password(&self, server: ServerId, password: String) -> BoxFuture<'_, Result<bool, Error>> {
        Box::pin(async move {
            let (Some(folder), Some(file)) = (&self.folder, self.file(server)) else { return Ok(false) };
            if self.read(server)?.is_some() {
                return Ok(false);
            }
            private_folder(folder)?;
            replace(&file, password.as_bytes(), true)
                .map_err(|error| Error::internal("The server's password cannot be kept", error))?;
            Ok(true)
        })
    }
}
