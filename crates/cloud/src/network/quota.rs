//! How many networks and the like a project may have. The limits are Neutron's defaults.

use std::fmt::Display;

use nephos_store::{Bound, Transaction};
use nephos_types::{Error, ErrorKind, ProjectId};

use crate::identity::ProjectUse;

/// What is counted, how people call it, and the most of a project.
const LIMITS: [(&str, &str, i64); 5] = [
    ("networks", "networks", 100),
    ("subnets", "subnets", 100),
    ("ports", "ports", 500),
    ("security_groups", "security groups", 10),
    ("security_group_rules", "rules of security groups", 100),
];

fn counter(project: impl Display, what: &str) -> String {
    format!("quota/{project}/{what}")
}

/// One more, in the transaction that makes it.
pub(super) fn take(transaction: Transaction, project: ProjectId, what: &str, count: usize) -> Transaction {
    let most = LIMITS.iter().find(|(name, ..)| *name == what).map_or(0, |(.., most)| *most);
    transaction.add(counter(project, what), i64::try_from(count).unwrap_or(i64::MAX), Bound::AtMost(most))
}

/// So many less, in the transaction that ends them.
pub(super) fn give_back(transaction: Transaction, project: ProjectId, what: &str, count: usize) -> Transaction {
    transaction.add(counter(project, what), -i64::try_from(count).unwrap_or(0), Bound::Any)
}

/// The refusal, if a commit failed because one of these counters is full.
pub(crate) fn exceeded(key: &str, limit: i64) -> Option<Error> {
    let what = key.strip_prefix("quota/")?.rsplit('/').next()?;
    let (_, words, _) = LIMITS.iter().find(|(name, ..)| *name == what)?;
    Some(
        Error::new(ErrorKind::Quota, "quota_exceeded", format!("The project has too many {words}"))
            .detail(format!("at most {limit}"))
            .next("delete what is not needed", None),
    )
}

/// What of this family stands against deleting a project.
pub(crate) fn project_uses() -> [ProjectUse; 2] {
    fn count(store: &nephos_store::Store, project: ProjectId, what: &str) -> u64 {
        u64::try_from(store.counter(&counter(project, what))).unwrap_or(0)
    }
    let networks = ProjectUse {
        what: "networks",
        count: |store, project| count(store, project, "networks"),
        counter: Some(|project| counter(project, "networks")),
    };
    let ports = ProjectUse {
        what: "ports",
        count: |store, project| count(store, project, "ports"),
        counter: Some(|project| counter(project, "ports")),
    };
    [networks, ports]
}
