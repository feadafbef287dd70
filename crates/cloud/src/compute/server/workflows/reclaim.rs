//! Changing what is claimed for a server on the nodes where it has a place, and of its project's quota.

use nephos_store::{Bound, Record, Transaction};
use nephos_types::{Error, ErrorKind, NodeId, Result};

use super::{capacity, signed, used};
use crate::{
    compute::{Compute, quota, server::Server},
    node::Summary,
    placement::Amounts,
};

/// Refuses what there is no room for if `body` is to be instead of the record's. The transaction decides; this tells in
/// time.
pub(crate) fn check(compute: &Compute, record: &Record<Server>, body: &Server) -> Result<()> {
    check_quota(compute, record, body)?;
    record.body.node.map_or(Ok(()), |node| fits(compute, node, body.amounts().minus(record.body.amounts())))
}

/// Refuses what the project's quota has no room for.
pub(crate) fn check_quota(compute: &Compute, record: &Record<Server>, body: &Server) -> Result<()> {
    let more = body.charged().minus(record.body.charged());
    record.meta.project.map_or(Ok(()), |project| quota::check(&compute.store, project, more))
}

/// Adds to a transaction what it takes for the claims to be those of `body` instead of the record's. Its places must be
/// the same ones, but for what is claimed there.
pub(crate) fn change(
    compute: &Compute,
    mut transaction: Transaction,
    record: &Record<Server>,
    body: &Server,
) -> Result<Transaction> {
    if let Some(project) = record.meta.project {
        check_quota(compute, record, body)?;
        let (old, new) = (record.body.charged(), body.charged());
        transaction = quota::change(&compute.store, transaction, project, new.minus(old), old.minus(new));
    }
    if let Some(node) = record.body.node {
        transaction = change_on(compute, transaction, node, record.body.amounts(), body.amounts())?;
    }
    match (&record.body.placing.elsewhere, &body.placing.elsewhere) {
        (Some(old), Some(new)) if old.node == new.node => {
            change_on(compute, transaction, old.node, old.taken, new.taken)
        }
        _ => Ok(transaction),
    }
}

fn change_on(
    compute: &Compute,
    mut transaction: Transaction,
    node: NodeId,
    old: Amounts,
    new: Amounts,
) -> Result<Transaction> {
    let (more, less) = (new.minus(old), old.minus(new));
    let claim = |transaction: Transaction, what, more, less, most| match (more, less) {
        (0, 0) => transaction,
        (0, less) => transaction.add(capacity(node, what), -signed(less), Bound::Any),
        (more, _) => transaction.add(capacity(node, what), signed(more), Bound::AtMost(signed(most))),
    };
    // A node that has been removed gives back and takes nothing.
    let most = if more == Amounts::default() {
        Amounts::default()
    } else {
        fits(compute, node, more)?;
        summary(compute, node)?.capacity
    };
    transaction = claim(transaction, "vcpus", more.vcpus, less.vcpus, most.vcpus);
    transaction = claim(transaction, "memory_mib", more.memory_mib, less.memory_mib, most.memory_mib);
    transaction = claim(transaction, "disk_gib", more.disk_gib, less.disk_gib, most.disk_gib);
    compute.candidates.take(node, more);
    compute.candidates.give_back(node, less);
    Ok(transaction)
}

fn summary(compute: &Compute, node: NodeId) -> Result<Summary> {
    compute.nodes.summary(node).ok_or_else(|| Error::not_found("node", node))
}

/// Refuses if so much more does not fit on a node.
pub(crate) fn fits(compute: &Compute, node: NodeId, more: Amounts) -> Result<()> {
    let summary = summary(compute, node)?;
    let free = summary.capacity.minus(used(compute, node));
    let mut error = Error::new(ErrorKind::Capacity, "no_placement", "The server's node has no room for it")
        .detail(format!("node {}", summary.name))
        .next("shelve the server, and unshelve it where there is more room", None);
    for (constraint, need, have, unit) in [
        ("vcpus", more.vcpus, free.vcpus, "vCPU"),
        ("memory", more.memory_mib, free.memory_mib, "MiB"),
        ("disk", more.disk_gib, free.disk_gib, "GiB"),
    ] {
        if need > have {
            let detail = format!("need {need} {unit} more, have {have} {unit}");
            error = error.reason(summary.name.as_str(), constraint, detail);
        }
    }
    if error.reasons.is_empty() { Ok(()) } else { Err(error) }
}
