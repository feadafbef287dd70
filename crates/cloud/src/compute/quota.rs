//! Quotas: how many servers, CPUs and how much memory a project may use.
//!
//! Use is kept in bounded counters of the store, so that it is exact whatever goes on at once. Limits are a record per
//! project; without one the defaults hold.

use std::sync::Arc;

use nephos_ops::compute::{self as ops, Allowance, ShowQuota, UpdateQuota};
use nephos_store::{Bound, Draft, Kind, Store, Transaction};
use nephos_types::{Error, ErrorKind, Number, ProjectId, Result};
use serde::{Deserialize, Serialize};

use super::{Compute, keypair, placement::Amounts};
use crate::{
    core::Handlers,
    identity::kinds::Project,
    session::Session,
    workflow::{MOST_SCHEDULES, schedules_counter},
};

/// A project's limits, as stored; the record's id is the project's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// Servers.
    pub servers: u64,
    /// Virtual CPUs of all servers.
    pub vcpus: u64,
    /// Memory of all servers, in MiB.
    pub memory_mib: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { servers: 20, vcpus: 40, memory_mib: 80 * 1024 }
    }
}

impl Kind for Quota {
    type Id = ProjectId;
    const NAME: &'static str = "quota";
}

pub(super) fn counter(project: ProjectId, what: &str) -> String {
    format!("quota/{project}/{what}")
}

fn limits(store: &Store, project: ProjectId) -> Quota {
    store.get::<Quota>(project).map_or_else(Quota::default, |record| record.body)
}

fn amount(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Adds a server's use to the transaction that makes it.
pub(super) fn take(store: &Store, transaction: Transaction, project: ProjectId, amounts: Amounts) -> Transaction {
    let quota = limits(store, project);
    transaction
        .add(counter(project, "servers"), 1, Bound::AtMost(amount(quota.servers)))
        .add(counter(project, "vcpus"), amount(amounts.vcpus), Bound::AtMost(amount(quota.vcpus)))
        .add(counter(project, "memory_mib"), amount(amounts.memory_mib), Bound::AtMost(amount(quota.memory_mib)))
}

/// Takes a server's use away in the transaction that ends it.
pub(super) fn give_back(transaction: Transaction, project: ProjectId, amounts: Amounts) -> Transaction {
    transaction
        .add(counter(project, "servers"), -1, Bound::Any)
        .add(counter(project, "vcpus"), -amount(amounts.vcpus), Bound::Any)
        .add(counter(project, "memory_mib"), -amount(amounts.memory_mib), Bound::Any)
}

/// Refuses what a project's quota has no room for. The transaction decides; this tells in time.
pub(super) fn check(store: &Store, project: ProjectId, more: Amounts) -> Result<()> {
    let quota = limits(store, project);
    for (what, more, limit) in [("vcpus", more.vcpus, quota.vcpus), ("memory_mib", more.memory_mib, quota.memory_mib)] {
        let counter = counter(project, what);
        let value = store.counter(&counter);
        if more > 0 && value.saturating_add(amount(more)) > amount(limit) {
            return Err(exceeded(&counter, value, amount(more), amount(limit))
                .unwrap_or_else(|| Error::bug("a quota without words")));
        }
    }
    Ok(())
}

/// Adds to a transaction that a server takes so much more, or less.
pub(super) fn change(
    store: &Store,
    mut transaction: Transaction,
    project: ProjectId,
    more: Amounts,
    less: Amounts,
) -> Transaction {
    let quota = limits(store, project);
    let amounts = [
        ("vcpus", more.vcpus, less.vcpus, quota.vcpus),
        ("memory_mib", more.memory_mib, less.memory_mib, quota.memory_mib),
    ];
    for (what, more, less, limit) in amounts {
        if more > 0 {
            transaction = transaction.add(counter(project, what), amount(more), Bound::AtMost(amount(limit)));
        } else if less > 0 {
            transaction = transaction.add(counter(project, what), -amount(less), Bound::Any);
        }
    }
    transaction
}

/// The refusal, if a commit failed because one of these counters is full.
pub(super) fn exceeded(key: &str, value: i64, need: i64, limit: i64) -> Option<Error> {
    let what = match key.strip_prefix("quota/")?.rsplit('/').next()? {
        "servers" => "servers",
        "vcpus" => "vCPU",
        "memory_mib" => "MiB of memory",
        _ => return None,
    };
    Some(
        Error::new(ErrorKind::Quota, "quota_exceeded", "The project's quota refuses")
            .detail(format!("need {need} {what} more, have {value} of {limit}"))
            .next("see the quota", Some("nephos quota show".to_owned()))
            .next("delete what is not needed, or ask an administrator for more", None),
    )
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, show);
    handlers.handle(compute, update);
}

fn view(compute: &Compute, session: &Session, project: ProjectId) -> Result<ops::Quota> {
    let store = &compute.store;
    let quota = limits(store, project);
    let size = |value: i64| u64::try_from(value).unwrap_or(0);
    let used = |what| size(store.counter(&counter(project, what)));
    let fixed = |used: i64, limit: i64| Allowance { limit: size(limit), used: size(used) };
    let [(images, most_images), (bytes, most_bytes)] = compute.images.usage(project);
    let keypairs = store.counter(&keypair::counter(session.identity()?.user));
    Ok(ops::Quota {
        project,
        servers: Allowance { limit: quota.servers, used: used("servers") },
        vcpus: Allowance { limit: quota.vcpus, used: used("vcpus") },
        memory_mib: Allowance { limit: quota.memory_mib, used: used("memory_mib") },
        images: fixed(images, most_images),
        image_mib: fixed(size(bytes).div_ceil(1 << 20).cast_signed(), most_bytes >> 20),
        schedules: fixed(store.counter(&schedules_counter(project)), MOST_SCHEDULES),
        keypairs: fixed(keypairs, keypair::MOST),
    })
}

async fn show(compute: Arc<Compute>, session: Session, input: ShowQuota) -> Result<ops::Quota> {
    let project = match &input.project {
        Some(reference) => session.find::<Project>(reference)?.meta.id,
        None => session.project()?,
    };
    view(&compute, &session, project)
}

async fn update(compute: Arc<Compute>, session: Session, input: UpdateQuota) -> Result<ops::Quota> {
    let project = session
        .decide(|transaction| {
            let project = session.find::<Project>(&input.project)?;
            let id = project.meta.id;
            let record = compute.store.get::<Quota>(id);
            let old = record.as_ref().map_or_else(Quota::default, |record| record.body);
            let new = Quota {
                servers: input.servers.map_or(old.servers, Number::get),
                vcpus: input.vcpus.map_or(old.vcpus, Number::get),
                memory_mib: input.memory_mib.map_or(old.memory_mib, Number::get),
            };
            // The project shall not go meanwhile, or its quota would stay behind.
            let transaction = transaction.expect(&project);
            Ok((
                match record {
                    Some(record) => transaction.update(&record, new),
                    None => transaction.create(Draft::new(id, new).project(id)),
                },
                id,
            ))
        })
        .await?;
    view(&compute, &session, project)
}
