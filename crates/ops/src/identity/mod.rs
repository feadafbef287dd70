//! Operations on domains, projects, users, groups, roles, tokens, credentials.

mod access_key;
mod application_credential;
mod assignment;
mod domain;
mod group;
mod project;
mod role;
mod token;
mod user;

pub use access_key::*;
pub use application_credential::*;
pub use assignment::*;
pub use domain::*;
pub use group::*;
pub use project::*;
pub use role::*;
pub use token::*;
pub use user::*;
