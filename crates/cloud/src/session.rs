//! One call as a handler sees it: who calls, by which right, what that lets them see, and the store.

use std::sync::Arc;

use nephos_auth::{Allowed, not_logged_in};
use nephos_ops::{Context, Identity, Role, Scope};
use nephos_store::{Author, CommitError, Committed, Kind, Store, Transaction};
use nephos_types::{DomainId, Error, ErrorKind, ProjectId, Result, WorkflowId};

use crate::idempotency::{Made, Repeatable};

/// How often a decision is made anew when others change what it rests on.
const MAX_DECISIONS: usize = 32;

/// What a caller may see of resources that belong to projects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Nothing that belongs to a project.
    Nothing,
    /// One project's.
    Project(ProjectId),
    /// Those of one domain's projects.
    Domain(DomainId),
    /// Everything.
    Everything,
}

/// One call.
#[derive(Clone)]
pub struct Session {
    context: Context,
    store: Store,
    operation: &'static str,
    allowed: Allowed,
    repeatable: Option<Arc<Repeatable>>,
}

impl Session {
    pub(crate) fn new(context: Context, store: Store, operation: &'static str, allowed: Allowed) -> Self {
        Self { context, store, operation, allowed, repeatable: None }
    }

    /// The same session, remembering what it makes under the caller's idempotency key.
    pub(crate) fn repeatable(mut self, fingerprint: [u8; 32]) -> Result<Self> {
        if let (Some(key), Some(identity)) = (&self.context.idempotency_key, &self.context.caller.identity) {
            self.repeatable = Some(Arc::new(Repeatable::new(identity.user, key, fingerprint)?));
        }
        Ok(self)
    }

    pub(crate) fn repeats(&self) -> Option<&Arc<Repeatable>> {
        self.repeatable.as_ref()
    }

    /// The request: its id, the caller's address, the uploaded body, and the handle to call other operations with.
    #[must_use]
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// By which right the call was allowed.
    #[must_use]
    pub fn allowed(&self) -> Allowed {
        self.allowed
    }

    /// Who calls; an error if nobody logged in, which only operations for anyone meet.
    pub fn identity(&self) -> Result<&Arc<Identity>> {
        self.context.caller.identity.as_ref().ok_or_else(|| not_logged_in(self.operation))
    }

    /// Whether the caller is the cloud's administrator.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.context.caller.identity.as_ref().is_some_and(|identity| identity.has(Role::Admin))
    }

    /// The project that the caller works in: what new resources belong to.
    pub fn project(&self) -> Result<ProjectId> {
        self.identity()?.project().ok_or_else(|| {
            Error::invalid("no_project", "This token is not for a project")
                .detail(format!("{} works inside a project, and the token's scope is another", self.operation))
                .next("log in to a project", Some("nephos token create --project NAME".to_owned()))
        })
    }

    /// What the caller may see: the token's project or domain; with the system's scope or the role `admin`, all.
    #[must_use]
    pub fn visible(&self) -> Visible {
        let Some(identity) = &self.context.caller.identity else { return Visible::Nothing };
        match &identity.scope {
            _ if identity.has(Role::Admin) => Visible::Everything,
            Scope::System => Visible::Everything,
            Scope::Project { id, .. } => Visible::Project(*id),
            Scope::Domain { id, .. } => Visible::Domain(*id),
            Scope::Unscoped => Visible::Nothing,
        }
    }

    /// Which projects a list shows: the token's own, unless the caller asked for `all` of what may be seen.
    ///
    /// A token without a project lists all that may be seen anyway.
    #[must_use]
    pub fn listed(&self, all: bool) -> Visible {
        match self.context.caller.identity.as_ref().and_then(|identity| identity.project()) {
            Some(project) if !all => Visible::Project(project),
            _ => self.visible(),
        }
    }

    /// Who is recorded as the author of changes.
    #[must_use]
    pub fn author(&self) -> Author {
        let caller = &self.context.caller;
        let actor = caller.identity.as_ref().map_or_else(|| "anyone".to_owned(), |identity| identity.user.to_string());
        Author::new(actor)
            .source(format_args!("{} {}", caller.address, caller.front_end))
            .operation(self.operation)
            .request(self.context.request)
    }

    /// An empty transaction in the caller's name.
    #[must_use]
    pub fn transaction(&self) -> Transaction {
        Transaction::new(self.author())
    }

    /// Commits. A conflict is an ordinary outcome: see [`Session::decide`].
    pub async fn commit(&self, transaction: Transaction) -> Result<Committed, CommitError> {
        self.store.commit(transaction).await
    }

    /// Commits a creation, and with it what the caller's idempotency key stands for.
    pub async fn commit_creation<K: Kind>(
        &self,
        transaction: Transaction,
        id: K::Id,
        workflow: Option<WorkflowId>,
    ) -> Result<Committed, CommitError> {
        self.store.commit(self.remember::<K>(transaction, id, workflow)).await
    }

    /// Adds what the caller's idempotency key stands for to the transaction that makes it.
    #[must_use]
    pub fn remember<K: Kind>(&self, transaction: Transaction, id: K::Id, workflow: Option<WorkflowId>) -> Transaction {
        match &self.repeatable {
            Some(repeatable) => {
                let made = Made { kind: K::NAME.to_owned(), id: id.to_string(), workflow };
                repeatable.remember(&self.store, transaction, made)
            }
            None => transaction,
        }
    }

    /// Decides and commits, and decides again when what the decision rested on changed meanwhile.
    ///
    /// `decide` reads the store, adds its writes to the transaction, and returns what the handler needs afterwards.
    pub async fn decide<T>(&self, decide: impl FnMut(Transaction) -> Result<(Transaction, T)>) -> Result<T> {
        self.decide_or(decide, refusal).await
    }

    /// Like [`Session::decide`], where it is known what a refused commit means.
    pub async fn decide_or<T>(
        &self,
        decide: impl FnMut(Transaction) -> Result<(Transaction, T)>,
        explain: impl FnOnce(CommitError) -> Error,
    ) -> Result<T> {
        self.decide_again(decide, |_| false, explain).await
    }

    /// Likewise, where it is decided again after some refusals, too: because the decision chose what somebody else took at
    /// the same moment.
    pub async fn decide_again<T>(
        &self,
        mut decide: impl FnMut(Transaction) -> Result<(Transaction, T)>,
        again: impl Fn(&CommitError) -> bool,
        explain: impl FnOnce(CommitError) -> Error,
    ) -> Result<T> {
        for _ in 0..MAX_DECISIONS {
            let (transaction, value) = decide(self.transaction())?;
            match self.store.commit(transaction).await {
                Ok(_) => return Ok(value),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) if again(&error) => {}
                Err(error) => return Err(explain(error)),
            }
        }
        Err(Error::new(ErrorKind::Unavailable, "contended", "Too many changes to the same thing at once")
            .detail("others changed it each time this call tried")
            .next("try again", None))
    }
}

/// What a refused commit means to a caller. A name that is taken is the usual case.
pub(crate) fn refusal(error: CommitError) -> Error {
    if let CommitError::Taken { key, .. } = &error
        && let Some(claim) = key.strip_prefix("name/")
        && let [kind, _, name] = claim.splitn(3, '/').collect::<Vec<_>>()[..]
    {
        return Error::conflict("name_taken", format!("There is already a {} named `{name}`", kind.replace('_', " ")))
            .next("choose another name", None);
    }
    error.into()
}
