//! Quotas: how many servers, CPUs and how much memory a project may use, and all projects of a domain in sum.
//!
//! Use is kept in bounded counters of the store, for the project and for its domain, in the same transaction: so both are
//! exact whatever goes on at once. Limits are a record per project and per domain; without one the defaults hold for a
//! project, and nothing stands against a domain.

use std::{collections::BTreeMap, fmt::Display, sync::Arc};

use nephos_ops::compute::{self as ops, Allowance, ShowDomainQuota, ShowQuota, UpdateDomainQuota, UpdateQuota};
use nephos_store::{Author, Bound, CommitError, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{DomainId, Error, ErrorKind, Id, Number, ProjectId, Reference, Result, WorkflowId};
use serde::{Deserialize, Serialize};

use super::{Compute, keypair};
use crate::{
    core::Handlers,
    identity::kinds::{Domain, Project},
    placement::Amounts,
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

/// A domain's limits, as stored; the record's id is the domain's. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainQuota {
    /// Servers.
    pub servers: Option<u64>,
    /// Virtual CPUs of all servers.
    pub vcpus: Option<u64>,
    /// Memory of all servers, in MiB.
    pub memory_mib: Option<u64>,
}

impl Kind for DomainQuota {
    type Id = DomainId;
    const NAME: &'static str = "domain_quota";
}

/// The counter of what a project, or a domain, uses.
pub(super) fn counter(owner: impl Display, what: &str) -> String {
    format!("quota/{owner}/{what}")
}

fn limits(store: &Store, project: ProjectId) -> Quota {
    store.get::<Quota>(project).map_or_else(Quota::default, |record| record.body)
}

fn domain_limits(store: &Store, domain: DomainId) -> DomainQuota {
    store.get::<DomainQuota>(domain).map_or_else(DomainQuota::default, |record| record.body)
}

/// The domain of a project; a project never changes it.
fn domain_of(store: &Store, project: ProjectId) -> Option<DomainId> {
    store.get::<Project>(project).map(|project| project.body.domain)
}

fn amount(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Everything that bounds a project's servers: counter, and the most of it.
fn bounds(store: &Store, project: ProjectId, what: &str) -> Vec<(String, i64)> {
    let (own, domain) = (limits(store, project), domain_of(store, project));
    let all = domain.map(|domain| domain_limits(store, domain)).unwrap_or_default();
    let (own, all) = match what {
        "servers" => (own.servers, all.servers),
        "vcpus" => (own.vcpus, all.vcpus),
        _ => (own.memory_mib, all.memory_mib),
    };
    let of_domain = domain.map(|domain| (counter(domain, what), all.map_or(i64::MAX, amount)));
    [(counter(project, what), amount(own))].into_iter().chain(of_domain).collect()
}

fn step(store: &Store, transaction: Transaction, project: ProjectId, what: &str, more: i64) -> Transaction {
    bounds(store, project, what).into_iter().fold(transaction, |transaction, (counter, most)| match more {
        0 => transaction,
        less if less < 0 => transaction.add(counter, less, Bound::Any),
        more => transaction.add(counter, more, Bound::AtMost(most)),
    })
}

/// Adds a server's use to the transaction that makes it.
pub(super) fn take(store: &Store, transaction: Transaction, project: ProjectId, amounts: Amounts) -> Transaction {
    let transaction = step(store, transaction, project, "servers", 1);
    change(store, transaction, project, amounts, Amounts::default())
}

/// Takes a server's use away in the transaction that ends it.
pub(super) fn give_back(store: &Store, transaction: Transaction, project: ProjectId, amounts: Amounts) -> Transaction {
    let transaction = step(store, transaction, project, "servers", -1);
    change(store, transaction, project, Amounts::default(), amounts)
}

/// Refuses what a quota has no room for. The transaction decides; this tells in time.
pub(super) fn check(store: &Store, project: ProjectId, more: Amounts) -> Result<()> {
    for (what, more) in [("vcpus", more.vcpus), ("memory_mib", more.memory_mib)] {
        for (counter, limit) in bounds(store, project, what) {
            let value = store.counter(&counter);
            if more > 0 && value.saturating_add(amount(more)) > limit {
                return Err(exceeded(&counter, value, amount(more), limit)
                    .unwrap_or_else(|| Error::bug("a quota without words")));
            }
        }
    }
    Ok(())
}

/// Adds to a transaction that a server takes so much more, or less.
pub(super) fn change(
    store: &Store,
    transaction: Transaction,
    project: ProjectId,
    more: Amounts,
    less: Amounts,
) -> Transaction {
    let step_of = |more, less| if more > 0 { amount(more) } else { -amount(less) };
    let transaction = step(store, transaction, project, "vcpus", step_of(more.vcpus, less.vcpus));
    step(store, transaction, project, "memory_mib", step_of(more.memory_mib, less.memory_mib))
}

/// Counts what the projects of domains use, once: clouds that are older than quotas of domains did not.
pub(crate) async fn count_domains(store: &Store) -> Result<()> {
    const DONE: &str = "compute/domain-quotas";
    loop {
        if store.owner(DONE).is_some() {
            return Ok(());
        }
        // Each attempt is an owner of its own: of several processes that begin at once, one counts.
        let mut transaction =
            Transaction::new(Author::new("cloud").operation("upgrade")).claim(DONE, WorkflowId::new());
        let mut sums: BTreeMap<String, i64> = BTreeMap::new();
        for project in store.list::<Project>(&Query::all()).items {
            for what in ["servers", "vcpus", "memory_mib"] {
                let used = store.counter(&counter(project.meta.id, what));
                *sums.entry(counter(project.body.domain, what)).or_default() += used;
            }
        }
        for (counter, sum) in sums.into_iter().filter(|(_, sum)| *sum != 0) {
            transaction = transaction.add(counter, sum, Bound::Any);
        }
        match store.commit(transaction).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Taken { .. } | CommitError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The refusal, if a commit failed because one of these counters is full.
pub(super) fn exceeded(key: &str, value: i64, need: i64, limit: i64) -> Option<Error> {
    let what = match key.strip_prefix("quota/")?.rsplit('/').next()? {
        "servers" => "servers",
        "vcpus" => "vCPU",
        "memory_mib" => "MiB of memory",
        _ => return None,
    };
    let detail = format!("need {need} {what} more, have {value} of {limit}");
    if key.strip_prefix("quota/").is_some_and(|key| key.starts_with(DomainId::PREFIX)) {
        return Some(
            Error::new(ErrorKind::Quota, "quota_exceeded", "The quota of the project's domain refuses")
                .detail(format!("all projects of the domain together: {detail}"))
                .next("delete what is not needed, or ask an administrator for more", None),
        );
    }
    Some(
        Error::new(ErrorKind::Quota, "quota_exceeded", "The project's quota refuses")
            .detail(detail)
            .next("see the quota", Some("nephos quota show".to_owned()))
            .next("delete what is not needed, or ask an administrator for more", None),
    )
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, show);
    handlers.handle(compute, update);
    handlers.handle(compute, show_domain);
    handlers.handle(compute, update_domain);
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

/// A domain that the caller may see.
fn domain(session: &Session, reference: &Reference) -> Result<Arc<Record<Domain>>> {
    session.find::<Domain>(reference)
}

fn domain_view(store: &Store, domain: DomainId) -> ops::DomainQuota {
    let quota = domain_limits(store, domain);
    let allowance = |what: &str, limit| ops::DomainAllowance {
        limit,
        used: u64::try_from(store.counter(&counter(domain, what))).unwrap_or(0),
    };
    ops::DomainQuota {
        domain,
        servers: allowance("servers", quota.servers),
        vcpus: allowance("vcpus", quota.vcpus),
        memory_mib: allowance("memory_mib", quota.memory_mib),
    }
}

async fn show_domain(compute: Arc<Compute>, session: Session, input: ShowDomainQuota) -> Result<ops::DomainQuota> {
    Ok(domain_view(&compute.store, domain(&session, &input.domain)?.meta.id))
}

async fn update_domain(compute: Arc<Compute>, session: Session, input: UpdateDomainQuota) -> Result<ops::DomainQuota> {
    let id = session
        .decide(|transaction| {
            let domain = domain(&session, &input.domain)?;
            let id = domain.meta.id;
            let record = compute.store.get::<DomainQuota>(id);
            let old = record.as_ref().filter(|_| !input.unlimited).map(|record| record.body).unwrap_or_default();
            let new = DomainQuota {
                servers: input.servers.map(Number::get).or(old.servers),
                vcpus: input.vcpus.map(Number::get).or(old.vcpus),
                memory_mib: input.memory_mib.map(Number::get).or(old.memory_mib),
            };
            // The domain shall not go meanwhile, or its quota would stay behind.
            let transaction = transaction.expect(&*domain);
            Ok((
                match record {
                    Some(record) => transaction.update(&record, new),
                    None => transaction.create(Draft::new(id, new)),
                },
                id,
            ))
        })
        .await?;
    Ok(domain_view(&compute.store, id))
}

#[cfg(test)]
mod tests {
    use nephos_store::{Kinds, Sqlite};

    use super::*;

    /// A project of a domain, with these counters from before quotas of domains.
    fn project(transaction: Transaction, domain: u64, used: [i64; 3]) -> (Transaction, ProjectId) {
        let id = ProjectId::new();
        let body =
            Project { domain: DomainId::from_bits(domain), parent: None, description: String::new(), enabled: true };
        let transaction = transaction.create(Draft::new(id, body));
        let counted = ["servers", "vcpus", "memory_mib"].into_iter().zip(used);
        (
            counted.fold(transaction, |transaction, (what, used)| transaction.add(counter(id, what), used, Bound::Any)),
            id,
        )
    }

    #[tokio::test]
    async fn what_projects_used_before_is_counted_for_their_domains_once() {
        let folder = tempfile::tempdir().unwrap();
        let kinds = Kinds::new().with::<Project>().with::<Quota>().with::<DomainQuota>();
        let store = Store::open(Sqlite::open(folder.path().join("db")).await.unwrap(), kinds).await.unwrap();
        let transaction = Transaction::new(Author::new("test"));
        let (transaction, one) = project(transaction, 1, [2, 4, 1024]);
        let (transaction, _) = project(transaction, 1, [1, 8, 512]);
        let (transaction, _) = project(transaction, 2, [0, 0, 0]);
        store.commit(transaction).await.unwrap();
        let sums = |domain: u64| {
            ["servers", "vcpus", "memory_mib"].map(|what| store.counter(&counter(DomainId::from_bits(domain), what)))
        };
        // Several processes begin at once.
        let (first, second) = tokio::join!(count_domains(&store), count_domains(&store));
        first.and(second).unwrap();
        assert_eq!((sums(1), sums(2)), ([3, 12, 1536], [0, 0, 0]));
        // From now on both are counted together, and a later start adds nothing.
        let more = Amounts { vcpus: 3, memory_mib: 100, disk_gib: 7 };
        store.commit(take(&store, Transaction::new(Author::new("test")), one, more)).await.unwrap();
        count_domains(&store).await.unwrap();
        assert_eq!(sums(1), [4, 15, 1636]);
    }
}
