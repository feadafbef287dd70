//! `server.resize` and `server.revert-resize`: another size, where the server is or, if there is no room for it there, on
//! another node, where its disk goes as an image. Room for the old and the new size is claimed until it is decided: in
//! one place, or in both. Everything can be undone until the end: from the moment when the disk leaves a node, it is safe
//! in its image, from which it is made again wherever the server is to be.

use nephos_driver::Feature;
use nephos_node_api::WantedPower;
use nephos_store::{Record, Transaction};
use nephos_types::{ImageId, Labels, Name, Timestamp};
use nephos_workflow::{Definition, Done, Failure};
use serde::{Deserialize, Serialize};

use super::{
    Answer, absent,
    act::{GRACE_MS, Plan, Step},
    create::{self, Chosen, choose_place},
    reclaim, release_place,
    relocate::{made_from, turn_back},
    snapshot::{copied, discard, drafted},
    whereto::{Back, Whereto, way_back, whereto},
};
use crate::{
    compute::{
        Compute, Held, group,
        policy::Placed,
        server::{
            Server,
            record::{self, Deadline, Place, Size},
        },
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
    /// The image that the disk becomes if the server has to change its node; made then.
    pub(crate) image: ImageId,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    plan(held, RESIZE, (claim, give_back), |step| {
        step.finish(|transaction, _, server| {
            let after = step.compute.settings.confirm_resize_after;
            let at = after.map(|after| Timestamp::now().plus(after));
            if let Some(resize) = &mut server.resize {
                resize.waits = Some(Deadline { at });
            }
            Ok(transaction)
        })
    })
}

pub(super) fn revert(held: &Held) -> Definition<Effects> {
    plan(held, REVERT, (claim_back, stay), |step| {
        step.finish(|transaction, record, server| {
            settled(&step.compute, transaction, record, server).map_err(Failure::fatal)
        })
    })
}

/// Makes a resize decided: nothing is claimed any more but what the server takes where it is.
pub(crate) fn settled(
    compute: &Compute,
    transaction: Transaction,
    record: &Record<Server>,
    server: &mut Server,
) -> nephos_types::Result<Transaction> {
    server.resize = None;
    let left = server.placing.elsewhere.take();
    let transaction = reclaim::change(compute, transaction, record, server)?;
    let Some(left) = left else { return Ok(transaction) };
    compute.candidates.give_back(left.node, left.taken);
    Ok(release_place(compute, transaction, record.meta.id, server.placing.group, &left))
}

type Claim = (fn(&Step<Resize>) -> Answer<Placed>, fn(&Step<Resize>) -> Answer<()>);

fn plan(
    held: &Held,
    name: &'static str,
    (claim, give_back): Claim,
    finish: fn(&Step<Resize>) -> Answer<()>,
) -> Definition<Effects> {
    let mut plan = Plan::<Resize>::undone_by(held, name, give_up);
    plan.deciding("find capacity", claim, give_back);
    plan.step("stop server", |step| if is_hot(step)? { Ok(Done::value(())) } else { step.stop(GRACE_MS) });
    plan.step("copy disk", |step| {
        if !leaves(step, &step.own()?.body) {
            return Ok(Done::value(()));
        }
        copied(step, step.change().image, false).map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.undoable("remove from node", leave, make_again);
    plan.undoable("change size", change, change_back);
    plan.step("load image", |step| {
        if !has_left(step, &step.own()?.body) {
            return Ok(Done::value(()));
        }
        create::load_image(&step.compute, &step.context, step.id())
    });
    plan.step("start server", |step| step.start(step.before().ran));
    plan.final_step("finish", finish);
    plan.build()
}

/// Whether it was decided that the server goes to its other place.
fn leaves(step: &Step<Resize>, server: &Server) -> bool {
    server.placing.elsewhere.as_ref().is_some_and(|place| place.by == Some(step.change().image))
}

/// Whether it has gone there.
fn has_left(step: &Step<Resize>, server: &Server) -> bool {
    server.own_image == Some(step.change().image) && !leaves(step, server)
}

/// The record of the image as which the disk goes.
fn draft(step: &Step<Resize>, transaction: Transaction, record: &Record<Server>) -> Result<Transaction, Failure> {
    let image = step.change().image;
    let name: Name = format!("resized-{image}").parse().map_err(Failure::fatal)?;
    drafted(&step.compute, transaction, record, image, &name, Labels::default(), true).map_err(Failure::fatal)
}

/// Claims room for both sizes where the server is, or for the new one on another node.
fn claim(step: &Step<Resize>) -> Answer<Placed> {
    let record = step.own()?;
    let here = record.body.node.map(Placed::Bare).ok_or_else(|| {
        Failure::fatal(nephos_types::Error::conflict("wrong_state", "The server cannot be resized: it is on no node"))
    })?;
    if let Some(elsewhere) = &record.body.placing.elsewhere {
        return Ok(Done::value(Placed::Bare(elsewhere.node)));
    }
    let to = &step.change().to;
    let mut body = record.body.clone();
    let demand = match whereto(&step.compute, &record, to).map_err(Failure::fatal)? {
        Whereto::Here => {
            body.resize = Some(record::Resize { other: to.clone(), waits: None });
            let transaction = step.claim(step.effects(), &record, &body)?;
            return Ok(Done::value(here).with(Some(transaction.update(&record, body))));
        }
        Whereto::Elsewhere(demand) => demand,
    };
    let Chosen { place, driver, ports, transaction } = choose_place(&step.compute, step.effects(), &record, &demand)?;
    let (node, by) = (place.node, Some(step.change().image));
    body.placing.elsewhere = Some(Place { node, driver, ports, taken: demand.amounts, by });
    let transaction = draft(step, step.claim(transaction, &record, &body)?, &record)?;
    Ok(Done::value(Placed::from(&place)).with(Some(transaction.update(&record, body))))
}

/// Undo of that.
fn give_back(step: &Step<Resize>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    let mut transaction = step.effects();
    if let Some(to) = body.placing.elsewhere.take() {
        transaction = turn_back(&step.compute, transaction, &record, &to);
    }
    if body.size() != step.before().size() {
        body.take_size(step.before().size());
        body.generation += 1;
    }
    body.resize = None;
    let transaction = step.claim(transaction, &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// Decides whether the server goes back to where it was before it was resized, and claims there what its disk has grown.
fn claim_back(step: &Step<Resize>) -> Answer<Placed> {
    let record = step.own()?;
    let here = record.body.node.map(Placed::Bare).ok_or_else(|| {
        Failure::fatal(nephos_types::Error::conflict("wrong_state", "The server cannot be reverted: it is on no node"))
    })?;
    if let Some(home) = record.body.placing.elsewhere.as_ref().filter(|_| leaves(step, &record.body)) {
        return Ok(Done::value(Placed::Bare(home.node)));
    }
    let back = way_back(&step.compute, &record, &step.change().to).map_err(Failure::fatal)?;
    let (Back::Home(home), Some(node)) = (back, record.body.node) else { return Ok(Done::value(here)) };
    let group = record.body.placing.group;
    let preferred = group::prefer(&step.compute.store, step.effects(), group, node, home.node);
    let Some(transaction) = preferred else { return Ok(Done::value(here)) };
    let mut body = record.body.clone();
    let place = Placed::Bare(home.node);
    body.placing.elsewhere = Some(Place { by: Some(step.change().image), ..home });
    let transaction = draft(step, step.claim(transaction, &record, &body)?, &record)?;
    Ok(Done::value(place).with(Some(transaction.update(&record, body))))
}

/// Undo of that.
fn stay(step: &Step<Resize>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    let leaves = leaves(step, &body);
    let (Some(home), Some(node), true) = (&mut body.placing.elsewhere, body.node, leaves) else {
        return Ok(Done::value(()));
    };
    home.by = None;
    home.taken = step.before().old_size().map_or(home.taken, Size::amounts);
    let group = record.body.placing.group;
    let home = home.node;
    let transaction = group::prefer(&step.compute.store, step.effects(), group, home, node);
    // Whoever has joined it there in the meantime stays there.
    let transaction = step.claim(transaction.unwrap_or_else(|| step.effects()), &record, &body)?;
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// Whether nothing but the disk grows, and the node does that while the server runs.
fn is_hot(step: &Step<Resize>) -> Result<bool, Failure> {
    let record = step.own()?;
    let (now, to) = (step.before().size(), &step.change().to);
    // A disk that is to shrink back is none that grows.
    let only_disk = now.vcpus == to.vcpus && now.memory_mib == to.memory_mib && step.before().old_size().is_none();
    let node = record.body.node.and_then(|node| step.compute.nodes.summary(node));
    let grows = node.and_then(|node| Some(node.driver(&record.body.driver)?.features.contains(&Feature::GrowLive)));
    Ok(only_disk && grows == Some(true) && !leaves(step, &record.body))
}

/// Has the server's node forget it, if it goes to another one.
fn leave(step: &Step<Resize>) -> Answer<()> {
    let record = step.own()?;
    if !leaves(step, &record.body) {
        return Ok(Done::value(()));
    }
    Ok(absent(&step.compute, &step.context, step.name, &record).unwrap_or_else(|| Done::value(())))
}

/// Undo of that: the node makes it again.
fn make_again(step: &Step<Resize>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    let mut body = record.body.clone();
    if !leaves(step, &body) || body.wanted != WantedPower::Absent {
        return Ok(Done::value(()));
    }
    let transaction = made_from(step, step.effects(), &mut body, step.change().image)?;
    body.snapshots.clear();
    Ok(Done::value(()).with(Some(transaction.update(&record, body))))
}

/// Gives the server its size: where it is, or in the place where it goes.
fn change(step: &Step<Resize>) -> Answer<()> {
    let record = step.own()?;
    let to = &step.change().to;
    if has_left(step, &record.body) {
        return Ok(Done::value(()));
    }
    // What has been reverted has no other size any more.
    let reverts = step.before().old_size().is_some();
    if leaves(step, &record.body) {
        let resize = (!reverts).then(|| record::Resize { other: step.before().size(), waits: None });
        return change_place(step, &record, to.clone(), resize, None);
    }
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

/// Undo of that, if the server has changed its place: it leaves again, and is made where it was.
fn change_back(step: &Step<Resize>) -> Answer<()> {
    let Some(record) = step.still_own()? else { return Ok(Done::value(())) };
    if !has_left(step, &record.body) {
        return Ok(Done::value(()));
    }
    if let Some(not_yet) = absent(&step.compute, &step.context, step.name, &record) {
        return Ok(not_yet);
    }
    let before = step.before();
    change_place(step, &record, before.size(), before.resize(), Some(step.change().image))
}

/// The server is in its other place from now on, made there from the copy of its disk; the one that it leaves stays
/// claimed. `by`: the image as which it is to leave again.
fn change_place(
    step: &Step<Resize>,
    record: &Record<Server>,
    size: Size,
    resize: Option<record::Resize>,
    by: Option<ImageId>,
) -> Answer<()> {
    let mut body = record.body.clone();
    let Some(to) = body.placing.elsewhere.take() else { return Ok(Done::value(())) };
    body.placing.elsewhere = record.body.place().map(|from| Place { by, ..from });
    let transaction = made_from(step, step.effects(), &mut body, step.change().image)?;
    body.take_place(&to);
    body.take_size(size);
    body.resize = resize;
    Ok(Done::value(()).with(Some(transaction.update(record, body))))
}

/// Undo of it all. A disk that has left a node is the copy of what it was; else the copy goes.
fn give_up(step: &Step<Resize>) -> Answer<()> {
    let image = step.change().image;
    match step.still_own()?.filter(|record| record.body.own_image == Some(image)) {
        None => discard(step, image),
        Some(record) => step.give_up(step.effects(), |server| {
            server.image = record.body.image.clone();
            server.incarnation = record.body.incarnation;
        }),
    }
}
