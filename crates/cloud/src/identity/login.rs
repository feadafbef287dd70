//! Logging in: who somebody is, and for what scope the token shall be.
//!
//! Every refusal of a credential has one text: whoever guesses does not learn whether the user exists, is disabled, or has
//! another password.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use nephos_auth::token::{Claims, Methods, TokenScope};
use nephos_ops::identity::CreateToken;
use nephos_store::Record;
use nephos_types::{DomainId, Error, ErrorKind, Reference, Result, Secret, UserId};

use super::{
    Authority,
    bootstrap::DEFAULT_DOMAIN,
    kinds::{ApplicationCredential, ApplicationCredentialSecret, Domain, Project, Target, User, UserSecret},
    roles,
    throttle::Guard,
};
use crate::{CLOUD, name_claim};

/// What a login proved.
enum Proof {
    User(Arc<Record<User>>),
    Credential(Arc<Record<User>>, Arc<Record<ApplicationCredential>>),
    Token(Arc<Record<User>>, Claims),
}

impl Authority {
    /// The claims of a new token.
    pub(super) async fn log_in(&self, input: CreateToken, address: &str) -> Result<Claims> {
        let wanted = WantedScope::of(&input)?;
        match self.prove(&input, address).await? {
            Proof::User(user) => {
                let scope = self.scope(&user, wanted)?;
                Ok(self.new_claims(&user, scope, Methods::PASSWORD))
            }
            Proof::Credential(user, credential) => {
                if !matches!(wanted, WantedScope::Default) {
                    return Err(Error::invalid("scope_not_allowed", "An application credential has its own scope")
                        .detail("leave out `project`, `domain`, `system` and `unscoped`"));
                }
                let project = credential.meta.project.ok_or_else(wrong_credentials)?;
                let mut claims = self.new_claims(&user, TokenScope::Project(project), Methods::APPLICATION_CREDENTIAL);
                claims.application_credential = Some(credential.meta.id);
                claims.expires_at =
                    credential.body.expires_at.map_or(claims.expires_at, |end| end.min(claims.expires_at));
                Ok(claims)
            }
            Proof::Token(user, old) => {
                if old.application_credential.is_some() {
                    return Err(Error::new(
                        ErrorKind::Forbidden,
                        "scope_not_allowed",
                        "A token from an application credential keeps its scope",
                    ));
                }
                let scope = self.scope(&user, wanted)?;
                let claims = self.new_claims(&user, scope, old.methods.and(Methods::TOKEN));
                Ok(Claims { parent: Some(old.id), expires_at: old.expires_at, ..claims })
            }
        }
    }

    async fn prove(&self, input: &CreateToken, address: &str) -> Result<Proof> {
        match input {
            CreateToken {
                user: Some(user),
                user_domain,
                password: Some(password),
                application_credential: None,
                secret: None,
                token: None,
                ..
            } => self.by_password(user, user_domain.as_ref(), password, address).await.map(Proof::User),
            CreateToken {
                user,
                user_domain,
                password: None,
                application_credential: Some(credential),
                secret: Some(secret),
                token: None,
                ..
            } => {
                let owner = user.as_ref().map(|user| (user, user_domain.as_ref()));
                self.by_credential(credential, owner, secret, address).await
            }
            CreateToken {
                user: None,
                user_domain: None,
                password: None,
                application_credential: None,
                secret: None,
                token: Some(token),
                ..
            } => {
                let identity = self.validate(token.reveal())?;
                let user = self.store.get::<User>(identity.user).ok_or_else(wrong_credentials)?;
                Ok(Proof::Token(user, self.claims(token)?))
            }
            _ => Err(Error::invalid("credentials_incomplete", "It is not clear how you log in")
                .detail("give either `user` and `password`, or `application_credential` and `secret`, or `token`")),
        }
    }

    async fn by_password(
        &self,
        reference: &Reference,
        domain: Option<&Reference>,
        password: &Secret,
        address: &str,
    ) -> Result<Arc<Record<User>>> {
        let domain = self.domain_for_login(domain);
        let user = domain.and_then(|domain| self.user_for_login(domain, reference));
        // An id and a name of one user share their failures; unknown ones have their own.
        let key = match &user {
            Some(user) => user.meta.id.to_string(),
            None => format!("{domain:?}/{reference}"),
        };
        let kept = user.as_ref().and_then(|user| self.store.get::<UserSecret>(user.meta.id));
        let kept = kept.as_ref().map(|kept| kept.body.password_hash.as_str());
        self.check(&key, address, password, kept).await?;
        self.usable(user)
    }

