//! What actions on a made server have in common: the first step looks that the server is the run's own, and its undo
//! makes the server what it was before, says why, and lets others at it again. Each further step asks the node for one
//! thing and waits until it is so; the last one ends the task in the same transaction that sees it so.

use std::sync::Arc;

use nephos_driver::Power;
use nephos_node_api::{ImageSource, WantedPower};
use nephos_store::{Record, Transaction};
use nephos_types::{ImageId, ServerId};
use nephos_workflow::{Builder, Definition, Done, Failure, StepContext};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    Answer, effects, failed, finished, is_superseded, let_go_of_images, own, reclaim, refusal, show_progress, wait,
};
use crate::{
    compute::{
        Compute, Held,
        policy::Placed,
        server::{
            Server,
            record::{Resize, Size, Trashed},
        },
    },
    journal::Effects,
};

/// What a server gets to shut down before it is changed.
pub(super) const GRACE_MS: u64 = 60_000;

/// What actions change of a server, as it was before.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Before {
    wanted: WantedPower,
    image: ImageSource,
    incarnation: u64,
    rescue: Option<ImageSource>,
    size: Size,
    user_data: Option<String>,
    trashed: Option<Trashed>,
    resize: Option<Resize>,
    held: Vec<ImageId>,
    /// Whether it ran.
    pub(crate) ran: bool,
}

impl Before {
    /// As it is now.
    pub(crate) fn of(server: &Server) -> Self {
        Self {
            wanted: server.wanted,
            image: server.image.clone(),
            incarnation: server.incarnation,
            rescue: server.rescue.clone(),
            size: server.size(),
            user_data: server.user_data.clone(),
            trashed: server.trashed,
            resize: server.resize.clone(),
            held: server.held.clone(),
            ran: !server.off(),
        }
    }

    pub(super) fn size(&self) -> Size {
        self.size.clone()
    }

    /// The size that a resize which waits for a decision can be reverted to.
    pub(super) fn old_size(&self) -> Option<&Size> {
        self.resize.as_ref().map(|resize| &resize.other)
    }

    pub(super) fn resize(&self) -> Option<Resize> {
        self.resize.clone()
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// Makes a server so again. What its node has to know of is a new generation.
    fn restore(&self, server: &mut Server) {
        let old = server.clone();
        server.wanted = self.wanted;
        server.image = self.image.clone();
        server.incarnation = self.incarnation;
        server.rescue = self.rescue.clone();
        server.user_data.clone_from(&self.user_data);
        server.take_size(self.size.clone());
        server.trashed = self.trashed;
        server.resize.clone_from(&self.resize);
        if *server != old {
            server.generation += 1;
        }
    }
}

/// What an action is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Input<C> {
    pub(crate) server: ServerId,
    pub(crate) before: Before,
    pub(crate) change: C,
}

/// A call of a step of an action.
pub(super) struct Step<C> {
    pub(super) compute: Arc<Compute>,
    pub(super) context: StepContext<Input<C>>,
    pub(super) name: &'static str,
}

/// Builds the definition of an action.
pub(super) struct Plan<C> {
    held: Held,
    name: &'static str,
    builder: Builder<Input<C>, Effects>,
    /// There is no way back any more.
    forward: bool,
}

type Run<C> = fn(&Step<C>) -> Answer<()>;

impl<C: Clone + Serialize + DeserializeOwned + Send + Sync + 'static> Plan<C> {
    /// With the first step.
    pub(super) fn new(held: &Held, name: &'static str) -> Self {
        Self::undone_by(held, name, |step| step.give_up(step.effects(), |_| {}))
    }

    /// With a first step whose undo is another one: it must end in [`Step::give_up`].
    pub(super) fn undone_by(held: &Held, name: &'static str, undo: Run<C>) -> Self {
        let mut plan =
            Self { held: held.clone(), name, builder: Definition::builder::<Input<C>>(name), forward: false };
        plan.undoable("check request", |step| step.own().map(|_| Done::value(())), undo);
        plan
    }

    fn call(
        &self,
        run: Run<C>,
    ) -> impl Fn(StepContext<Input<C>>) -> std::future::Ready<Answer<()>> + Send + Sync + use<C> {
        let (held, name, forward) = (self.held.clone(), self.name, self.forward);
        move |context| {
            let called = held.get().map_err(Failure::from).and_then(|compute| run(&Step { compute, context, name }));
            std::future::ready(match called {
                // A deletion goes on with the server; what cannot turn back leaves it to that.
                Err(failure) if forward && is_superseded(&failure) => Ok(Done::value(())),
                called => called,
            })
        }
    }

    /// A step without an undo of its own.
    pub(super) fn step(&mut self, words: &str, run: Run<C>) {
        let run = self.call(run);
        self.builder.step(words, run).add();
    }

    /// A step from which on there is only forward.
    pub(super) fn final_step(&mut self, words: &str, run: Run<C>) {
        self.forward = true;
        let run = self.call(run);
        self.builder.step(words, run).no_return().add();
    }

    /// A step with an undo.
    pub(super) fn undoable(&mut self, words: &str, run: Run<C>, undo: Run<C>) {
        let (run, undo) = (self.call(run), self.call(undo));
        self.builder.step(words, run).undo(move |context, _: Option<()>| undo(context)).add();
    }

    /// A step with an undo that gives what it has decided.
    pub(super) fn deciding(&mut self, words: &str, run: fn(&Step<C>) -> Answer<Placed>, undo: Run<C>) {
        let (held, name, undo) = (self.held.clone(), self.name, self.call(undo));
        let run = move |context| {
            let called = held.get().map_err(Failure::from);
            let decided = called.and_then(|compute| run(&Step { compute, context, name }));
            std::future::ready(decided.map(|done| done.map(|placed| serde_json::json!(placed))))
        };
        self.builder.step(words, run).undo(move |context, _: Option<Value>| undo(context)).add();
    }

    /// The definition.
    pub(super) fn build(self) -> Definition<Effects> {
        self.builder.build()
    }
}

