//! The engine: takes runs up, drives them while they have something to do, and lets them wait at no cost.
//!
//! Invariants: one task at most drives a run; what a step did counts only once it is saved; whoever has lost the run's
//! lease cannot save. Must not know: what steps do, or how runs are stored.

mod afar;
mod cell;
mod drive;
mod link;
mod registry;
mod save;
mod schedules;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use nephos_types::{Error, ErrorKind, Result, WorkflowId};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use self::{cell::Cell, link::unavailable, registry::Registry, save::Saved};
use crate::{
    clock::{Clock, SystemClock},
    definition::{Definition, json_size},
    journal::{Journal, SaveError, Stored},
    observe::{Observer, Point},
    run::{Lease, MAX_INPUT, Run, RunState, StepRecord, StepState},
    transition,
};

pub(crate) use link::derived_id;

/// Who knows which engines on the same journal are at work.
pub trait Holders: Send + Sync + 'static {
    /// Whether the engine of this name may still be at work. A wrong `false` costs work done twice in vain, never a
    /// wrong result: whoever has lost a lease cannot save.
    fn may_live(&self, holder: &str) -> bool;
}

/// How an engine works.
#[derive(Clone)]
pub struct Config {
    /// The engine's name in leases. Unique among the engines on one journal, and for each start of the process.
    pub name: Arc<str>,
    /// Nobody else works on this journal: leases of a former holder are taken over at once, and are not renewed.
    pub exclusive: bool,
    /// How long others leave a run alone after its holder was last heard of.
    pub lease: Duration,
    /// Who knows sooner than by its leases that a holder is gone.
    pub holders: Option<Arc<dyn Holders>>,
    /// How many runs execute at once; others queue.
    pub max_executing: usize,
    /// How long a call may go on after a request to cancel.
    pub cancel_grace: Duration,
    /// How long a call may go on after [`Engine::stop`].
    pub stop_grace: Duration,
    /// How often progress is saved at most. Local watchers see all of it.
    pub progress_every: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: format!("engine-{}", WorkflowId::new()).into(),
            exclusive: true,
            lease: Duration::from_secs(30),
            holders: None,
            max_executing: 256,
            cancel_grace: Duration::from_secs(10),
            stop_grace: Duration::from_secs(7),
            progress_every: Duration::from_secs(1),
        }
    }
}

/// What [`Engine::recover`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Runs that this engine now looks after.
    pub taken: usize,
    /// Runs that others hold.
    pub held: usize,
    /// Runs that are stuck.
    pub stuck: usize,
    /// Runs that no registered definition fits; they stay as they are.
    pub unknown: Vec<WorkflowId>,
}

/// The engine. Clones share it; dropping the last one cuts everything off as a crash would.
pub struct Engine<J: Journal> {
    handle: Arc<Handle<J>>,
}

impl<J: Journal> Clone for Engine<J> {
    fn clone(&self) -> Self {
        Self { handle: Arc::clone(&self.handle) }
    }
}

struct Handle<J: Journal>(Arc<Inner<J>>);

impl<J: Journal> Drop for Handle<J> {
    fn drop(&mut self) {
        self.0.kill.cancel();
    }
}

pub(crate) struct Inner<J: Journal> {
    journal: J,
    config: Config,
    clock: Arc<dyn Clock>,
    definitions: RwLock<HashMap<Arc<str>, Vec<Arc<Definition<J::Effects>>>>>,
    observers: RwLock<Vec<Arc<dyn Observer>>>,
    registry: Mutex<Registry<Cell<J::Effects>>>,
    /// Those who look at runs that other engines hold.
    afar: Mutex<HashMap<WorkflowId, watch::Sender<Arc<Run>>>>,
    timers_changed: Notify,
    schedules_changed: Notify,
    task_ended: Notify,
    /// No new calls; calls under way end soon.
    stop: CancellationToken,
    /// Tasks vanish at once.
    kill: CancellationToken,
}