    async fn by_credential(
        &self,
        reference: &Reference,
        owner: Option<(&Reference, Option<&Reference>)>,
        secret: &Secret,
        address: &str,
    ) -> Result<Proof> {
        let owner = owner.map(|(user, domain)| self.user_for_login(self.domain_for_login(domain)?, user));
        let credential = match &owner {
            None => reference.as_str().parse().ok().and_then(|id| self.store.get::<ApplicationCredential>(id)),
            Some(None) => None,
            Some(Some(user)) => self
                .store
                .owner(&name_claim::<ApplicationCredential>(user.meta.id, reference))
                .and_then(|id| id.parse().ok())
                .or_else(|| reference.as_str().parse().ok())
                .and_then(|id| self.store.get::<ApplicationCredential>(id))
                .filter(|credential| credential.body.user == user.meta.id),
        };
        let key =
            credential.as_ref().map_or_else(|| format!("credential/{reference}"), |known| known.meta.id.to_string());
        let kept = credential.as_ref().and_then(|known| self.store.get::<ApplicationCredentialSecret>(known.meta.id));
        self.check(&key, address, secret, kept.as_ref().map(|kept| kept.body.hash.as_str())).await?;
        let credential = credential.ok_or_else(wrong_credentials)?;
        let user = self.usable(self.store.get::<User>(credential.body.user))?;
        Ok(Proof::Credential(user, credential))
    }

    /// Checks a password or secret, with failures counted per `key` and address.
    pub(super) async fn check(&self, key: &str, address: &str, secret: &Secret, kept: Option<&str>) -> Result<()> {
        // A reverse proxy and the machine's own people come from loopback: failures of one must not stop all.
        let by_address = match peer(address) {
            Some(peer) => Some(self.throttle.attempt(&self.vault, Guard::Address, &peer).await?),
            None => None,
        };
        let by_user = self.throttle.attempt(&self.vault, Guard::User, key).await?;
        if self.passwords.verify(secret.clone(), kept).await? {
            // The address is not forgiven: whoever has one account could else guess at others for ever.
            by_user.succeeded().await;
            return Ok(());
        }
        by_user.failed().await?;
        if let Some(by_address) = by_address {
            by_address.failed().await?;
        }
        Err(wrong_credentials())
    }

    fn usable(&self, user: Option<Arc<Record<User>>>) -> Result<Arc<Record<User>>> {
        user.filter(|user| {
            user.body.enabled && self.store.get::<Domain>(user.body.domain).is_some_and(|domain| domain.body.enabled)
        })
        .ok_or_else(wrong_credentials)
    }

    fn domain_for_login(&self, reference: Option<&Reference>) -> Option<DomainId> {
        let text = reference.map_or(DEFAULT_DOMAIN, Reference::as_str);
        let named = self.store.owner(&name_claim::<Domain>(CLOUD, text));
        let id = named.as_deref().unwrap_or(text).parse().ok()?;
        self.store.get::<Domain>(id).map(|domain| domain.meta.id)
    }

    fn user_for_login(&self, domain: DomainId, reference: &Reference) -> Option<Arc<Record<User>>> {
        let named = self.store.owner(&name_claim::<User>(domain, reference));
        let id = named.as_deref().unwrap_or(reference.as_str()).parse().ok()?;
        self.store.get::<User>(id)
    }

    /// The scope that the user asked for, if there is a role for it.
    fn scope(&self, user: &Record<User>, wanted: WantedScope<'_>) -> Result<TokenScope> {
        let (scope, shown) = match wanted {
            WantedScope::Unscoped => return Ok(TokenScope::Unscoped),
            WantedScope::Default => return Ok(self.default_scope(user)),
            WantedScope::System => (Some(TokenScope::System), "the system".to_owned()),
            WantedScope::Domain(reference) => {
                (self.domain_for_login(Some(reference)).map(TokenScope::Domain), format!("domain `{reference}`"))
            }
            WantedScope::Project(reference, domain) => {
                let domain = match domain {
                    Some(domain) => self.domain_for_login(Some(domain)),
                    None => Some(user.body.domain),
                };
                let named = domain.and_then(|domain| self.store.owner(&name_claim::<Project>(domain, reference)));
                let id = named.as_deref().unwrap_or(reference.as_str()).parse().ok();
                (id.map(TokenScope::Project), format!("project `{reference}`"))
            }
        };
        scope.filter(|scope| self.may_enter(user.meta.id, *scope)).ok_or_else(|| {
            Error::new(ErrorKind::Unauthenticated, "no_role", "You cannot log in there")
                .detail(format!("{shown} does not exist, is disabled, or gives you no role"))
                .next("list what you can log in to", Some("nephos project list --mine".to_owned()))
        })
    }

