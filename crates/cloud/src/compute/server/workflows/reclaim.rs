//! Changing what is claimed for a server that stays where it is: on its node, and of its project's quota.

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
    let more = body.amounts().minus(record.body.amounts());
    if let Some(project) = record.meta.project {
        quota::check(&compute.store, project, more)?;
    }
    record.body.node.map_or(Ok(()), |node| fits(compute, &summary(compute, node)?, more))
}

/// Adds to a transaction what it takes for the claims to be those of `body` instead of the record's.
pub(crate) fn change(
    compute: &Compute,
    mut transaction: Transaction,
    record: &Record<Server>,
    body: &Server,
) -> Result<Transaction> {
    let (old, new) = (record.body.amounts(), body.amounts());
    let (more, less) = (new.minus(old), old.minus(new));
    if let Some(project) = record.meta.project {
        quota::check(&compute.store, project, more)?;
        transaction = quota::change(&compute.store, transaction, project, more, less);
    }
    let Some(node) = record.body.node else { return Ok(transaction) };
    let claim = |transaction: Transaction, what, more, less, most| match (more, less) {
        (0, 0) => transaction,
        (0, less) => transaction.add(capacity(node, what), -signed(less), Bound::Any),
        (more, _) => transaction.add(capacity(node, what), signed(more), Bound::AtMost(signed(most))),
    };
    // A node that has been removed gives back and takes nothing.
    let most = if more == Amounts::default() {
        Amounts::default()
    } else {
        let summary = summary(compute, node)?;
        fits(compute, &summary, more)?;
        summary.capacity
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

fn fits(compute: &Compute, summary: &Summary, more: Amounts) -> Result<()> {
    let free = summary.capacity.minus(used(compute, summary.id));
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
