//! `server.resize` and `server.revert-resize`. Room for the old and the new size is claimed until it is decided.

use nephos_driver::Feature;
use nephos_node_api::WantedPower;
use nephos_types::Timestamp;
use nephos_workflow::{Definition, Done};
use serde::{Deserialize, Serialize};

use super::{
    Answer,
    act::{GRACE_MS, Plan, Step},
};
use crate::{
    compute::{
        Held,
        server::record::{self, Deadline, Size},
    },
    journal::Effects,
};

/// The definitions' names.
pub(crate) const RESIZE: &str = "server.resize";
pub(crate) const REVERT: &str = "server.revert-resize";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Resize {
    pub(crate) to: Size,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Resize>::new(held, RESIZE);
    plan.undoable("claim room", claim, give_back);
    plan.step("stop server", |step| if is_hot(step)? { Ok(Done::value(())) } else { step.stop(GRACE_MS) });
    plan.step("change size", change);
    plan.step("start server", |step| step.start(step.before().ran));
    plan.final_step("finish", |step| {
        step.finish(|transaction, _, server| {
            let after = step.compute.settings.confirm_resize_after;
            let at = after.map(|after| Timestamp::now().plus(after));
            if let Some(resize) = &mut server.resize {
                resize.waits = Some(Deadline { at });
            }
            Ok(transaction)
        })
    });
    plan.build()
}

pub(super) fn revert(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Resize>::new(held, REVERT);
    plan.step("stop server", |step| step.stop(GRACE_MS));
    plan.step("change size back", change);
    plan.step("start server", |step| step.start(step.before().ran));
    plan.final_step("finish", |step| {
        step.finish(|transaction, record, server| {
            server.resize = None;
            step.claim(transaction, record, server)
        })
    });
    plan.build()
}

fn claim(step: &Step<Resize>) -> Answer<()> {
    let record = step.own()?;
    let mut body = record.body.clone();
    body.resize = Some(record::Resize { other: step.change().to.clone(), waits: None });
    let transaction = step.claim(step.effects(), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

fn give_back(step: &Step<Resize>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    if body.size() != step.before().size() {
        body.take_size(step.before().size());
        body.generation += 1;
    }
    body.resize = None;
    let transaction = step.claim(step.effects(), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// Whether nothing but the disk grows, and the node does that while the server runs.
fn is_hot(step: &Step<Resize>) -> Result<bool, nephos_workflow::Failure> {
    let record = step.own()?;
    let (now, to) = (step.before().size(), &step.change().to);
    let only_disk = now.vcpus == to.vcpus && now.memory_mib == to.memory_mib;
    let node = record.body.node.and_then(|node| step.compute.nodes.summary(node));
    // A disk that is to shrink back is none that grows.
    let grows = node.and_then(|node| Some(node.driver(&record.body.driver)?.features.contains(&Feature::GrowLive)));
    Ok(only_disk && grows == Some(true))
}

fn change(step: &Step<Resize>) -> Answer<()> {
    let to = &step.change().to;
    let hot = is_hot(step)?;
    let brought = step.bring(
        |server| server.size() == *to,
        |server| {
            let old = server.size();
            server.take_size(to.clone());
            server.resize = Some(record::Resize { other: old, waits: None });
            if !hot {
                server.wanted = WantedPower::Off { grace_ms: 0 };
            }
        },
        |server| hot || server.off(),
    );
    brought.map_or_else(|answer| answer, |_| Ok(Done::value(())))
}
