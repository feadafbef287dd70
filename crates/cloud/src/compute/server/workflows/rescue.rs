//! `server.rescue` and `server.unrescue`: boot from a throw-away copy of an image, and from the own disk again.

use nephos_driver::Power;
use nephos_node_api::{ImageSource, WantedPower};
use nephos_workflow::{Definition, Done};
use serde::{Deserialize, Serialize};

use super::act::{GRACE_MS, Plan};
use crate::{compute::Held, journal::Effects};

/// The definitions' names.
pub(crate) const RESCUE: &str = "server.rescue";
pub(crate) const UNRESCUE: &str = "server.unrescue";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rescue {
    pub(crate) image: ImageSource,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Rescue>::new(held, RESCUE);
    plan.step("stop server", |step| step.stop(GRACE_MS));
    plan.step("boot rescue image", |step| {
        let image = &step.change().image;
        let booted = step.bring(
            |server| server.rescue.as_ref() == Some(image),
            |server| {
                server.rescue = Some(image.clone());
                server.wanted = WantedPower::On { restart: server.restart };
            },
            |server| server.is_power(Power::On),
        );
        booted.map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.final_step("finish", |step| step.finish(|transaction, _, _| Ok(transaction)));
    plan.build()
}

pub(super) fn unrescue(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<()>::new(held, UNRESCUE);
    plan.step("stop server", |step| step.stop(GRACE_MS));
    plan.step("boot own disk", |step| {
        let booted = step.bring(
            |server| server.rescue.is_none(),
            |server| {
                server.rescue = None;
                server.wanted = WantedPower::On { restart: server.restart };
            },
            |server| server.is_power(Power::On),
        );
        booted.map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.final_step("finish", |step| step.finish(|transaction, _, _| Ok(transaction)));
    plan.build()
}
