//! `server.rebuild`: another root disk for the same server.

use nephos_driver::Firmware;
use nephos_node_api::{BootSource, ImageSource, WantedPower};
use nephos_types::ImageId;
use nephos_workflow::{Definition, Done};
use serde::{Deserialize, Serialize};

use super::{
    Answer,
    act::{Plan, Step},
};
use crate::{
    compute::{
        Held,
        server::{Server, config_drive::DriveFormat, record::boot_images},
    },
    image,
    journal::Effects,
    placement::Needs,
};

/// The definition's name.
pub(crate) const NAME: &str = "server.rebuild";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Rebuild {
    /// What the new disk is made from.
    pub(crate) image: ImageSource,
    /// What the disk is claimed as then.
    pub(crate) claimed_disk_gib: u64,
    /// Instead of what the server's first-boot software was given.
    pub(crate) user_data: Option<String>,
    /// An image that only the old disk was made from.
    pub(crate) discard: Option<ImageId>,
    /// How the new disk is booted.
    #[serde(default)]
    pub(crate) firmware: Firmware,
    /// Likewise.
    #[serde(default)]
    pub(crate) boot: BootSource,
    /// What the new system finds on its configuration drive.
    #[serde(default)]
    pub(crate) drive_format: DriveFormat,
    /// What the new image asks of a node's kind.
    #[serde(default)]
    pub(crate) needs: Needs,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Rebuild>::new(held, NAME);
    plan.undoable("claim room", claim, give_back);
    plan.step("stop server", |step| step.stop(0));
    plan.final_step("replace disk", replace);
    plan.step("start server", |step| step.start(step.before().ran));
    plan.step("finish", |step| {
        step.finish(|mut transaction, _, server| {
            // What the old disk was booted with is of no use any more; what the new one is stays held.
            let old = std::mem::replace(&mut server.kept, boot_images(&server.boot));
            transaction = image::let_go_all(image::hold_all(transaction, &server.kept), &old);
            if let Some(image) = step.change().discard.filter(|image| server.own_image == Some(*image)) {
                transaction = step.compute.images.discard(transaction, image);
                server.own_image = None;
            }
            Ok(transaction)
        })
    });
    plan.build()
}

/// Room for the larger disk of the two, until the old one is gone.
fn claim(step: &Step<Rebuild>) -> Answer<()> {
    let record = step.own()?;
    let mut body = record.body.clone();
    body.claimed_disk_gib = body.claimed_disk_gib.max(step.change().claimed_disk_gib);
    let transaction = step.claim(step.effects(), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

fn give_back(step: &Step<Rebuild>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    body.claimed_disk_gib = step.before().size().claimed_disk_gib;
    let transaction = step.claim(step.effects(), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

fn replace(step: &Step<Rebuild>) -> Answer<()> {
    let (wanted, change) = (step.before().incarnation() + 1, step.change());
    let replaced = step.bring(
        |server| server.incarnation == wanted,
        |server| {
            server.incarnation = wanted;
            server.image = change.image.clone();
            server.firmware = change.firmware;
            server.boot = change.boot.clone();
            server.drive_format = change.drive_format;
            server.placing.image = change.needs.clone();
            if let Some(user_data) = &change.user_data {
                server.user_data = Some(user_data.clone());
            }
            server.wanted = WantedPower::Off { grace_ms: 0 };
        },
        Server::off,
    );
    let record = match replaced {
        Ok(record) => record,
        Err(answer) => return answer,
    };
    let mut body = record.body.clone();
    body.claimed_disk_gib = change.claimed_disk_gib;
    let transaction = step.claim(step.effects(), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}
