//! The core that front ends call: finds the handler of an operation, checks the policy, runs it inside a span with the
//! request's id, keeps creating calls repeatable, and turns a handler's panic into an error.
//!
//! Must not know: what any operation does. Families register their handlers in [`Handlers`].

use std::{
    any::{Any, TypeId},
    collections::HashMap,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt;
use nephos_auth::{Allowed, Policy};
use nephos_ops::{Context, Core, Credentials, Effect, Identity, Operation, Spec};
use nephos_store::Store;
use nephos_types::{Error, ErrorKind, Result};
use tracing::Instrument;

use crate::{
    idempotency::{self, Made},
    session::Session,
};

/// A future as it crosses the crate's border.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Says whose credentials these are. Implemented by the identity family.
pub trait Identify: Send + Sync + 'static {
    /// Checks credentials; the error is of kind `Unauthenticated` when they are not good.
    fn identify<'a>(&'a self, credentials: &'a Credentials) -> BoxFuture<'a, Result<Arc<Identity>>>;
}

type Run = Box<dyn Fn(Session, Box<dyn Any + Send>) -> BoxFuture<'static, Result<Box<dyn Any + Send>>> + Send + Sync>;
type Recall = Box<dyn Fn(Session, Made) -> BoxFuture<'static, Result<Box<dyn Any + Send>>> + Send + Sync>;
type Fingerprint = fn(&(dyn Any + Send)) -> Result<[u8; 32]>;

struct Handler {
    spec: Spec,
    run: Run,
    creation: Option<Creation>,
}

/// What makes a creating operation repeatable with an idempotency key.
struct Creation {
    recall: Recall,
    fingerprint: Fingerprint,
}

/// The handlers of all families, by operation.
#[derive(Default)]
pub struct Handlers {
    by_type: HashMap<TypeId, Handler>,
}

impl Handlers {
    /// No handlers yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the handler of operation `O`, which the handler's signature names:
    /// `async fn(Arc<State>, Session, O) -> Result<O::Output>`.
    pub fn handle<O, S, F, R>(&mut self, state: &Arc<S>, handler: F)
    where
        O: Operation,
        S: Send + Sync + 'static,
        F: Fn(Arc<S>, Session, O) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O::Output>> + Send + 'static,
    {
        self.insert::<O>(erase(state, handler), None);
    }

    /// Registers the handler of a creating operation, and how to answer when a call is repeated with the same
    /// idempotency key. The handler must commit with [`Session::commit_creation`].
    pub fn handle_creation<O, S, F, R, G, Q>(&mut self, state: &Arc<S>, handler: F, recall: G)
    where
        O: Operation,
        S: Send + Sync + 'static,
        F: Fn(Arc<S>, Session, O) -> R + Send + Sync + 'static,
        R: Future<Output = Result<O::Output>> + Send + 'static,
        G: Fn(Arc<S>, Session, Made) -> Q + Send + Sync + 'static,
        Q: Future<Output = Result<O::Output>> + Send + 'static,
    {
        let recalling = Arc::clone(state);
        let recall: Recall = Box::new(move |session, made| {
            let answer = recall(Arc::clone(&recalling), session, made);
            Box::pin(async move { Ok(Box::new(answer.await?) as Box<dyn Any + Send>) })
        });
        self.insert::<O>(erase(state, handler), Some(Creation { recall, fingerprint: fingerprint::<O> }));
    }

    fn insert<O: Operation>(&mut self, run: Run, creation: Option<Creation>) {
        let replaced = self.by_type.insert(TypeId::of::<O>(), Handler { spec: O::SPEC, run, creation });
        debug_assert!(replaced.is_none(), "{} has two handlers", O::SPEC.name);
    }

    /// Names of the operations in the table that nobody handles.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        nephos_ops::table()
            .iter()
            .filter(|entry| !self.by_type.contains_key(&(entry.type_id)()))
            .map(|entry| entry.spec.name)
            .collect()
    }
}

fn erase<O, S, F, R>(state: &Arc<S>, handler: F) -> Run
where
    O: Operation,
    S: Send + Sync + 'static,
    F: Fn(Arc<S>, Session, O) -> R + Send + Sync + 'static,
    R: Future<Output = Result<O::Output>> + Send + 'static,
{
    let state = Arc::clone(state);
    Box::new(move |session, input| match input.downcast::<O>() {
        Ok(input) => {
            let answer = handler(Arc::clone(&state), session, *input);
            Box::pin(async move { Ok(Box::new(answer.await?) as Box<dyn Any + Send>) })
        }
        Err(_) => Box::pin(async { Err(wrong_type::<O>()) }),
    })
}