    fn may_enter(&self, user: UserId, scope: TokenScope) -> bool {
        let enabled = |id| self.store.get::<Domain>(id).is_some_and(|domain| domain.body.enabled);
        let target = match scope {
            TokenScope::Unscoped => return true,
            TokenScope::System => Target::System,
            TokenScope::Domain(id) if enabled(id) => Target::Domain(id),
            TokenScope::Project(id)
                if self.store.get::<Project>(id).is_some_and(|one| one.body.enabled && enabled(one.body.domain)) =>
            {
                Target::Project(id)
            }
            TokenScope::Domain(_) | TokenScope::Project(_) => return false,
        };
        !roles::on(&self.store, user, target).is_empty()
    }

    /// The user's default project, or the only one, or none.
    fn default_scope(&self, user: &Record<User>) -> TokenScope {
        let enterable = |project: &_| self.may_enter(user.meta.id, TokenScope::Project(*project));
        if let Some(project) = user.body.default_project.filter(|project| enterable(project)) {
            return TokenScope::Project(project);
        }
        let mut projects =
            roles::projects_of(&self.store, user.meta.id).into_iter().filter(|project| enterable(project));
        match (projects.next(), projects.next()) {
            (Some(only), None) => TokenScope::Project(only),
            _ => TokenScope::Unscoped,
        }
    }
}

/// What the caller asked the token to be good for.
enum WantedScope<'a> {
    Default,
    Unscoped,
    Project(&'a Reference, Option<&'a Reference>),
    Domain(&'a Reference),
    System,
}

impl<'a> WantedScope<'a> {
    fn of(input: &'a CreateToken) -> Result<Self> {
        let asked = [input.project.is_some(), input.domain.is_some(), input.system, input.unscoped];
        if asked.into_iter().filter(|asked| *asked).count() > 1 {
            return Err(Error::invalid("scope_ambiguous", "A token has one scope")
                .detail("give one of `project`, `domain`, `system` and `unscoped`"));
        }
        if input.project_domain.is_some() && input.project.is_none() {
            return Err(Error::invalid("scope_ambiguous", "`project_domain` goes with `project`")
                .detail("it says in which domain to look for the project's name"));
        }
        Ok(match (&input.project, &input.domain) {
            (Some(project), _) => Self::Project(project, input.project_domain.as_ref()),
            (_, Some(domain)) => Self::Domain(domain),
            _ if input.system => Self::System,
            _ if input.unscoped => Self::Unscoped,
            _ => Self::Default,
        })
    }
}

/// The refusal of credentials.
pub(super) fn wrong_credentials() -> Error {
    Error::new(ErrorKind::Unauthenticated, "wrong_credentials", "The credentials are not right")
        .detail("there is no such user, it is disabled, or the password or secret is another")
}

/// By what failures from an address are counted: all of it, or the network that IPv6 gives to one customer; nothing for
/// the loopback.
fn peer(address: &str) -> Option<String> {
    let parsed = address.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| address.parse::<IpAddr>());
    match parsed.map(|address| address.to_canonical()) {
        Ok(address) if address.is_loopback() => None,
        Ok(IpAddr::V4(address)) => Some(address.to_string()),
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            Some(format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0)))
        }
        Err(_) => Some(address.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_counted_by_what_one_customer_has() {
        let peers = ["198.51.100.9:1", "[::ffff:198.51.100.9]:2", "198.51.100.9"].map(peer);
        assert!(peers.iter().all(|peer| peer.as_deref() == Some("198.51.100.9")), "{peers:?}");
        assert_eq!(peer("[2001:db8::1:2:3:4]:1"), peer("2001:db8::9"));
        assert_ne!(peer("2001:db8:0:1::9"), peer("2001:db8::9"));
        assert!(["127.0.0.1:1", "[::1]:1", "127.9.9.9"].iter().all(|address| peer(address).is_none()));
        assert_eq!(peer("somewhere").as_deref(), Some("somewhere"));
    }
}
