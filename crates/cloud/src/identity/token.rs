//! Handlers of the operations on tokens.

use std::sync::Arc;

use nephos_auth::token::invalid_token;
use nephos_ops::{
    Identity, Role, Scope,
    identity::{CreateToken, NewToken, RevokeToken, ShowToken},
};
use nephos_store::{CommitError, Draft};
use nephos_types::{Error, ErrorKind, Result, Timestamp};

use super::{Authority, kinds::Revocation};
use crate::Session;

pub(super) async fn create(authority: Arc<Authority>, session: Session, input: CreateToken) -> Result<NewToken> {
    let claims = authority.log_in(input, &session.context().caller.address).await?;
    let identity = authority.resolve(&claims, Timestamp::now())?;
    tracing::debug!(user = %identity.user, "logged in");
    Ok(NewToken { token: authority.sign(&claims)?, identity })
}

pub(super) async fn show(authority: Arc<Authority>, session: Session, input: ShowToken) -> Result<Identity> {
    let own = session.identity()?;
    let Some(token) = input.token else { return Ok(Identity::clone(own)) };
    let shown = authority.validate(token.reveal());
    let may_see_all =
        session.is_admin() || own.has(Role::Service) || (own.has(Role::Reader) && own.scope == Scope::System);
    match shown {
        Ok(shown) if may_see_all || shown.user == own.user => Ok(Identity::clone(&shown)),
        // What is not one's own and what is not valid look the same.
        _ => Err(Error::new(ErrorKind::NotFound, "token_not_found", "No such token")
            .detail("it is not valid (any more), or it is somebody else's")),
    }
}

pub(super) async fn revoke(authority: Arc<Authority>, session: Session, input: RevokeToken) -> Result<()> {
    let own = session.identity()?;
    let (id, user, expires_at) = match &input.token {
        None => (own.login.token.ok_or_else(invalid_token)?, own.user, own.expires_at),
        Some(token) => {
            let claims = authority
                .claims(token)
                .ok()
                .filter(|claims| claims.user == own.user || session.is_admin())
                .ok_or_else(|| Error::new(ErrorKind::NotFound, "token_not_found", "No such token"))?;
            (claims.id, claims.user, claims.expires_at)
        }
    };
    if expires_at <= Timestamp::now() {
        return Ok(());
    }
    let revocation = Draft::new(id, Revocation { user, expires_at });
    match session.commit(session.transaction().create(revocation)).await {
        // Ended already, which is what was asked for.
        Ok(_) | Err(CommitError::Exists { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
