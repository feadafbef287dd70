//! The metadata service: what a guest is told about itself at 169.254.169.254, in EC2's form and in OpenStack's.
//!
//! Who asks is known by the network that it asks on and by its address there, never by what it says.

pub mod ec2;
pub mod open_stack;
mod request;
mod serve;
mod token;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use nephos_node_api::metadata::ServerMetadata;
use nephos_types::{Error, ServerId};

pub use request::{Request, Response, answer};
pub(crate) use serve::serve;
pub use token::Tokens;

/// Where the metadata service has from what it says. The agent implements it.
pub trait MetadataSource: Send + Sync + 'static {
    /// What a server is told; `None`: nothing is known of it (yet).
    fn server(&self, server: ServerId) -> Option<Arc<ServerMetadata>>;

    /// The password that the guest made and encrypted for its owner, if it did.
    fn password(&self, server: ServerId) -> BoxFuture<'_, Result<Option<String>, Error>>;

    /// Keeps that password. Once there is one it stays: answers `false` and changes nothing.
    fn set_password(&self, server: ServerId, password: String) -> BoxFuture<'_, Result<bool, Error>>;
}
