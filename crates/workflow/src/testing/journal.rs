//! A journal in memory, with a world that effects change: for tests, and to measure the engine by itself.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::{FutureExt, future::BoxFuture};
use nephos_types::{Error, Result, WorkflowId};

use crate::{
    journal::{Journal, Revision, SaveError, Stored},
    run::Run,
};

type Change<W> = Box<dyn FnOnce(&mut W) -> Result<(), SaveError> + Send>;

/// Changes of a world `W`, applied in order, all or none.
pub struct MemoryEffects<W>(Vec<Change<W>>);

impl<W> Default for MemoryEffects<W> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<W> fmt::Debug for MemoryEffects<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryEffects({})", self.0.len())
    }
}

impl<W> MemoryEffects<W> {
    /// One change that always works.
    pub fn change(change: impl FnOnce(&mut W) + Send + 'static) -> Self {
        Self::checked(|world| {
            change(world);
            Ok(())
        })
    }

    /// One change that may refuse: with [`SaveError::Effects`] for good, with [`SaveError::Conflict`] to be asked again.
    pub fn checked(change: impl FnOnce(&mut W) -> Result<(), SaveError> + Send + 'static) -> Self {
        Self(vec![Box::new(change)])
    }

    /// And then these.
    #[must_use]
    pub fn then(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// A journal in memory. Clones share it, so it outlives an engine that "crashes".
pub struct MemoryJournal<W> {
    state: Arc<Mutex<State<W>>>,
}

impl<W> Clone for MemoryJournal<W> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

struct State<W> {
    runs: BTreeMap<WorkflowId, Stored>,
    world: W,
    revision: u64,
    saves: u64,
    faults: VecDeque<SaveFault>,
    down: bool,
}

/// What shall happen to one of the next saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SaveFault {
    /// It is carried out as usual.
    None,
    /// It is refused as unavailable and did not take place.
    Refused,
    /// It takes place, but the answer is lost: unavailable.
    AnswerLost,
    /// It is refused as a conflict.
    Conflict,
}

impl<W: Clone + Send + 'static> MemoryJournal<W> {
    /// An empty journal around this world.
    #[must_use]
    pub fn new(world: W) -> Self {
        let state = State { runs: BTreeMap::new(), world, revision: 0, saves: 0, faults: VecDeque::new(), down: false };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the world, or changes it from outside.
    pub fn world<R>(&self, look: impl FnOnce(&mut W) -> R) -> R {
        look(&mut self.state().world)
    }

    /// The run as stored.
    #[must_use]
    pub fn run(&self, id: WorkflowId) -> Option<Arc<Run>> {
        self.state().runs.get(&id).map(|stored| Arc::clone(&stored.run))
    }

    /// All runs as stored.
    #[must_use]
    pub fn runs(&self) -> Vec<Arc<Run>> {
        self.state().runs.values().map(|stored| Arc::clone(&stored.run)).collect()
    }

    /// How many creations and saves took place.
    #[must_use]
    pub fn saves(&self) -> u64 {
        self.state().saves
    }

    /// What happens to the next saves, in order.
    pub fn inject(&self, faults: impl IntoIterator<Item = SaveFault>) {
        self.state().faults.extend(faults);
    }

    /// While down, everything is unavailable.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    fn submit(
        &self,
        run: Arc<Run>,
        expected: Option<Revision>,
        effects: MemoryEffects<W>,
    ) -> BoxFuture<'static, Result<Revision, SaveError>> {
        let answer = self.state().apply_faulty(&run, expected, effects);
        std::future::ready(answer).boxed()
    }
}

impl<W: Clone> State<W> {
    fn apply_faulty(
        &mut self,
        run: &Arc<Run>,
        expected: Option<Revision>,
        effects: MemoryEffects<W>,
    ) -> Result<Revision, SaveError> {
        if self.down {
            return Err(SaveError::Unavailable(unavailable()));
        }
        match self.faults.pop_front().unwrap_or(SaveFault::None) {
            SaveFault::None => self.apply(run, expected, effects),
            SaveFault::Refused => Err(SaveError::Unavailable(unavailable())),
            SaveFault::Conflict => Err(SaveError::Conflict),
            SaveFault::AnswerLost => {
                self.apply(run, expected, effects)?;
                Err(SaveError::Unavailable(unavailable()))
            }
        }
    }

    fn apply(
        &mut self,
        run: &Arc<Run>,
        expected: Option<Revision>,
        effects: MemoryEffects<W>,
    ) -> Result<Revision, SaveError> {
        match (self.runs.get(&run.id), expected) {
            (Some(_), None) => return Err(SaveError::Exists),
            (stored, Some(expected)) if stored.map(|stored| stored.revision) != Some(expected) => {
                return Err(SaveError::Fenced);
            }
            _ => {}
        }
        if !effects.0.is_empty() {
            let mut world = self.world.clone();
            for change in effects.0 {
                change(&mut world)?;
            }
            self.world = world;
        }
        self.revision += 1;
        self.saves += 1;
        let revision = Revision(self.revision);
        self.runs.insert(run.id, Stored { run: Arc::clone(run), revision });
        Ok(revision)
    }
}

fn unavailable() -> Error {
    Error::new(nephos_types::ErrorKind::Unavailable, "journal_down", "The journal is not available")
}

impl<W: Clone + Send + 'static> Journal for MemoryJournal<W> {
    type Effects = MemoryEffects<W>;

    fn load_open(&self) -> BoxFuture<'_, Result<Vec<Stored>>> {
        let state = self.state();
        let open = state.runs.values().filter(|stored| !stored.run.state.is_closed()).cloned().collect();
        std::future::ready(if state.down { Err(unavailable()) } else { Ok(open) }).boxed()
    }

    fn get(&self, id: WorkflowId) -> BoxFuture<'_, Result<Option<Stored>>> {
        let state = self.state();
        let found = state.runs.get(&id).cloned();
        std::future::ready(if state.down { Err(unavailable()) } else { Ok(found) }).boxed()
    }

    fn create(&self, run: Arc<Run>, effects: Self::Effects) -> BoxFuture<'_, Result<Revision, SaveError>> {
        self.submit(run, None, effects)
    }

    fn save(
        &self,
        run: Arc<Run>,
        expected: Revision,
        effects: Self::Effects,
    ) -> BoxFuture<'_, Result<Revision, SaveError>> {
        self.submit(run, Some(expected), effects)
    }
}
