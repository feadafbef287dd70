//! Identity: who exists, who they prove to be, and what they may do.
//!
//! Invariants: roles are looked up whenever a token is shown, so a change of a user, role, project or domain works at
//! once; a secret leaves this family only in the answer that makes it; whoever is not the cloud's administrator can
//! neither become it nor act on those who are.
//!
//! Must not know: any front end's protocol, any other family's kinds (they register what a project may hold).

mod authority;
mod bootstrap;
pub mod kinds;
mod login;
mod names;
mod roles;
mod token;

use std::sync::Arc;

use nephos_store::Kinds;

pub use self::{
    authority::{Authority, Options, ProjectUse},
    bootstrap::{FirstStart, Printed, bootstrap},
};
use crate::{Handlers, idempotency::Idempotency};

/// The kinds that this family and the core keep.
#[must_use]
pub fn kinds(kinds: Kinds) -> Kinds {
    kinds
        .with::<Idempotency>()
        .with::<kinds::Domain>()
        .with::<kinds::Project>()
        .with::<kinds::User>()
        .with::<kinds::UserSecret>()
        .with::<kinds::Group>()
        .with::<kinds::Membership>()
        .with::<kinds::Role>()
        .with::<kinds::Assignment>()
        .with::<kinds::ApplicationCredential>()
        .with::<kinds::ApplicationCredentialSecret>()
        .with::<kinds::AccessKey>()
        .with::<kinds::AccessKeySecret>()
        .with::<kinds::Revocation>()
}

/// Registers the family's handlers.
pub fn register(handlers: &mut Handlers, authority: &Arc<Authority>) {
    handlers.handle(authority, token::create);
    handlers.handle(authority, token::show);
    handlers.handle(authority, token::revoke);
}
