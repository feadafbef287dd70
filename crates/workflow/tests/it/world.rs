//! A small world to change, and an engine around it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use nephos_types::WorkflowId;
use nephos_workflow::{
    Config, Definition, Engine, Run,
    testing::{ManualClock, MemoryEffects, MemoryJournal},
};

/// What exists, and how often each was made.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) things: BTreeMap<String, u32>,
}

pub(crate) type Effects = MemoryEffects<World>;
pub(crate) type Journal = MemoryJournal<World>;

pub(crate) fn make(name: &str) -> Effects {
    let name = name.to_owned();
    Effects::change(move |world| *world.things.entry(name).or_default() += 1)
}

pub(crate) fn remove(name: &str) -> Effects {
    let name = name.to_owned();
    Effects::change(move |world| {
        world.things.remove(&name);
    })
}

pub(crate) fn things(journal: &Journal) -> Vec<String> {
    journal.world(|world| world.things.keys().cloned().collect())
}

/// Several engines one after another (or at once) over one journal.
pub(crate) struct Bench {
    pub(crate) journal: Journal,
    pub(crate) clock: ManualClock,
    pub(crate) engine: Engine<Journal>,
}

impl Bench {
    pub(crate) fn new(definitions: impl IntoIterator<Item = Definition<Effects>>) -> Self {
        let (journal, clock) = (Journal::new(World::default()), ManualClock::default());
        let engine = engine(&journal, &clock, Config::default(), definitions);
        Self { journal, clock, engine }
    }

    /// The engine vanishes; another one begins on what is stored.
    pub(crate) async fn restart(&mut self, definitions: impl IntoIterator<Item = Definition<Effects>>) {
        self.engine.crash();
        self.engine = engine(&self.journal, &self.clock, Config::default(), definitions);
        self.engine.recover().await.unwrap();
    }

    pub(crate) async fn start(&self, definition: &str, input: &impl serde::Serialize) -> WorkflowId {
        let run = self.engine.prepare(definition, WorkflowId::new(), input).unwrap();
        let id = run.id;
        self.engine.start(run, Effects::default()).await.unwrap();
        id
    }

    /// Waits for the run to settle, moving the clock whenever nothing else can happen.
    pub(crate) async fn settled(&self, id: WorkflowId) -> Arc<Run> {
        let waiting = self.engine.wait(id);
        tokio::pin!(waiting);
        loop {
            tokio::select! {
                biased;
                run = &mut waiting => return run.unwrap(),
                () = tokio::time::sleep(Duration::from_millis(1)) => {
                    if let Some(next) = self.clock.next_sleeper() {
                        self.clock.advance_to(next);
                    }
                }
            }
        }
    }

    /// Waits until the stored run looks like this.
    pub(crate) async fn until(&self, id: WorkflowId, like: impl Fn(&Run) -> bool) -> Arc<Run> {
        loop {
            if let Some(run) = self.journal.run(id).filter(|run| like(run)) {
                return run;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until everything waits.
    pub(crate) async fn idle(&self) {
        while !self.engine.is_idle() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(crate) fn engine(
    journal: &Journal,
    clock: &ManualClock,
    config: Config,
    definitions: impl IntoIterator<Item = Definition<Effects>>,
) -> Engine<Journal> {
    let engine = Engine::with_clock(journal.clone(), config, Arc::new(clock.clone()));
    for definition in definitions {
        engine.register(definition).unwrap();
    }
    engine
}
