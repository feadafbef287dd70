//! Where a server is to be with another size: where it is if that will do, else on another node; and with its old size
//! again where it was. Asked before the work begins, so that what cannot be is refused, and by the step that claims.

use nephos_driver::Feature;
use nephos_store::Record;
use nephos_types::{Error, ErrorKind, Result};

use super::{create::look, reclaim, relocate};
use crate::{
    compute::{
        Compute,
        server::{
            Server,
            record::{self, Place, Size},
        },
    },
    placement::{self, Amounts, Candidate, Demand, Nodes},
};

/// Refuses if a server that asked for what `change` makes it ask could not be where it is.
pub(crate) fn suits(compute: &Compute, record: &Record<Server>, change: impl FnOnce(&mut Server)) -> Result<()> {
    let mut server = record.body.clone();
    change(&mut server);
    let Some(node) = server.node.and_then(|node| compute.nodes.summary(node)) else { return Ok(()) };
    let demand = Demand { amounts: Amounts::default(), group: None, features: vec![], format: None, ..server.demand() };
    // Whether the node is up, and takes others, does not matter for one that is there.
    let candidate = Candidate {
        node: node.id,
        name: node.name.clone(),
        up: true,
        disabled: None,
        class: node.class.clone(),
        capacity: Amounts::default(),
        used: Amounts::default(),
    };
    placement::choose(&Nodes::new(vec![candidate]), &compute.policy(), &demand).map_err(|error| {
        let mut refusal = Error::conflict("node_unsuitable", "The server's node is not what would be asked for")
            .detail(format!("node {}", node.name));
        for reason in error.reasons {
            refusal = refusal.reason(reason.subject, reason.constraint, reason.detail);
        }
        refusal.next("move it to one that is", None)
    })?;
    Ok(())
}

/// Where a larger, or other, size is to be had.
pub(crate) enum Whereto {
    /// Where the server is.
    Here,
    /// On another node that meets this demand.
    Elsewhere(Demand),
}

/// Where a server is to be resized. The old size stays claimed along with the new one.
///
/// # Errors
/// If there is a place nowhere, with the reasons of its own node and of the others; or if a quota refuses.
pub(crate) fn whereto(compute: &Compute, record: &Record<Server>, to: &Size) -> Result<Whereto> {
    let mut larger = record.body.clone();
    larger.resize = Some(record::Resize { other: to.clone(), waits: None });
    reclaim::check_quota(compute, record, &larger)?;
    let stays = suits(compute, record, |server| server.placing.flavor = to.needs.clone())
        .and_then(|()| reclaim::check(compute, record, &larger));
    let Err(own) = stays else { return Ok(Whereto::Here) };
    if !copies(compute, &record.body) {
        return Err(own);
    }
    larger.placing.flavor = to.needs.clone();
    let demand = relocate::demand(compute, &larger, None);
    compute.candidates.check(&look(compute), &demand).map_err(|error| {
        own.reasons.into_iter().fold(error, |error, reason| {
            error.reason(reason.subject, reason.constraint, format!("{}, where the server is", reason.detail))
        })
    })?;
    room_for_copy(compute, record)?;
    Ok(Whereto::Elsewhere(demand))
}

/// Where a server is to get its old size back.
pub(crate) enum Back {
    /// Where it is now.
    Here,
    /// Where it was before, of which so much is claimed then.
    Home(Place),
}

/// Where a server whose resize is reverted is to be. What it takes is claimed in both places; but it stays where it is if
/// its disk has grown more than there is room for where it was, or nothing can be brought there now.
///
/// # Errors
/// If it has to stay where its old flavor does not want it to be.
pub(crate) fn way_back(compute: &Compute, record: &Record<Server>, to: &Size) -> Result<Back> {
    let Some(home) = &record.body.placing.elsewhere else { return Ok(Back::Here) };
    let taken = home.taken.most(to.amounts());
    let ready = compute.nodes.summary(home.node).is_some_and(|node| {
        node.up && node.disabled.is_none() && node.drivers().iter().any(|driver| driver.driver == home.driver)
    });
    let room = || reclaim::fits(compute, home.node, taken.minus(home.taken)).is_ok();
    if ready && copies(compute, &record.body) && room_for_copy(compute, record).is_ok() && room() {
        return Ok(Back::Home(Place { taken, ..home.clone() }));
    }
    suits(compute, record, |server| server.placing.flavor = to.needs.clone())?;
    Ok(Back::Here)
}

/// Whether the driver that runs a server makes copies of disks.
fn copies(compute: &Compute, server: &Server) -> bool {
    let node = server.node.and_then(|node| compute.nodes.summary(node));
    node.is_some_and(|node| {
        node.driver(&server.driver).is_some_and(|driver| driver.features.contains(&Feature::Snapshot))
    })
}

/// Refuses if the project may not have the image as which the disk would go to another node.
fn room_for_copy(compute: &Compute, record: &Record<Server>) -> Result<()> {
    let Some(project) = record.meta.project else { return Ok(()) };
    let [(used, limit), _] = compute.images.usage(project);
    if used < limit {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Quota, "quota_exceeded", "The project may have no more images")
        .detail(format!("have {used} of {limit}; the server's disk goes to another node as an image"))
        .next("delete images that are not needed", Some("nephos image list".to_owned())))
}
