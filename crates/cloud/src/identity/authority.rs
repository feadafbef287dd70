//! The family's state, and what it does on every request: say whose a token is.
//!
//! A token's signature is checked once and remembered; what it gives is looked up again whenever anything that it may
//! rest on has changed since. The store counts such changes, so there is nothing to invalidate by hand.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use nephos_auth::{
    KeyRing, Vault,
    password::{Cost, Passwords},
    token::{self, Claims, TokenScope, invalid_token},
};
use nephos_ops::{Credentials, Identity, Login, Scope};
use nephos_store::{Author, Query, Record, Store, Transaction};
use nephos_types::{AccessKeyId, Error, ErrorKind, ProjectId, Result, RoleId, Secret, Timestamp, UserId};

use super::{
    kinds::{
        AccessKey, AccessKeySecret, ApplicationCredential, Assignment, Domain, Membership, Project, Revocation, Role,
        Target, User,
    },
    roles,
    throttle::Throttle,
    token_keys::{FileKeys, KeepKeys, TokenKeys},
};
use crate::{BoxFuture, Identify, resolve::name_of};

/// Tokens remembered at most; beyond that all are forgotten, which costs each a signature check.
const MAX_REMEMBERED: usize = 50_000;
/// How old the key that signs tokens gets, unless an operator says otherwise.
const TOKEN_KEY_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a token of a key that is not known here waits for what other processes have committed.
const KEY_LIMIT: Duration = Duration::from_secs(2);

/// What an operator may choose.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long a token is good for.
    pub token_life: Duration,
    /// How costly a password's hash is.
    pub cost: Cost,
    /// How many processes serve logins together.
    pub processes: fn(&Store) -> usize,
    /// How old the key that signs tokens gets before a fresh one takes over.
    pub rotate_keys_after: Duration,
}

impl Default for Options {
    /// One hour, as in Keystone, and OWASP's recommendation.
    fn default() -> Self {
        Self {
            token_life: Duration::from_secs(3600),
            cost: Cost::Standard,
            processes: |_| 1,
            rotate_keys_after: TOKEN_KEY_AGE,
        }
    }
}

/// Something that a project may hold and that stands against deleting it.
#[derive(Clone, Copy)]
pub struct ProjectUse {
    /// In the plural: `servers`.
    pub what: &'static str,
    /// How many there are.
    pub count: fn(&Store, ProjectId) -> u64,
    /// A counter that is above zero exactly while there are some; checked in the transaction that deletes the project.
    /// Without one, who makes such a thing must `expect` the project's record.
    pub counter: Option<fn(ProjectId) -> String>,
}

/// The family's state.
pub struct Authority {
    pub(super) store: Store,
    pub(super) passwords: Passwords,
    pub(super) vault: Vault,
    pub(super) throttle: Throttle,
    pub(super) options: Options,
    pub(super) project_uses: Vec<ProjectUse>,
    pub(super) token_keys: TokenKeys,
    remembered: RwLock<HashMap<Box<str>, Remembered>>,
}

/// What a ticket says: see [`Authority::delegate`].
pub(crate) struct Delegated(Claims);

impl Delegated {
    /// When one can no longer begin with it.
    pub(crate) fn expires_at(&self) -> Timestamp {
        self.0.expires_at
    }
}

#[derive(Clone)]
struct Remembered {
    claims: Arc<Claims>,
    identity: Arc<Identity>,
    generation: u64,
    /// The generation of the keys that its signature was checked with.
    keys: u64,
}

impl Authority {
    /// Opens the keys in `<data>/keys` (or makes them) over a store that knows [`super::kinds`]. `project_uses` says
    /// what stands against deleting a project.
    pub fn open(store: Store, data: &Path, options: Options, project_uses: Vec<ProjectUse>) -> Result<Arc<Self>> {
        let keeper = Box::new(FileKeys::new(data.join("keys/token")));
        Self::open_with(store, data, options, project_uses, keeper)
    }

