//! `server.start`, `server.stop`, `server.reboot`: tell the node, and wait until it is so.

use nephos_driver::Power;
use nephos_node_api::WantedPower;
use nephos_types::{Error, ServerId};
use nephos_workflow::{Definition, Done, Failure, StepContext};
use serde::{Deserialize, Serialize};

use super::{Answer, effects, failed, finished, is_superseded, own, refusal, show_progress, wait};
use crate::{
    compute::{Compute, Held, server::Server},
    journal::Effects,
};

/// What shall happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Action {
    /// Run it.
    Start,
    /// Do not run it; it gets this many milliseconds to shut down.
    Stop { grace_ms: u64 },
    /// Run it anew; it gets this many milliseconds to shut down.
    Reboot { grace_ms: u64 },
    /// Let it stand still.
    Pause,
    /// Let it go on.
    Unpause,
    /// Save its memory and end it.
    Suspend,
    /// Let it go on.
    Resume,
}

impl Action {
    /// The workflow's name.
    pub(crate) const fn workflow(self) -> &'static str {
        match self {
            Self::Start => "server.start",
            Self::Stop { .. } => "server.stop",
            Self::Reboot { .. } => "server.reboot",
            Self::Pause => "server.pause",
            Self::Unpause => "server.unpause",
            Self::Suspend => "server.suspend",
            Self::Resume => "server.resume",
        }
    }

    /// What people see being done.
    pub(crate) const fn task(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Reboot { .. } => "reboot",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Suspend => "suspend",
            Self::Resume => "resume",
        }
    }

    fn ask(self, server: &mut Server) {
        server.generation += 1;
        match self {
            Self::Start | Self::Unpause | Self::Resume => {
                server.wanted = WantedPower::On { restart: server.restart };
            }
            Self::Pause => server.wanted = WantedPower::Paused,
            Self::Suspend => server.wanted = WantedPower::Suspended,
            Self::Stop { grace_ms } => server.wanted = WantedPower::Off { grace_ms },
            Self::Reboot { grace_ms } => {
                // One that stands still or is suspended is to run afterwards.
                server.wanted = WantedPower::On { restart: server.restart };
                server.reboots += 1;
                server.reboot_grace_ms = grace_ms;
            }
        }
    }

    /// What it is then.
    fn power(self) -> Power {
        match self {
            Self::Start | Self::Reboot { .. } | Self::Unpause | Self::Resume => Power::On,
            Self::Stop { .. } => Power::Off,
            Self::Pause => Power::Paused,
            Self::Suspend => Power::Suspended,
        }
    }

    fn is_so(self, server: &Server) -> bool {
        match self.power() {
            Power::Off => server.reached() && server.off(),
            power => server.reached() && server.is_power(power),
        }
    }
}

/// What the workflow is given.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) server: ServerId,
    pub(crate) action: Action,
    /// What was wanted before.
    pub(crate) before: WantedPower,
}

pub(super) fn definitions(held: &Held) -> Vec<Definition<Effects>> {
    let words = [
        (Action::Start, "wait until it runs"),
        (Action::Stop { grace_ms: 0 }, "wait until it has stopped"),
        (Action::Reboot { grace_ms: 0 }, "wait until it runs again"),
        (Action::Pause, "wait until it stands still"),
        (Action::Unpause, "wait until it goes on"),
        (Action::Suspend, "wait until its memory is saved"),
        (Action::Resume, "wait until it goes on"),
    ];
    words.into_iter().map(|(action, waiting)| definition(held, action.workflow(), waiting)).collect()
}

fn definition(held: &Held, name: &'static str, waiting: &str) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(name);

    let compute = held.clone();
    let undoing = held.clone();
    let generation = definition
        .step("tell the node", move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { tell(&*compute.get()?, &context) }
        })
        .undo(move |context: StepContext<Input>, _: Option<u64>| {
            let compute = undoing.clone();
            async move { take_back(&*compute.get()?, &context) }
        })
        .add();

    let compute = held.clone();
    definition
        .step(waiting, move |context: StepContext<Input>| {
            let compute = compute.clone();
            async move { until_so(&*compute.get()?, &context, context.get(generation)?) }
        })
        .add();

    definition.build()
}

/// Gives the generation that the node has to reach. The step's record and the change are one transaction, so it is told
/// once however often the step is called.
fn tell(compute: &Compute, context: &StepContext<Input>) -> Answer<u64> {
    let Input { server, action, .. } = *context.input();
    let record = own(compute, context, server)?;
    let mut body = record.body.clone();
    action.ask(&mut body);
    let generation = body.generation;
    Ok(Done::value(generation).with(Some(effects(action.workflow(), context).update(&record, body))))
}

fn until_so(compute: &Compute, context: &StepContext<Input>, generation: u64) -> Answer<()> {
    let Input { server, action, .. } = *context.input();
    let record = own(compute, context, server)?;
    if action.is_so(&record.body) && record.body.generation >= generation {
        let mut body = finished(record.body.clone());
        body.fault = None;
        return Ok(Done::value(()).with(Some(effects(action.workflow(), context).update(&record, body))));
    }
    if let Some(error) = refusal(&record.body) {
        return Err(Failure::fatal(error));
    }
    if record.body.generation >= generation
        && record.body.reached()
        && action.power() != Power::Off
        && record.body.off()
    {
        let error = Error::conflict("guest_not_running", "The server does not run any more")
            .next("start it", Some("nephos server start".to_owned()));
        return Err(Failure::fatal(error));
    }
    show_progress(compute, context, &record.body);
    Ok(wait(server))
}

/// A server that could not be started stays off, rather than starting by itself at some later time.
fn take_back(compute: &Compute, context: &StepContext<Input>) -> Answer<()> {
    let Input { server, action, .. } = *context.input();
    match own(compute, context, server) {
        Ok(record) => {
            let mut body = failed(record.body.clone(), context);
            match action {
                Action::Start => {
                    body.wanted = WantedPower::Off { grace_ms: 0 };
                    body.generation += 1;
                }
                Action::Pause | Action::Unpause | Action::Suspend | Action::Resume => {
                    body.wanted = context.input().before;
                    body.generation += 1;
                }
                // It may be on its way, and nobody knows how far.
                Action::Stop { .. } | Action::Reboot { .. } => {}
            }
            Ok(Done::value(()).with(Some(effects(action.workflow(), context).update(&record, body))))
        }
        Err(failure) if is_superseded(&failure) => Ok(Done::value(())),
        Err(failure) => Err(failure),
    }
}