impl<C> Step<C> {
    pub(super) fn id(&self) -> ServerId {
        self.context.input().server
    }

    pub(super) fn before(&self) -> &Before {
        &self.context.input().before
    }

    pub(super) fn change(&self) -> &C {
        &self.context.input().change
    }

    pub(super) fn own(&self) -> Result<Arc<Record<Server>>, Failure> {
        own(&self.compute, &self.context, self.id())
    }

    pub(super) fn effects(&self) -> Transaction {
        effects(self.name, &self.context)
    }

    /// The server for an undo; `None` if it is not the run's own any more, so that there is nothing to undo.
    pub(super) fn still_own(&self) -> Result<Option<Arc<Record<Server>>>, Failure> {
        match self.own() {
            Ok(record) => Ok(Some(record)),
            Err(failure) if is_superseded(&failure) => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// Asks the node for something, unless it `has` been asked, and waits until it `is` so. `Err` is the step's answer as
    /// long as it is not.
    pub(super) fn bring(
        &self,
        has: impl FnOnce(&Server) -> bool,
        ask: impl FnOnce(&mut Server),
        is: impl FnOnce(&Server) -> bool,
    ) -> Result<Arc<Record<Server>>, Answer<()>> {
        let record = self.own().map_err(Err)?;
        if !has(&record.body) {
            let mut body = record.body.clone();
            ask(&mut body);
            body.generation += 1;
            return Err(Ok(wait(self.id()).with(Some(self.effects().update(&record, body)))));
        }
        if record.body.reached() && is(&record.body) {
            return Ok(record);
        }
        Err(match refusal(&record.body) {
            Some(error) => Err(Failure::fatal(error)),
            None => {
                show_progress(&self.compute, &self.context, &record.body);
                Ok(wait(self.id()))
            }
        })
    }

    /// Switches the server off.
    pub(super) fn stop(&self, grace_ms: u64) -> Answer<()> {
        let stopped = self.bring(
            |server| matches!(server.wanted, WantedPower::Off { .. }),
            |server| server.wanted = WantedPower::Off { grace_ms },
            Server::off,
        );
        stopped.map_or_else(|answer| answer, |_| Ok(Done::value(())))
    }

    /// Starts the server if it is to run.
    pub(super) fn start(&self, run: bool) -> Answer<()> {
        let brought = self.bring(
            |server| run == matches!(server.wanted, WantedPower::On { .. }),
            |server| {
                server.wanted =
                    if run { WantedPower::On { restart: server.restart } } else { WantedPower::Off { grace_ms: 0 } };
            },
            |server| run == server.is_power(Power::On),
        );
        brought.map_or_else(|answer| answer, |_| Ok(Done::value(())))
    }

    /// Ends the task; `last` changes the server in the transaction that does. For a step of its own with no way back, so
    /// that nobody can cancel what has ended.
    pub(super) fn finish(
        &self,
        last: impl FnOnce(Transaction, &Record<Server>, &mut Server) -> Result<Transaction, Failure>,
    ) -> Answer<()> {
        let record = self.own()?;
        let mut body = finished(record.body.clone());
        body.fault = None;
        let transaction = last(let_go_of_images(self.effects(), &body), &record, &mut body)?;
        body.held = vec![];
        Ok(Done::value(()).with(Some(transaction.update(&record, body))))
    }

    /// Undo of it all: the server is what it was, but for what `last` changes, and says why the action failed.
    pub(super) fn give_up(&self, transaction: Transaction, last: impl FnOnce(&mut Server)) -> Answer<()> {
        let Some(record) = self.still_own()? else { return Ok(Done::value(()).with(Some(transaction))) };
        let mut body = failed(record.body.clone(), &self.context);
        self.before().restore(&mut body);
        let transaction = let_go_of_images(transaction, &body);
        body.held = vec![];
        last(&mut body);
        Ok(Done::value(()).with(Some(transaction.update(&record, body))))
    }

    /// Changes what is claimed for a server, on its node and of its project's quota, to what `body` takes.
    pub(super) fn claim(
        &self,
        transaction: Transaction,
        record: &Record<Server>,
        body: &Server,
    ) -> Result<Transaction, Failure> {
        reclaim::change(&self.compute, transaction, record, body).map_err(Failure::fatal)
    }
}