    /// Likewise, with the keys that sign tokens kept elsewhere.
    pub(crate) fn open_with(
        store: Store,
        data: &Path,
        options: Options,
        project_uses: Vec<ProjectUse>,
        keeper: Box<dyn KeepKeys>,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            throttle: Throttle::new(store.clone(), options.processes),
            store,
            passwords: Passwords::new(options.cost)?,
            vault: Vault::new(KeyRing::open(&data.join("keys/vault"))?),
            options,
            project_uses,
            token_keys: TokenKeys::open(keeper, options.token_life)?,
            remembered: RwLock::default(),
        }))
    }

    /// Whose token this is, and what it gives now.
    pub fn validate(&self, token: &str) -> Result<Arc<Identity>> {
        // Read before anything else, so that what is looked up is at least as new as the entry says.
        let (generation, keys) = (self.generation(), self.token_keys.generation());
        let known = self.remembered.read().unwrap_or_else(PoisonError::into_inner).get(token).cloned();
        let now = Timestamp::now();
        if let Some(known) = &known
            && (known.generation, known.keys) == (generation, keys)
            && now < known.identity.expires_at
        {
            return Ok(Arc::clone(&known.identity));
        }
        let before = known.as_ref().map(|known| &known.identity);
        let claims = match &known {
            Some(known) if known.keys == keys => Arc::clone(&known.claims),
            _ => Arc::new(token::verify(&self.token_keys.now(), token).inspect_err(|_| self.forget(token))?),
        };
        if now >= claims.expires_at || self.store.get::<Revocation>(claims.id).is_some() {
            self.forget(token);
            return Err(invalid_token());
        }
        let identity = match self.resolve(&claims, now) {
            Ok(identity) => identity,
            Err(error) => {
                self.forget(token);
                return Err(error);
            }
        };
        // Keeping the same allocation when nothing changed saves the copies of whoever holds on to it.
        let identity = match before {
            Some(before) if **before == identity => Arc::clone(before),
            _ => Arc::new(identity),
        };
        let mut remembered = self.remembered.write().unwrap_or_else(PoisonError::into_inner);
        if remembered.len() >= MAX_REMEMBERED {
            remembered.clear();
        }
        remembered.insert(token.into(), Remembered { claims, identity: Arc::clone(&identity), generation, keys });
        Ok(identity)
    }

    /// Grows with every change of anything that a token's worth rests on.
    fn generation(&self) -> u64 {
        let store = &self.store;
        store.generation::<Domain>()
            + store.generation::<Project>()
            + store.generation::<User>()
            + store.generation::<Membership>()
            + store.generation::<Role>()
            + store.generation::<Assignment>()
            + store.generation::<ApplicationCredential>()
            + store.generation::<Revocation>()
    }

    /// Deletes failures that no longer count and revocations of tokens that have ended anyway; to be called now and
    /// then. Returns how many went.
    pub async fn sweep(&self) -> Result<usize> {
        let now = Timestamp::now();
        let mut gone = self.throttle.sweep().await?;
        let mut query = Query::all().limit(200);
        loop {
            let page = self.store.list::<Revocation>(&query);
            let ended: Vec<_> = page.items.iter().filter(|one| one.body.expires_at <= now).collect();
            if !ended.is_empty() {
                let author = Author::new("cloud").operation("identity.sweep");
                let transaction = ended.iter().fold(Transaction::new(author), |all, one| all.delete(one));
                self.store.commit(transaction).await?;
                gone += ended.len();
            }
            match page.items.last() {
                Some(last) if page.next.is_some() => query = query.after(last.meta.id),
                _ => return Ok(gone),
            }
        }
    }

    /// Puts a fresh key in force when the one that signs tokens is old, and forgets those that nobody needs; to be called
    /// now and then.
    pub async fn tend_keys(&self) -> Result<()> {
        self.token_keys.tend(self.options.rotate_keys_after).await
    }

    fn forget(&self, token: &str) {
        self.remembered.write().unwrap_or_else(PoisonError::into_inner).remove(token);
    }

    /// Signs claims.
    pub(super) fn sign(&self, claims: &Claims) -> Result<Secret> {
        token::issue(&self.token_keys.now(), claims).parse()
    }

    /// What a token says, whatever has happened since.
    pub(super) fn claims(&self, token: &Secret) -> Result<Claims> {
        token::verify(&self.token_keys.now(), token.reveal())
    }

    /// What claims give now; an error if their ground is gone.
    pub(super) fn resolve(&self, claims: &Claims, now: Timestamp) -> Result<Identity> {
        let user = self.active_user(claims).ok_or_else(invalid_token)?;
        let (scope, target) = self.active_scope(claims.scope).ok_or_else(invalid_token)?;
        let mut expires_at = claims.expires_at;
        let mut restricted = false;
        let held = target.map(|target| roles::on(&self.store, claims.user, target));
        let mut held = held.map(|held| roles::expand(&self.store, held));
        if let Some(id) = claims.application_credential {
            let credential = self.store.get::<ApplicationCredential>(id).ok_or_else(invalid_token)?;
            let end = credential.body.expires_at;
            let project = credential.meta.project.map(TokenScope::Project);
            if credential.body.user != claims.user || end.is_some_and(|end| end <= now) || project != Some(claims.scope)
            {
                return Err(invalid_token());
            }
            let given: BTreeSet<RoleId> = credential.body.roles.iter().copied().collect();
            if !held.is_some_and(|held| given.is_subset(&held)) {
                return Err(invalid_token());
            }
            held = Some(roles::expand(&self.store, given));
            restricted = !credential.body.unrestricted;
            expires_at = end.map_or(expires_at, |end| end.min(expires_at));
        }
        // A token for something on which one has no role (any more) is worth nothing.
        if held.as_ref().is_some_and(BTreeSet::is_empty) {
            return Err(invalid_token());
        }
        Ok(Identity {
            user: claims.user,
            user_name: name_of(&user)?,
            user_domain: user.body.domain,
            scope,
            roles: held.map(|held| roles::names(&self.store, &held)).unwrap_or_default(),
            issued_at: claims.issued_at,
            expires_at,
            login: Login {
                token: Some(claims.id),
                parent: claims.parent,
                methods: claims.methods.names().map(str::to_owned).collect(),
                application_credential: claims.application_credential,
                restricted,
            },
        })
    }

    fn active_user(&self, claims: &Claims) -> Option<Arc<Record<User>>> {
        let user = self.store.get::<User>(claims.user)?;
        let usable = user.body.enabled
            && user.body.epoch == claims.epoch
            && self.store.get::<Domain>(user.body.domain)?.body.enabled;
        usable.then_some(user)
    }

    /// The scope with names, if it can be used.
    fn active_scope(&self, scope: TokenScope) -> Option<(Scope, Option<Target>)> {
        Some(match scope {
            TokenScope::Unscoped => (Scope::Unscoped, None),
            TokenScope::System => (Scope::System, Some(Target::System)),
            TokenScope::Domain(id) => {
                let domain = self.store.get::<Domain>(id).filter(|domain| domain.body.enabled)?;
                (Scope::Domain { id, name: domain.meta.name.clone()? }, Some(Target::Domain(id)))
            }
            TokenScope::Project(id) => {
                let project = self.store.get::<Project>(id).filter(|project| project.body.enabled)?;
                let domain = self.store.get::<Domain>(project.body.domain).filter(|domain| domain.body.enabled)?;
                let scope = Scope::Project { id, name: project.meta.name.clone()?, domain: domain.meta.id };
                (scope, Some(Target::Project(id)))
            }
        })
    }

    /// An access key's secret, and the identity it signs for: for front ends that check signatures.
    pub fn access_key(&self, id: AccessKeyId) -> Result<(Secret, Arc<Identity>)> {
        let key = self.store.get::<AccessKey>(id).ok_or_else(invalid_token)?;
        let sealed = self.store.get::<AccessKeySecret>(id).ok_or_else(invalid_token)?;
        let user = self.store.get::<User>(key.body.user).ok_or_else(invalid_token)?;
        let project = key.meta.project.ok_or_else(invalid_token)?;
        let now = Timestamp::now();
        let mut claims = self.new_claims(&user, TokenScope::Project(project), token::Methods::ACCESS_KEY);
        claims.application_credential = key.body.application_credential;
        let identity = self.resolve(&claims, now)?;
        Ok((self.vault.open(&id.to_string(), &sealed.body.sealed)?, Arc::new(identity)))
    }

    /// What a user is now on a project: for what the cloud does in the user's name at a later time.
    pub fn on_behalf_of(&self, user: UserId, project: ProjectId) -> Result<Arc<Identity>> {
        let user = self.store.get::<User>(user).ok_or_else(invalid_token)?;
        let claims = self.new_claims(&user, TokenScope::Project(project), token::Methods::ACCESS_KEY);
        Ok(Arc::new(self.resolve(&claims, Timestamp::now())?))
    }

    /// A ticket by which whoever holds it does one thing as this identity, as long as the identity's login lasts.
    pub(crate) fn delegate<const N: usize>(
        &self,
        identity: &Identity,
        purpose: &str,
        expires_at: Timestamp,
        about: [u8; N],
    ) -> Result<String> {
        let user = self.store.get::<User>(identity.user).ok_or_else(invalid_token)?;
        let scope = match &identity.scope {
            Scope::Unscoped => TokenScope::Unscoped,
            Scope::Project { id, .. } => TokenScope::Project(*id),
            Scope::Domain { id, .. } => TokenScope::Domain(*id),
            Scope::System => TokenScope::System,
        };
        let fresh = self.new_claims(&user, scope, token::Methods::TOKEN);
        let claims = Claims {
            // Revoking the login revokes the ticket.
            id: identity.login.token.unwrap_or(fresh.id),
            parent: identity.login.parent,
            application_credential: identity.login.application_credential,
            expires_at,
            ..fresh
        };
        Ok(token::issue_ticket(&self.token_keys.now(), purpose, &claims, about))
    }

    /// What a ticket says. Whether it still stands, [`Self::still`] says.
    pub(crate) fn delegated<const N: usize>(&self, purpose: &str, ticket: &str) -> Result<(Delegated, [u8; N])> {
        let (claims, about) = token::verify_ticket(&self.token_keys.now(), purpose, ticket)?;
        Ok((Delegated(claims), about))
    }

    /// What the holder of a ticket is now, whether or not the time to begin with it is over.
    pub(crate) fn still(&self, delegated: &Delegated) -> Result<Identity> {
        if self.store.get::<Revocation>(delegated.0.id).is_some() {
            return Err(invalid_token());
        }
        self.resolve(&delegated.0, Timestamp::now())
    }

    /// Claims that begin now.
    pub(super) fn new_claims(&self, user: &Record<User>, scope: TokenScope, methods: token::Methods) -> Claims {
        let now = Timestamp::now();
        Claims {
            id: nephos_types::RevocationId::new(),
            parent: None,
            user: user.meta.id,
            epoch: user.body.epoch,
            issued_at: now,
            expires_at: now.plus(self.options.token_life),
            methods,
            application_credential: None,
            scope,
        }
    }
}

impl Identify for Authority {
    fn identify<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<Arc<Identity>>> {
        Box::pin(async move {
            let Credentials::Token(token) = credentials;
            let identity = self.validate(token);
            if identity.is_ok() || !self.token_keys.is_of_a_newer_key(token) {
                return identity;
            }
            // Another process may sign with it already. As long as that cannot be found out nobody is logged out.
            match tokio::time::timeout(KEY_LIMIT, self.store.catch_up()).await {
                Ok(Ok(())) => self.validate(token),
                _ => Err(Error::new(ErrorKind::Unavailable, "token_undecided", "The token cannot be checked now")
                    .detail("it names a key that this process has not seen, and the database does not answer")
                    .next("try again in a few seconds", None)),
            }
        })
    }
}
