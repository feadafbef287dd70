//! `server.trash` and `server.restore`: a deleted server is switched off and kept for a while.

use nephos_types::Timestamp;
use nephos_workflow::{Definition, Done};
use serde::{Deserialize, Serialize};

use super::act::{GRACE_MS, Plan};
use crate::{
    compute::{Held, server::record::Trashed},
    journal::Effects,
};

/// The definitions' names.
pub(crate) const TRASH: &str = "server.trash";
pub(crate) const RESTORE: &str = "server.restore";

/// What is asked for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Trash {
    /// When it is deleted for good.
    pub(crate) until: Timestamp,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Trash>::new(held, TRASH);
    plan.step("stop server", |step| {
        // What is on no node does not run.
        if step.own()?.body.node.is_none() { Ok(Done::value(())) } else { step.stop(GRACE_MS) }
    });
    plan.final_step("put into the trash", |step| {
        step.finish(|transaction, _, server| {
            server.trashed = Some(Trashed { until: step.change().until, ran: step.before().ran });
            Ok(transaction)
        })
    });
    plan.build()
}

pub(super) fn restore(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<()>::new(held, RESTORE);
    plan.step("start server", |step| {
        let record = step.own()?;
        let ran = record.body.trashed.is_some_and(|trashed| trashed.ran);
        if record.body.node.is_none() { Ok(Done::value(())) } else { step.start(ran) }
    });
    plan.final_step("take out of the trash", |step| {
        step.finish(|transaction, _, server| {
            server.trashed = None;
            Ok(transaction)
        })
    });
    plan.build()
}
