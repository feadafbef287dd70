//! Definitions: named steps in sequence or in parallel groups, each with its undo, retries and limits.

use std::{any::Any, fmt, future::Future, marker::PhantomData, ops::Range, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use nephos_types::{Error, Result, WorkflowId};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    context::{Call, ChildStart, StepContext},
    outcome::{Done, Failure, Outcome},
    retry::Retry,
    run::{MAX_NAME, MAX_OUTPUT, MAX_STEPS, Run, RunState, settled_key},
};

/// A step function with its types erased: the answer's value is JSON.
pub type StepFunction<E> = Arc<dyn Fn(AnyCall) -> BoxFuture<'static, Result<Done<Value, E>, Failure>> + Send + Sync>;

/// A call of any step of any definition; decorators pass it on.
#[derive(Clone)]
pub struct AnyCall(pub(crate) Call);

impl AnyCall {
    /// The run as it was when the call began.
    #[must_use]
    pub fn run(&self) -> &Run {
        &self.0.run
    }

    /// The step's number.
    #[must_use]
    pub fn step(&self) -> usize {
        self.0.step
    }
}

/// The place of a step's output, by which later steps read it.
pub struct Slot<T> {
    step: u16,
    value: PhantomData<fn() -> T>,
}

impl<T> Slot<T> {
    /// The step's number.
    #[must_use]
    pub fn step(&self) -> usize {
        usize::from(self.step)
    }
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Slot<T> {}

impl<T> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slot({})", self.step)
    }
}

pub(crate) struct Step<E> {
    pub(crate) name: Arc<str>,
    pub(crate) run: StepFunction<E>,
    pub(crate) undo: Option<StepFunction<E>>,
    pub(crate) retry: Retry,
    pub(crate) undo_retry: Retry,
    /// For the step as a whole, waits and retries included.
    pub(crate) limit: Option<Duration>,
    /// For one call.
    pub(crate) call_limit: Duration,
    no_return: bool,
}

/// How the steps hang together; all that the state machine needs of a definition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Steps of one stage run at once, stages one after the other.
    pub(crate) stages: Vec<Range<usize>>,
    /// Which steps can be undone.
    pub(crate) undo: Vec<bool>,
    /// The first stage with a step after which there is only forward.
    pub(crate) no_return: Option<usize>,
}

type ParseInput = Arc<dyn Fn(&Value) -> Result<Arc<dyn Any + Send + Sync>> + Send + Sync>;

/// A workflow definition: what [`crate::Engine::register`] takes. `E` is what the journal commits with a step.
pub struct Definition<E> {
    pub(crate) name: Arc<str>,
    pub(crate) version: u32,
    pub(crate) steps: Vec<Step<E>>,
    pub(crate) shape: Shape,
    pub(crate) limit: Option<Duration>,
    pub(crate) parse: ParseInput,
}

impl<E: Send + 'static> Definition<E> {
    /// Starts a definition whose runs take an `I`.
    pub fn builder<I: DeserializeOwned + Send + Sync + 'static>(name: &str) -> Builder<I, E> {
        Builder { name: name.into(), version: 1, steps: vec![], stages: vec![], limit: None, input: PhantomData }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The names of its steps, in order.
    pub fn steps(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().map(|step| &*step.name)
    }

    /// Whether step `step` can be undone.
    #[must_use]
    pub fn has_undo(&self, step: usize) -> bool {
        self.shape.undo.get(step).copied().unwrap_or(false)
    }

    /// Replaces each step and undo function by what `decorate` makes of it: for tracing, and for fault tests.
    #[must_use]
    pub fn decorate(mut self, decorate: impl Fn(usize, Direction, StepFunction<E>) -> StepFunction<E>) -> Self {
        for (number, step) in self.steps.iter_mut().enumerate() {
            step.run = decorate(number, Direction::Forward, Arc::clone(&step.run));
            step.undo = step.undo.take().map(|undo| decorate(number, Direction::Undo, undo));
        }
        self
    }

    /// Whether a definition is usable at all; registering asks.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |detail: String| {
            Err(Error::bug(format!("Workflow definition `{}` cannot be registered", self.name)).detail(detail))
        };
        if self.name.is_empty() || self.name.len() > MAX_NAME {
            return wrong(format!("its name must have 1 to {MAX_NAME} bytes"));
        }
        if self.steps.is_empty() || self.steps.len() > MAX_STEPS {
            return wrong(format!("it has {} steps; 1 to {MAX_STEPS} are possible", self.steps.len()));
        }
        for (number, step) in self.steps.iter().enumerate() {
            if step.name.is_empty() || step.name.len() > MAX_NAME {
                return wrong(format!("the name of step {number} must have 1 to {MAX_NAME} bytes"));
            }
            if self.steps.iter().take(number).any(|earlier| earlier.name == step.name) {
                return wrong(format!("two steps are called `{}`", step.name));
            }
        }
        Ok(())
    }

    /// Whether a run recorded by another version can go on with this one.
    pub(crate) fn fits(&self, run: &Run) -> bool {
        *self.name == *run.definition
            && self.steps.len() == run.steps.len()
            && self.steps.iter().zip(&run.steps).all(|(step, record)| step.name == record.name)
    }
}

