//! `server.shelve` and `server.unshelve`: put a server away as an image, and bring it back wherever there is room.

use nephos_types::ImageId;
use nephos_workflow::{Definition, Done};
use serde::{Deserialize, Serialize};

use super::{
    Answer, absent,
    act::{GRACE_MS, Plan, Step},
    create, release_node,
    snapshot::{copied, discard},
};
use crate::{compute::Held, image as images, journal::Effects};

/// The definitions' names.
pub(crate) const SHELVE: &str = "server.shelve";
pub(crate) const UNSHELVE: &str = "server.unshelve";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Shelve {
    /// The image that the disk becomes; its record is there.
    pub(crate) image: ImageId,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Shelve>::undone_by(held, SHELVE, |step| discard(step, step.change().image));
    plan.step("stop server", |step| step.stop(GRACE_MS));
    plan.step("copy disk", |step| {
        copied(step, step.change().image, false).map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.final_step("remove from node", |step| {
        let record = step.own()?;
        Ok(absent(&step.compute, &step.context, step.name, &record).unwrap_or_else(|| Done::value(())))
    });
    plan.step("give room back", put_away);
    plan.build()
}

fn put_away(step: &Step<Shelve>) -> Answer<()> {
    let record = step.own()?;
    let image = step.change().image;
    let (source, _) = match copied(step, image, false) {
        Ok(source) => source,
        Err(answer) => return answer,
    };
    if let Some(node) = record.body.node {
        step.compute.candidates.give_back(node, record.body.amounts());
    }
    step.finish(|transaction, record, server| {
        let mut transaction = release_node(&step.compute, transaction, record.meta.id, server);
        *server = create::unplaced(server.clone());
        server.snapshots.clear();
        server.shelved = true;
        server.image = source;
        server.kept.push(image);
        transaction = images::hold(transaction, image);
        server.incarnation += 1;
        server.rescue = None;
        // What the disk was made from before is of no use any more if it was made for this server.
        if let Some(old) = server.own_image.replace(image).filter(|old| *old != image) {
            transaction = step.compute.images.discard(transaction, old);
        }
        Ok(transaction)
    })
}

pub(super) fn unshelve(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<()>::new(held, UNSHELVE);
    plan.deciding(
        "find capacity",
        |step| create::find_capacity(&step.compute, &step.context, step.name, step.id()),
        |step| create::give_back(&step.compute, &step.context, step.name, step.id()),
    );
    plan.step("load image", |step| create::load_image(&step.compute, &step.context, step.id()));
    plan.step("start server", |step| step.start(true));
    plan.final_step("finish", |step| {
        step.finish(|transaction, _, server| {
            server.shelved = false;
            // Its node has it now.
            let disk = server.image.id;
            let held = server.kept.contains(&disk);
            server.kept.retain(|image| *image != disk);
            Ok(if held { images::let_go(transaction, disk) } else { transaction })
        })
    });
    plan.build()
}