fn fingerprint<O: Operation>(input: &(dyn Any + Send)) -> Result<[u8; 32]> {
    idempotency::fingerprint(O::SPEC.name, input.downcast_ref::<O>().ok_or_else(wrong_type::<O>)?)
}

fn wrong_type<O: Operation>() -> Error {
    Error::bug(format!("{} was called with another operation's input", O::SPEC.name))
}

/// How long a call waits to see what other processes did.
const CATCH_UP: Duration = Duration::from_secs(2);

/// The core: handlers, policy, and who can say whose credentials are whose.
pub struct CloudCore {
    handlers: Handlers,
    policy: Policy,
    identify: Arc<dyn Identify>,
    store: Store,
}

impl CloudCore {
    /// A core on these parts.
    #[must_use]
    pub fn new(store: Store, identify: Arc<dyn Identify>, policy: Policy, handlers: Handlers) -> Self {
        Self { handlers, policy, identify, store }
    }

    /// Sees what other processes have acknowledged. While the database is away, what is in memory has to do.
    async fn catch_up(&self) {
        let caught_up = tokio::time::timeout(CATCH_UP, self.store.catch_up()).await;
        if !matches!(caught_up, Ok(Ok(()))) {
            tracing::debug!("answering from what was known before the database went away");
        }
    }

    async fn dispatch(
        &self,
        operation: TypeId,
        context: Context,
        input: Box<dyn Any + Send>,
    ) -> Result<Box<dyn Any + Send>> {
        let handler = self.handlers.by_type.get(&operation).ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "operation_not_offered", "This operation is not offered here")
        })?;
        let spec = &handler.spec;
        if context.caller.identity.is_none() {
            self.catch_up().await;
        }
        let allowed = self.policy.allows(spec, context.caller.identity.as_deref())?;
        match (&handler.creation, spec.effect, context.idempotency_key.is_some()) {
            (Some(creation), Effect::Creates, true) => self.run_once(handler, creation, context, allowed, input).await,
            _ => (handler.run)(self.session(context, handler, allowed), input).await,
        }
    }

    fn session(&self, context: Context, handler: &Handler, allowed: Allowed) -> Session {
        Session::new(context, self.store.clone(), handler.spec.name, allowed)
    }

    /// Runs a creating call that carries an idempotency key: at most once per key and input.
    async fn run_once(
        &self,
        handler: &Handler,
        creation: &Creation,
        context: Context,
        allowed: Allowed,
        input: Box<dyn Any + Send>,
    ) -> Result<Box<dyn Any + Send>> {
        let session = self.session(context, handler, allowed);
        let session = session.repeatable((creation.fingerprint)(&*input)?)?;
        let Some(repeatable) = session.repeats().cloned() else { return (handler.run)(session, input).await };
        if let Some(made) = idempotency::made(&self.store, &repeatable)? {
            return (creation.recall)(session, made).await;
        }
        let again = session.clone();
        match (handler.run)(session, input).await {
            Ok(answer) => Ok(answer),
            // Two calls with one key at once: whoever lost answers with what the winner made.
            Err(error) => match idempotency::made(&self.store, &repeatable)? {
                Some(made) => (creation.recall)(again, made).await,
                None => Err(error),
            },
        }
    }
}

impl Core for CloudCore {
    fn identify<'a>(&'a self, credentials: Credentials) -> BoxFuture<'a, Result<Arc<Identity>>> {
        Box::pin(async move {
            // Whoever was told something by another process finds it here, so callers need not stay with one.
            self.catch_up().await;
            self.identify.identify(&credentials).await
        })
    }

    fn call(
        &self,
        operation: TypeId,
        context: Context,
        input: Box<dyn Any + Send>,
    ) -> BoxFuture<'_, Result<Box<dyn Any + Send>>> {
        let name = self.handlers.by_type.get(&operation).map_or("unknown", |handler| handler.spec.name);
        let span = tracing::info_span!(
            "call",
            operation = name,
            request = %context.request,
            user = context.caller.identity.as_ref().map(|identity| tracing::field::display(identity.user)),
            via = context.caller.front_end,
        );
        let run = async move {
            let outcome = AssertUnwindSafe(self.dispatch(operation, context, input)).catch_unwind().await;
            let result = outcome.unwrap_or_else(|panic| Err(panicked(name, &*panic)));
            match &result {
                Ok(_) => tracing::debug!("done"),
                Err(error) if error.kind == ErrorKind::Internal => {
                    tracing::error!(code = %error.code, error = %error.chain(), "failed");
                }
                Err(error) => tracing::debug!(code = %error.code, error = %error, "refused"),
            }
            result
        };
        Box::pin(run.instrument(span))
    }
}

fn panicked(operation: &str, panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    tracing::error!(operation, message, "a handler panicked");
    Error::bug(format!("{operation} failed by a defect of the server"))
}