impl<E> fmt::Debug for Definition<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Definition")
            .field("name", &self.name)
            .field("version", &self.version)
            .field("steps", &self.steps.iter().map(|step| &step.name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Which of a step's two functions is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The step.
    Forward,
    /// Its undo.
    Undo,
}

/// Collects steps. Each becomes a stage of its own; [`parallel`](Self::parallel) puts several into one.
pub struct Builder<I, E> {
    name: Arc<str>,
    version: u32,
    steps: Vec<Step<E>>,
    stages: Vec<Range<usize>>,
    limit: Option<Duration>,
    input: PhantomData<fn() -> I>,
}

impl<I: DeserializeOwned + Send + Sync + 'static, E: Send + 'static> Builder<I, E> {
    /// With this version (1 unless told): raise it when steps change, and keep the old definition registered for as
    /// long as runs of it may be open.
    pub fn version(&mut self, version: u32) -> &mut Self {
        self.version = version;
        self
    }

    /// With a limit for a run as a whole; then it turns back.
    pub fn limit(&mut self, limit: Duration) -> &mut Self {
        self.limit = Some(limit);
        self
    }

    /// A step. It is called until it is done: after a crash, after a failed attempt, each time what it waits for is
    /// signalled. So it looks at the world first.
    pub fn step<T, F, R>(&mut self, name: &str, run: F) -> StepBuilder<'_, I, E, T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepContext<I>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Done<T, E>, Failure>> + Send + 'static,
    {
        let run: StepFunction<E> = Arc::new(move |AnyCall(call)| match call.typed::<I>() {
            Ok(context) => {
                let answer = run(context);
                Box::pin(async move { erase(answer.await?) })
            }
            Err(error) => Box::pin(std::future::ready(Err(error.into()))),
        });
        StepBuilder::new(self, name, run, None)
    }

    /// A step that starts a run of another definition and waits for it. `start` says with what; it is called until
    /// the child exists, so it must not change anything itself.
    ///
    /// The step gives what the child's last step gave, and fails when the child fails. Undoing it cancels an open child
    /// and waits for that; to undo one that succeeded, give an [`undo`](StepBuilder::undo).
    pub fn child<T, F, R>(&mut self, name: &str, definition: &str, start: F) -> StepBuilder<'_, I, E, T>
    where
        T: Serialize + DeserializeOwned + Send + 'static,
        F: Fn(StepContext<I>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<ChildStart, Failure>> + Send + 'static,
    {
        let definition: Arc<str> = definition.into();
        let run: StepFunction<E> = Arc::new(move |AnyCall(call)| {
            let (definition, start) = (Arc::clone(&definition), call.typed::<I>().map(&start));
            Box::pin(async move {
                let start = start?.await?;
                let child = Arc::clone(&call.link).start_child(call, definition, start).await?;
                child_outcome(&child)
            })
        });
        let undo: StepFunction<E> = Arc::new(|AnyCall(call)| {
            Box::pin(async move {
                match Arc::clone(&call.link).cancel_child(call).await? {
                    Some(child) if !child.state.is_closed() => Ok(wait_for_child(child.id)),
                    _ => Ok(Done::value(Value::Null)),
                }
            })
        });
        StepBuilder::new(self, name, run, Some(undo))
    }

    /// Steps that run at once: those that `add` adds to the builder it is given.
    pub fn parallel<R>(&mut self, add: impl FnOnce(&mut Self) -> R) -> R {
        let (first, stages) = (self.steps.len(), self.stages.len());
        let added = add(self);
        self.stages.truncate(stages);
        if self.steps.len() > first {
            self.stages.push(first..self.steps.len());
        }
        added
    }

    /// The definition.
    #[must_use]
    pub fn build(self) -> Definition<E> {
        let no_return =
            self.stages.iter().position(|stage| self.steps[stage.clone()].iter().any(|step| step.no_return));
        let undo = self.steps.iter().map(|step| step.undo.is_some()).collect();
        Definition {
            name: self.name,
            version: self.version,
            shape: Shape { stages: self.stages, undo, no_return },
            steps: self.steps,
            limit: self.limit,
            parse: Arc::new(|value| {
                let input = I::deserialize(value).map_err(|error| {
                    Error::invalid("invalid_workflow_input", "The workflow's input is not what it expects")
                        .detail(error.to_string())
                })?;
                Ok(Arc::new(input))
            }),
        }
    }
}

/// How often a parent looks at its child even without a signal.
const CHILD_RECHECK: Duration = Duration::from_secs(60);

fn wait_for_child<E>(child: WorkflowId) -> Done<Value, E> {
    Done::wait(settled_key(child), CHILD_RECHECK)
}

fn child_outcome<E>(child: &Run) -> Result<Done<Value, E>, Failure> {
    match child.state {
        RunState::Succeeded => Ok(Done::value(child.output().map_or(Value::Null, |output| Value::clone(output)))),
        RunState::Failed | RunState::Cancelled => {
            let error = child.error.as_deref().cloned().unwrap_or_else(|| {
                Error::conflict("workflow_cancelled", "A workflow that this one waited for was cancelled")
                    .detail(format!("{} ({})", child.id, child.definition))
            });
            Err(Failure::fatal(error))
        }
        _ => Ok(wait_for_child(child.id)),
    }
}

fn erase<T: Serialize, E>(done: Done<T, E>) -> Result<Done<Value, E>, Failure> {
    let outcome = match done.outcome {
        Outcome::Wait { keys, recheck_after } => Outcome::Wait { keys, recheck_after },
        Outcome::Value(value) => {
            let value = serde_json::to_value(value)
                .map_err(|error| Failure::fatal(Error::internal("A step's output cannot be written as JSON", error)))?;
            let size = json_size(&value);
            if size > MAX_OUTPUT {
                let error = Error::bug("A step's output is too large to be recorded")
                    .detail(format!("{size} bytes of JSON; {MAX_OUTPUT} are possible"));
                return Err(Failure::fatal(error));
            }
            Outcome::Value(value)
        }
    };
    Ok(Done { outcome, effects: done.effects })
}

/// Bytes of the value's JSON text, without making it; at most 8 over for each nested value.
pub(crate) fn json_size(value: &Value) -> usize {
    struct Counter(usize);
    impl std::io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    if matches!(value, Value::Null | Value::Bool(_) | Value::Number(_)) {
        return 8;
    }
    let mut counter = Counter(0);
    match serde_json::to_writer(&mut counter, value) {
        Ok(()) => counter.0,
        Err(_) => usize::MAX,
    }
}

/// Settings of one step; [`add`](Self::add) puts it into the definition.
#[must_use = "a step is only part of the definition after `add`"]
pub struct StepBuilder<'a, I, E, T> {
    builder: &'a mut Builder<I, E>,
    step: Step<E>,
    value: PhantomData<fn() -> T>,
}

impl<'a, I, E, T> StepBuilder<'a, I, E, T>
where
    I: DeserializeOwned + Send + Sync + 'static,
    E: Send + 'static,
    T: Serialize + DeserializeOwned + Send + 'static,
{
    fn new(
        builder: &'a mut Builder<I, E>,
        name: &str,
        run: StepFunction<E>,
        undo: Option<StepFunction<E>>,
    ) -> StepBuilder<'a, I, E, T> {
        let step = Step {
            name: name.into(),
            run,
            undo,
            retry: Retry::default(),
            undo_retry: Retry::undo(),
            limit: None,
            call_limit: Duration::from_secs(600),
            no_return: false,
        };
        StepBuilder { builder, step, value: PhantomData }
    }

    /// With a function that undoes it. It gets the step's output, or none if the step may or may not have happened, in
    /// whole or in part: it must find out, and be content when there is nothing to undo. Like the step it is called
    /// until it is done, and may wait.
    pub fn undo<F, R>(mut self, undo: F) -> Self
    where
        F: Fn(StepContext<I>, Option<T>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Done<(), E>, Failure>> + Send + 'static,
    {
        let (undo, before) = (Arc::new(undo), self.step.undo.take());
        self.step.undo = Some(Arc::new(move |call: AnyCall| {
            let (undo, before) = (Arc::clone(&undo), before.as_ref().map(|before| before(call.clone())));
            Box::pin(async move {
                if let Some(before) = before {
                    let done = before.await?;
                    if matches!(done.outcome, Outcome::Wait { .. }) {
                        return Ok(done);
                    }
                }
                let context = call.0.typed::<I>()?;
                let output = match call.0.recorded_output() {
                    Some(output) => Some(T::deserialize(&**output).map_err(|error| {
                        Failure::fatal(Error::internal("The output of the step to undo is unreadable", error))
                    })?),
                    None => None,
                };
                erase(undo(context, output).await?)
            })
        }));
        self
    }

    /// With this retry policy instead of the default one.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.step.retry = retry;
        self
    }

    /// With this retry policy for its undo.
    pub fn undo_retry(mut self, retry: Retry) -> Self {
        self.step.undo_retry = retry;
        self
    }

    /// With a time after which the step fails for good: waits and retries included, counted from its first call.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.step.limit = Some(limit);
        self
    }

    /// With a limit for one call (ten minutes unless told), after which the call is dropped and counts as a failed
    /// attempt. Holds for the undo, too.
    pub fn call_limit(mut self, limit: Duration) -> Self {
        self.step.call_limit = limit;
        self
    }

    /// From the moment this step begins there is only forward: it and what follows is retried without end, time limits
    /// and cancelling do not apply, and what cannot be retried leaves the run stuck.
    pub fn no_return(mut self) -> Self {
        self.step.no_return = true;
        self
    }

    /// Puts the step into the definition.
    pub fn add(self) -> Slot<T> {
        let number = self.builder.steps.len();
        self.builder.steps.push(self.step);
        self.builder.stages.push(number..number + 1);
        Slot { step: u16::try_from(number).unwrap_or(u16::MAX), value: PhantomData }
    }
}
