//! Identity: who exists, who they prove to be, and what they may do.
//!
//! Invariants: roles are looked up whenever a token is shown, so a change of a user, role, project or domain works at
//! once; a secret leaves this family only in the answer that makes it; whoever is not the cloud's administrator can
//! neither become it nor act on those who are.
//!
//! Must not know: any front end's protocol, any other family's kinds (they register what a project may hold).

mod access_key;
mod application_credential;
mod assignment;
mod authority;
mod bootstrap;
mod domain;
mod group;
pub mod kinds;
mod listing;
mod login;
mod names;
mod privilege;
mod project;
mod removal;
mod role;
mod roles;
mod throttle;
mod token;
mod token_keys;
mod user;

use std::sync::Arc;

use nephos_store::Kinds;

pub(crate) use self::{
    authority::Delegated,
    token_keys::{Decide, KeepKeys},
};
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
        .with::<throttle::FailedLogins>()
}

/// Registers the family's handlers.
pub fn register(handlers: &mut Handlers, authority: &Arc<Authority>) {
    handlers.handle(authority, token::create);
    handlers.handle(authority, token::show);
    handlers.handle(authority, token::revoke);
    handlers.handle(authority, token_keys::show);
    handlers.handle(authority, token_keys::rotate);

    handlers.handle_creation(authority, domain::create, domain::recall);
    handlers.handle(authority, domain::list);
    handlers.handle(authority, domain::show);
    handlers.handle(authority, domain::update);
    handlers.handle(authority, domain::delete);

    handlers.handle_creation(authority, project::create, project::recall);
    handlers.handle(authority, project::list);
    handlers.handle(authority, project::show);
    handlers.handle(authority, project::update);
    handlers.handle(authority, project::delete);

    handlers.handle_creation(authority, user::create, user::recall);
    handlers.handle(authority, user::list);
    handlers.handle(authority, user::show);
    handlers.handle(authority, user::update);
    handlers.handle(authority, user::delete);
    handlers.handle(authority, user::set_password);
    handlers.handle(authority, user::reset_password);

    handlers.handle_creation(authority, group::create, group::recall);
    handlers.handle(authority, group::list);
    handlers.handle(authority, group::show);
    handlers.handle(authority, group::update);
    handlers.handle(authority, group::delete);
    handlers.handle(authority, group::add_user);
    handlers.handle(authority, group::remove_user);
    handlers.handle(authority, group::users);

    handlers.handle_creation(authority, role::create, role::recall);
    handlers.handle(authority, role::list);
    handlers.handle(authority, role::show);
    handlers.handle(authority, role::update);
    handlers.handle(authority, role::delete);

    handlers.handle(authority, assignment::create);
    handlers.handle(authority, assignment::list);
    handlers.handle(authority, assignment::delete);

    handlers.handle_creation(authority, application_credential::create, application_credential::recall);
    handlers.handle(authority, application_credential::list);
    handlers.handle(authority, application_credential::show);
    handlers.handle(authority, application_credential::delete);

    handlers.handle_creation(authority, access_key::create, access_key::recall);
    handlers.handle(authority, access_key::list);
    handlers.handle(authority, access_key::show);
    handlers.handle(authority, access_key::delete);
}