impl<J: Journal> Engine<J> {
    /// An engine on the machine's clock. Must be called within a Tokio runtime.
    pub fn new(journal: J, config: Config) -> Self {
        Self::with_clock(journal, config, Arc::new(SystemClock))
    }

    /// An engine on this clock. Must be called within a Tokio runtime.
    pub fn with_clock(journal: J, config: Config, clock: Arc<dyn Clock>) -> Self {
        let inner = Arc::new(Inner {
            journal,
            registry: Mutex::new(Registry::new(config.max_executing)),
            config,
            clock,
            definitions: RwLock::default(),
            observers: RwLock::default(),
            afar: Mutex::default(),
            timers_changed: Notify::new(),
            schedules_changed: Notify::new(),
            task_ended: Notify::new(),
            stop: CancellationToken::new(),
            kill: CancellationToken::new(),
        });
        inner.spawn(|inner| async move { inner.keep_time().await });
        if !inner.config.exclusive {
            inner.spawn(|inner| async move { inner.look_for_abandoned().await });
        }
        Self { handle: Arc::new(Handle(inner)) }
    }

    fn inner(&self) -> &Arc<Inner<J>> {
        &self.handle.0
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &J {
        &self.inner().journal
    }

    /// Adds a definition, or a further version of one.
    ///
    /// # Errors
    /// If the definition is wrong in itself, or this version is there already.
    pub fn register(&self, definition: Definition<J::Effects>) -> Result<()> {
        definition.check()?;
        let mut definitions = self.inner().definitions.write().unwrap_or_else(PoisonError::into_inner);
        let versions = definitions.entry(Arc::clone(&definition.name)).or_default();
        if versions.iter().any(|known| known.version == definition.version) {
            return Err(Error::bug(format!(
                "Workflow definition `{}` version {} is registered twice",
                definition.name, definition.version
            )));
        }
        versions.push(Arc::new(definition));
        versions.sort_by_key(|known| known.version);
        Ok(())
    }

    /// Adds somebody who looks on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner().observers.write().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    /// A run to be stored: with the journal's `create`, in the same transaction as whatever needs it; then [`kick`] it.
    /// Subject, project and author are set on the run.
    ///
    /// [`kick`]: Self::kick
    ///
    /// # Errors
    /// If there is no such definition, or its input is not this.
    pub fn prepare(&self, definition: &str, id: WorkflowId, input: &impl Serialize) -> Result<Run> {
        let input = serde_json::to_value(input).map_err(|error| Error::internal("Workflow input unwritable", error))?;
        self.inner().prepare(definition, id, input)
    }

    /// Stores a prepared run and starts it.
    ///
    /// # Errors
    /// If the id exists, the effects are refused, or storage is unavailable.
    pub async fn start(&self, run: Run, effects: J::Effects) -> Result<(), SaveError> {
        let run = Arc::new(run);
        let revision = self.journal().create(Arc::clone(&run), effects).await?;
        self.inner().adopt(Stored { run, revision }).await.map_err(SaveError::Unavailable)?;
        Ok(())
    }

    /// Has a stored run taken up soon, if it is open. Never harmful.
    pub fn kick(&self, id: WorkflowId) {
        let inner = self.inner();
        if inner.registry().get(id).is_some() {
            inner.wake(id, None);
            return;
        }
        inner.spawn(move |inner| async move {
            let adopted = match inner.journal.get(id).await {
                Ok(Some(stored)) => inner.adopt(stored).await,
                Ok(None) => Ok(Adopted::Settled),
                Err(error) => Err(error),
            };
            if let Err(error) = adopted {
                tracing::warn!(workflow = %id, error = %error.chain(), "a workflow could not be taken up");
            }
        });
    }

    /// Wakes whatever waits for this key. Signals carry no data and are not stored.
    pub fn signal(&self, key: &str) {
        self.inner().signal(key);
    }

    /// Asks a run to cancel; once this returns, it will. Nothing happens if it turns back already.
    ///
    /// # Errors
    /// If there is no such run, it has ended, is stuck, or is past its point of no return.
    pub async fn cancel(&self, id: WorkflowId) -> Result<()> {
        self.inner().cancel(id).await
    }

    /// Has a stuck run try again what it is stuck on.
    ///
    /// # Errors
    /// If there is no such run, or it is not stuck.
    pub async fn retry_stuck(&self, id: WorkflowId) -> Result<()> {
        let inner = self.inner();
        let Some(stored) = inner.journal.get(id).await? else { return Err(Error::not_found("workflow", id)) };
        if stored.run.state != RunState::Stuck {
            return Err(Error::conflict("workflow_not_stuck", "The workflow is not stuck")
                .detail(format!("{id} is in state {:?}", stored.run.state).to_lowercase()));
        }
        let mut run = Run::clone(&stored.run);
        let now = inner.clock.now();
        transition::retry_stuck(&mut run, now);
        run.sequence += 1;
        run.updated_at = now;
        run.lease = Some(inner.lease(run.fence() + 1));
        let run = Arc::new(run);
        let saved = inner.journal.save(Arc::clone(&run), stored.revision, J::Effects::default()).await;
        let revision = saved.map_err(|error| {
            // It may have been saved all the same; then somebody has to look after it.
            self.kick(id);
            unavailable(&error)
        })?;
        inner.adopt(Stored { run, revision }).await?;
        Ok(())
    }

    /// Shows a run now and whenever it changes. The channel closes when the run has settled. Changes of runs that
    /// another engine holds are seen if [`Engine::noticed`] is told of them.
    ///
    /// # Errors
    /// If there is no such run, or storage is unavailable.
    pub async fn watch(&self, id: WorkflowId) -> Result<watch::Receiver<Arc<Run>>> {
        let inner = self.inner();
        if let Some(cell) = inner.registry().get(id) {
            return Ok(cell.watchers.subscribe());
        }
        let Some(stored) = inner.journal.get(id).await? else { return Err(Error::not_found("workflow", id)) };
        if !stored.run.state.is_settled() {
            let adopted = inner.adopt(stored.clone()).await?;
            if let Some(cell) = inner.registry().get(id) {
                return Ok(cell.watchers.subscribe());
            }
            if adopted == Adopted::Held {
                return inner.watch_from_afar(stored.run).await;
            }
        }
        Ok(watch::Sender::new(stored.run).subscribe())
    }

    /// Waits until a run closes or gets stuck.
    ///
    /// # Errors
    /// If there is no such run, storage is unavailable, or the engine stopped first.
    pub async fn wait(&self, id: WorkflowId) -> Result<Arc<Run>> {
        let mut watch = self.watch(id).await?;
        loop {
            let run = Arc::clone(&watch.borrow_and_update());
            if run.state.is_settled() {
                return Ok(run);
            }
            let changed = tokio::select! {
                changed = watch.changed() => changed.is_ok(),
                () = self.inner().stop.cancelled() => false,
            };
            if !changed {
                let stored = self.journal().get(id).await?;
                return match stored {
                    Some(stored) if stored.run.state.is_settled() => Ok(stored.run),
                    _ => Err(Error::new(ErrorKind::Unavailable, "workflow_parked", "The workflow goes on elsewhere")
                        .detail(format!("{id} is not driven by this process any more"))
                        .next("ask again", Some(format!("nephos workflow show {id}")))),
                };
            }
        }
    }

    /// Takes up open runs that nobody holds; at start, after registering all definitions.
    ///
    /// # Errors
    /// If storage is unavailable.
    pub async fn recover(&self) -> Result<Recovered> {
        self.inner().recover().await
    }

    /// Lets calls under way end, saves what came of them, and leaves everything to be resumed later. Takes at most ten
    /// seconds with the default configuration.
    pub async fn stop(&self) {
        let inner = self.inner();
        inner.stop.cancel();
        inner.registry().close();
        let patience = inner.config.stop_grace + Duration::from_secs(2);
        let all_ended = async {
            loop {
                let ended = inner.task_ended.notified();
                if inner.registry().executing() == 0 {
                    return;
                }
                ended.await;
            }
        };
        if tokio::time::timeout(patience, all_ended).await.is_err() {
            tracing::warn!("some workflows could not be parked in time; they are resumed at the next start");
        }
        inner.kill.cancel();
    }

    /// Cuts everything off at once, as a crash of the process would: for fault tests.
    pub fn crash(&self) {
        self.inner().stop.cancel();
        self.inner().registry().close();
        self.inner().kill.cancel();
    }

    /// How many runs this engine looks after, and how many of them execute.
    #[must_use]
    pub fn load(&self) -> (usize, usize) {
        let registry = self.inner().registry();
        (registry.len(), registry.executing())
    }

    /// Whether nothing executes or is about to: all runs wait.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.inner().registry().is_idle()
    }

    /// When the earliest waiting step is called again.
    #[must_use]
    pub fn next_timer(&self) -> Option<nephos_types::Timestamp> {
        self.inner().registry().next_timer()
    }
}

/// What became of taking a run up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Adopted {
    Taken,
    Held,
    Settled,
    Unknown,
}

impl<J: Journal> Inner<J> {
    fn registry(&self) -> MutexGuard<'_, Registry<Cell<J::Effects>>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a lease keeps others away from its run.
    fn holds(&self, lease: &Lease, now: nephos_types::Timestamp) -> bool {
        lease.until > now && self.config.holders.as_ref().is_none_or(|holders| holders.may_live(&lease.holder))
    }

    fn lease(&self, fence: u64) -> Lease {
        let until = self.clock.now().plus(self.config.lease);
        Lease { holder: Arc::clone(&self.config.name), until, fence }
    }

    /// Runs a task that vanishes when the engine is dropped.
    fn spawn<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F) {
        let (kill, task) = (self.kill.clone(), task(Arc::clone(self)));
        tokio::spawn(async move { kill.run_until_cancelled(task).await });
    }

    pub(crate) fn prepare(&self, definition: &str, id: WorkflowId, input: Value) -> Result<Run> {
        let definition = {
            let definitions = self.definitions.read().unwrap_or_else(PoisonError::into_inner);
            definitions.get(definition).and_then(|versions| versions.last()).map(Arc::clone)
        }
        .ok_or_else(|| Error::not_found("workflow definition", definition))?;
        let size = json_size(&input);
        if size > MAX_INPUT {
            return Err(Error::new(
                ErrorKind::TooLarge,
                "workflow_input_too_large",
                "The workflow's input is too large",
            )
            .detail(format!("{size} bytes of JSON; {MAX_INPUT} are possible")));
        }
        (definition.parse)(&input)?;
        let now = self.clock.now();
        let mut run = Run {
            id,
            definition: Arc::clone(&definition.name),
            definition_version: definition.version,
            input: Arc::new(input),
            subject: "".into(),
            project: None,
            author: Arc::new(Value::Null),
            state: RunState::Running,
            ending: None,
            cancel_requested: false,
            error: None,
            steps: definition.steps.iter().map(|step| StepRecord::pending(Arc::clone(&step.name))).collect(),
            lease: Some(self.lease(1)),
            parent: None,
            deadline: definition.limit.map(|limit| now.plus(limit)),
            sequence: 0,
            created_at: now,
            updated_at: now,
            finished_at: None,
        };
        transition::start(&mut run, &definition.shape, now);
        Ok(run)
    }

    fn definition_for(&self, run: &Run) -> Option<Arc<Definition<J::Effects>>> {
        let definitions = self.definitions.read().unwrap_or_else(PoisonError::into_inner);
        let versions = definitions.get(&run.definition)?;
        let exact = versions.iter().find(|known| known.version == run.definition_version && known.fits(run));
        exact.or_else(|| versions.iter().rev().find(|known| known.fits(run))).map(Arc::clone)
    }

    /// Takes up an open run, unless somebody else holds it.
    async fn adopt(self: &Arc<Self>, stored: Stored) -> Result<Adopted> {
        let (id, now) = (stored.run.id, self.clock.now());
        if stored.run.state.is_settled() {
            return Ok(Adopted::Settled);
        }
        if self.registry().get(id).is_some() {
            self.wake(id, None);
            return Ok(Adopted::Taken);
        }
        let lease = stored.run.lease.as_ref();
        let own = lease.is_some_and(|lease| lease.holder == self.config.name);
        if !own && !self.config.exclusive && lease.is_some_and(|lease| self.holds(lease, now)) {
            return Ok(Adopted::Held);
        }
        let Some(definition) = self.definition_for(&stored.run) else {
            tracing::error!(workflow = %id, definition = %stored.run.definition, version = stored.run.definition_version,
                "no registered definition fits an open workflow; it stays as it is");
            return Ok(Adopted::Unknown);
        };
        let input = match (definition.parse)(&stored.run.input) {
            Ok(input) => input,
            Err(error) => {
                tracing::error!(workflow = %id, error = %error.chain(), "the input of an open workflow is unreadable");
                return Ok(Adopted::Unknown);
            }
        };
        let fence = stored.run.fence() + u64::from(!own);
        let run = Arc::clone(&stored.run);
        let cell = Arc::new(Cell::new(stored, fence, definition, input));
        if !own && !self.config.exclusive {
            // Others may be taking it up at this moment: whoever saves first has it.
            let mut held = cell.held.lock().await;
            if !matches!(self.save(&cell, &mut held, |_| {}, None).await, Saved::Yes) {
                return Ok(Adopted::Held);
            }
        }
        {
            let mut registry = self.registry();
            if !registry.insert(id, cell.project, Arc::clone(&cell)) {
                return Ok(Adopted::Taken);
            }
            // Delays go on; whatever may have been signalled meanwhile is looked at again.
            for (number, step) in run.steps.iter().enumerate() {
                let open = matches!(step.state, StepState::Running | StepState::Undoing);
                if let Some(wait) = step.wait.as_ref().filter(|_| open) {
                    if wait.keys.is_empty() && wait.until > now {
                        let since = registry.signal_count();
                        registry.register(id, number, &[], wait.until, since);
                    } else {
                        registry.wake(id, Some(number));
                    }
                }
            }
        }
        self.timers_changed.notify_one();
        self.observe(&run, None, Point::Taken);
        self.registry().wake(id, None);
        self.begin_tasks();
        Ok(Adopted::Taken)
    }

    async fn recover(self: &Arc<Self>) -> Result<Recovered> {
        let mut recovered = Recovered::default();
        for stored in self.journal.load_open().await? {
            let (id, stuck) = (stored.run.id, stored.run.state == RunState::Stuck);
            match self.adopt(stored).await? {
                Adopted::Taken => recovered.taken += 1,
                Adopted::Held => recovered.held += 1,
                Adopted::Settled => recovered.stuck += usize::from(stuck),
                Adopted::Unknown => recovered.unknown.push(id),
            }
        }
        Ok(recovered)
    }

    async fn cancel(self: &Arc<Self>, id: WorkflowId) -> Result<()> {
        for _ in 0..CANCEL_ATTEMPTS {
            let known = self.registry().get(id).map(Arc::clone);
            if let Some(cell) = known {
                return self.cancel_held(&cell).await;
            }
            let Some(stored) = self.journal.get(id).await? else { return Err(Error::not_found("workflow", id)) };
            if stored.run.state == RunState::Stuck {
                return Err(Error::conflict("workflow_stuck", "The workflow is stuck and cannot be cancelled")
                    .detail(stored.run.error.as_ref().map_or(String::new(), ToString::to_string))
                    .next("look at its steps, repair, then try again", Some(format!("nephos workflow retry {id}"))));
            }
            let Some(definition) = self.definition_for(&stored.run) else {
                return Err(Error::conflict("workflow_unknown", "No definition fits this workflow")
                    .detail(format!("{} version {}", stored.run.definition, stored.run.definition_version)));
            };
            match self.adopt(stored.clone()).await? {
                Adopted::Taken => {}
                Adopted::Held => {
                    // Its holder finds the request with its next save.
                    let mut run = Run::clone(&stored.run);
                    transition::request_cancel(&mut run.clone(), &definition.shape, self.clock.now(), false)?;
                    run.cancel_requested = true;
                    match self.journal.save(Arc::new(run), stored.revision, J::Effects::default()).await {
                        Ok(_) => return Ok(()),
                        Err(SaveError::Fenced | SaveError::Conflict) => {}
                        Err(error) => return Err(unavailable(&error)),
                    }
                }
                Adopted::Settled | Adopted::Unknown => {
                    let mut run = Run::clone(&stored.run);
                    return transition::request_cancel(&mut run, &definition.shape, self.clock.now(), false);
                }
            }
        }
        Err(unavailable(&SaveError::Fenced))
    }

    async fn cancel_held(self: &Arc<Self>, cell: &Cell<J::Effects>) -> Result<()> {
        let mut held = cell.held.lock().await;
        let (now, alone) = (self.clock.now(), held.calls == 0);
        let shape = &cell.definition.shape;
        let mut tried = Run::clone(&held.run);
        transition::request_cancel(&mut tried, shape, now, alone)?;
        if tried.cancel_requested && !held.run.cancel_requested {
            let change = |run: &mut Run| {
                // What was possible a moment ago still is: only a request to cancel can have come in between.
                let _ = transition::request_cancel(run, shape, now, alone);
            };
            if !matches!(self.save(cell, &mut held, change, None).await, Saved::Yes) {
                return Err(unavailable(&SaveError::Fenced));
            }
            cell.cancel.cancel();
        }
        drop(held);
        self.wake(cell.id, None);
        Ok(())
    }

    /// Has a run driven soon; `step` is called even if it waits.
    fn wake(self: &Arc<Self>, id: WorkflowId, step: Option<usize>) {
        let driven = self.registry().wake(id, step);
        match driven {
            Some(cell) => cell.notify.notify_one(),
            None => self.begin_tasks(),
        }
    }

    fn signal(self: &Arc<Self>, key: &str) {
        let driven = self.registry().signal(key);
        for cell in driven {
            cell.notify.notify_one();
        }
        self.begin_tasks();
    }

    /// Begins tasks for runs in the queue while there is room.
    fn begin_tasks(self: &Arc<Self>) {
        loop {
            let Some(cell) = self.registry().next_ready() else { return };
            self.spawn(|inner| async move {
                inner.drive(&cell).await;
                inner.registry().task_ended();
                inner.begin_tasks();
                inner.task_ended.notify_waiters();
            });
        }
    }

    /// Wakes steps whose time has come.
    async fn keep_time(self: &Arc<Self>) {
        loop {
            let changed = self.timers_changed.notified();
            let next = self.registry().next_timer();
            match next {
                Some(at) => tokio::select! {
                    () = self.clock.sleep_until(at) => {}
                    () = changed => continue,
                },
                None => {
                    changed.await;
                    continue;
                }
            }
            let driven = self.registry().fire_timers(self.clock.now());
            for cell in driven {
                cell.notify.notify_one();
            }
            self.begin_tasks();
        }
    }

    /// Now and then takes up runs whose holder was not heard of for too long.
    async fn look_for_abandoned(self: &Arc<Self>) {
        loop {
            self.clock.sleep_until(self.clock.now().plus(self.config.lease)).await;
            if let Err(error) = self.recover().await {
                tracing::warn!(error = %error.chain(), "looking for abandoned workflows met a problem");
            }
        }
    }
}

/// How often a request to cancel is tried against a run that others keep saving.
const CANCEL_ATTEMPTS: u32 = 16;
