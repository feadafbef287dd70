//! What people may ask of security groups and their rules.
//!
//! Each project has a group named `default`, made when it is first needed: for servers that name none. As in Neutron it lets
//! everything out, and in whatever comes from those that have it, too.

use std::sync::Arc;

use nephos_ops::network::{
    self as ops, CreateSecurityGroup, CreateSecurityGroupRule, DeleteSecurityGroup, DeleteSecurityGroupRule, Direction,
    IpVersion, ListSecurityGroupRules, ListSecurityGroups, ShowSecurityGroup, ShowSecurityGroupRule,
    UpdateSecurityGroup,
};
use nephos_store::{Bound, CommitError, Draft, Query, Record, Store, Transaction};
use nephos_types::{Error, Name, Page, PageRequest, ProjectId, Result, SecurityGroupId, SecurityGroupRuleId};

use super::{
    Networks,
    kinds::{BY_GROUP, BY_REMOTE_GROUP, Matched, Remote, SecurityGroup, SecurityGroupRule, project_of},
    networks::explain,
    quota,
};
use crate::{
    Handlers, Session,
    idempotency::Made,
    resolve::{name_claim, name_of},
    session::Visible,
};

/// The name of the group for servers that name none.
const DEFAULT: &str = "default";
/// The most rules of a group.
const MOST_RULES: usize = 100;

pub(super) fn register(handlers: &mut Handlers, networks: &Arc<Networks>) {
    handlers.handle_creation(networks, create, |networks: Arc<Networks>, _: Session, made: Made| async move {
        networks.group_shown(made.id::<SecurityGroup>()?)
    });
    handlers.handle(networks, list);
    handlers.handle(networks, show);
    handlers.handle(networks, update);
    handlers.handle(networks, delete);
    handlers.handle_creation(networks, create_rule, |networks: Arc<Networks>, _: Session, made: Made| async move {
        let id = made.id::<SecurityGroupRule>()?;
        let record = networks.store.get::<SecurityGroupRule>(id);
        Ok(rule_view(&*record.ok_or_else(|| Error::not_found("security-group-rule", id))?))
    });
    handlers.handle(networks, list_rules);
    handlers.handle(networks, show_rule);
    handlers.handle(networks, delete_rule);
}

/// The counter of ports that have a group, and of rules of other groups that name it.
fn uses(group: SecurityGroupId) -> String {
    format!("security_group/{group}/uses")
}

/// Something has the group, from this transaction on.
pub(super) fn hold(transaction: Transaction, group: SecurityGroupId) -> Transaction {
    transaction.add(uses(group), 1, Bound::Any)
}

/// Something has the group no longer.
pub(super) fn let_go(transaction: Transaction, group: SecurityGroupId) -> Transaction {
    transaction.add(uses(group), -1, Bound::Any)
}

/// The rules of a new group: everything goes out; into the default one comes what is from itself.
fn first_rules(group: SecurityGroupId, default: bool) -> Vec<SecurityGroupRule> {
    let rule = |direction, version, remote| SecurityGroupRule {
        group,
        direction,
        version,
        matched: Matched::Any,
        remote,
        description: String::new(),
    };
    let mut rules = vec![];
    for version in [IpVersion::Ipv4, IpVersion::Ipv6] {
        rules.push(rule(Direction::Egress, version, Remote::Any));
        if default {
            rules.push(rule(Direction::Ingress, version, Remote::Group { group }));
        }
    }
    rules
}

fn add_rules(mut transaction: Transaction, project: ProjectId, rules: Vec<SecurityGroupRule>) -> Transaction {
    transaction = quota::take(transaction, project, "security_group_rules", rules.len());
    for rule in rules {
        if let Remote::Group { group } = rule.remote
            && group != rule.group
        {
            transaction = hold(transaction, group);
        }
        transaction = transaction.create(Draft::new(SecurityGroupRuleId::new(), rule).project(project));
    }
    transaction
}

fn draft(
    transaction: Transaction,
    id: SecurityGroupId,
    project: ProjectId,
    name: &Name,
    body: SecurityGroup,
    labels: nephos_types::Labels,
) -> Transaction {
    let default = name.as_str() == DEFAULT;
    let transaction = quota::take(transaction, project, "security_groups", 1)
        .claim(name_claim::<SecurityGroup>(project, name), id)
        .create(Draft::new(id, body).project(project).name(name.clone()).labels(labels));
    add_rules(transaction, project, first_rules(id, default))
}

/// The project's default group; made in this transaction if it is not there. Whoever finds its name taken decides again.
pub(super) fn default_of(
    store: &Store,
    transaction: Transaction,
    project: ProjectId,
) -> Result<(Transaction, SecurityGroupId)> {
    let name: Name = DEFAULT.parse()?;
    let there = store.owner(&name_claim::<SecurityGroup>(project, &name)).and_then(|id| id.parse().ok());
    if let Some(record) = there.and_then(|id: SecurityGroupId| store.get::<SecurityGroup>(id)) {
        return Ok((transaction.expect(&record), record.meta.id));
    }
    let id = SecurityGroupId::new();
    let body = SecurityGroup { description: "For servers that name no security group".to_owned() };
    Ok((draft(transaction, id, project, &name, body, nephos_types::Labels::default()), id))
}

impl Networks {
    pub(super) fn rules_of(&self, group: SecurityGroupId) -> Vec<Arc<Record<SecurityGroupRule>>> {
        self.store.list::<SecurityGroupRule>(&Query::all().index(BY_GROUP, group)).items
    }

    fn group_shown(&self, id: SecurityGroupId) -> Result<ops::SecurityGroup> {
        self.group_view(&*self.store.get::<SecurityGroup>(id).ok_or_else(|| Error::not_found("security-group", id))?)
    }

    fn group_view(&self, record: &Record<SecurityGroup>) -> Result<ops::SecurityGroup> {
        Ok(ops::SecurityGroup {
            id: record.meta.id,
            name: name_of(record)?,
            project: project_of(record),
            description: record.body.description.clone(),
            rules: self.rules_of(record.meta.id).iter().map(|rule| rule_view(rule)).collect(),
            labels: record.meta.labels.clone(),
            created_at: record.meta.created_at,
            updated_at: record.meta.updated_at,
        })
    }
}

fn rule_view(record: &Record<SecurityGroupRule>) -> ops::SecurityGroupRule {
    let body = &record.body;
    let (protocol, ports, icmp_type, icmp_code) = match body.matched {
        Matched::Any => (None, None, None, None),
        Matched::Tcp { ports } => (Some("tcp".to_owned()), ports, None, None),
        Matched::Udp { ports } => (Some("udp".to_owned()), ports, None, None),
        Matched::Icmp { kind, code } => (Some("icmp".to_owned()), None, kind, code),
        Matched::Number { number } => (Some(number.to_string()), None, None, None),
    };
    let (remote, remote_group) = match body.remote {
        Remote::Any => (None, None),
        Remote::Range { cidr } => (Some(cidr), None),
        Remote::Group { group } => (None, Some(group)),
    };
    ops::SecurityGroupRule {
        id: record.meta.id,
        security_group: body.group,
        project: project_of(record),
        direction: body.direction,
        version: body.version,
        protocol,
        ports,
        icmp_type,
        icmp_code,
        remote,
        remote_group,
        description: body.description.clone(),
        created_at: record.meta.created_at,
    }
}

/// Looking at a project's groups makes its default one, as whoever lists them expects to find it.
async fn with_default(session: &Session) -> Result<()> {
    let Some(project) = session.identity()?.project() else { return Ok(()) };
    let there = session.store().owner(&name_claim::<SecurityGroup>(project, DEFAULT)).is_some();
    if there || session.store().get::<crate::identity::kinds::Project>(project).is_none() {
        return Ok(());
    }
    let decide = |transaction: Transaction| Ok((default_of(session.store(), transaction, project)?.0, ()));
    session.decide_again(decide, |error| super::ports::again(error, false), explain).await
}

async fn create(networks: Arc<Networks>, session: Session, input: CreateSecurityGroup) -> Result<ops::SecurityGroup> {
    let (id, project) = (SecurityGroupId::new(), session.project()?);
    let body = SecurityGroup { description: input.description.as_ref().map(ToString::to_string).unwrap_or_default() };
    let transaction = draft(session.transaction(), id, project, &input.name, body, input.labels.clone());
    session.commit_creation::<SecurityGroup>(transaction, id, None).await.map_err(explain)?;
    networks.group_shown(id)
}

async fn list(
    networks: Arc<Networks>,
    session: Session,
    input: ListSecurityGroups,
) -> Result<Page<ops::SecurityGroup>> {
    with_default(&session).await?;
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<SecurityGroup>(&request)?;
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => query = query.project(project),
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    let page = networks.store.list::<SecurityGroup>(&query);
    let items = page.items.iter().map(|record| networks.group_view(record)).collect::<Result<_>>()?;
    Ok(Page { items, next: page.next })
}

async fn show(networks: Arc<Networks>, session: Session, input: ShowSecurityGroup) -> Result<ops::SecurityGroup> {
    if input.security_group.as_str() == DEFAULT {
        with_default(&session).await?;
    }
    networks.group_view(&*session.find::<SecurityGroup>(&input.security_group)?)
}

async fn update(networks: Arc<Networks>, session: Session, input: UpdateSecurityGroup) -> Result<ops::SecurityGroup> {
    let decide = |mut transaction: Transaction| {
        let record = session.find::<SecurityGroup>(&input.security_group)?;
        let (id, project, old) = (record.meta.id, project_of(&record), name_of(&record)?);
        let mut edit = record.edit();
        if let Some(new) = input.name.as_ref().filter(|new| **new != old) {
            if old.as_str() == DEFAULT {
                return Err(Error::conflict("default_group", "The default security group keeps its name"));
            }
            transaction = transaction
                .release(name_claim::<SecurityGroup>(project, &old), id)
                .claim(name_claim::<SecurityGroup>(project, new), id);
            edit = edit.name(new.clone());
        }
        if let Some(labels) = &input.labels {
            edit = edit.labels(labels.clone());
        }
        if let Some(description) = &input.description {
            edit = edit.modify(|group| group.description = description.to_string());
        }
        Ok((transaction.save(edit), id))
    };
    let id = session.decide_or(decide, explain).await?;
    networks.group_shown(id)
}

/// A rule's end, in the transaction that ends it.
fn end_rule(transaction: Transaction, record: &Record<SecurityGroupRule>) -> Transaction {
    let transaction = match record.body.remote {
        Remote::Group { group } if group != record.body.group => let_go(transaction, group),
        _ => transaction,
    };
    quota::give_back(transaction.delete(record), project_of(record), "security_group_rules", 1)
}

async fn delete(networks: Arc<Networks>, session: Session, input: DeleteSecurityGroup) -> Result<()> {
    let decide = |mut transaction: Transaction| {
        let record = session.find::<SecurityGroup>(&input.security_group)?;
        let (id, project, name) = (record.meta.id, project_of(&record), name_of(&record)?);
        if name.as_str() == DEFAULT && !session.is_admin() {
            return Err(Error::conflict("default_group", "The default security group stays")
                .detail("servers that name no group have it"));
        }
        for rule in networks.rules_of(id) {
            transaction = end_rule(transaction, &rule);
        }
        transaction = transaction
            .add(uses(id), 1, Bound::AtMost(1))
            .add(uses(id), -1, Bound::Any)
            .release(name_claim::<SecurityGroup>(project, &name), id)
            .delete(&record);
        Ok((quota::give_back(transaction, project, "security_groups", 1), ()))
    };
    let refused = |error| match error {
        CommitError::Exceeded { ref counter, value, .. } if counter.starts_with("security_group/") => {
            Error::conflict("security_group_in_use", "The security group is in use")
                .detail(format!("{value} ports have it, or rules of other groups name it"))
                .next("see which ports", Some("nephos port list".to_owned()))
        }
        other => explain(other),
    };
    session.decide_or(decide, refused).await
}

fn matched(input: &CreateSecurityGroupRule) -> Result<Matched> {
    let invalid = |field: &str, why: &str| {
        Error::invalid("invalid_rule", "Such a rule cannot be made").reason(field, "value", why)
    };
    let code = |number: nephos_types::Number<0, 255>| u8::try_from(number.get()).ok();
    let matched = match input.protocol.as_ref().map(|text| text.as_str().to_ascii_lowercase()).as_deref() {
        None | Some("any") => Matched::Any,
        Some("tcp" | "6") => Matched::Tcp { ports: input.ports },
        Some("udp" | "17") => Matched::Udp { ports: input.ports },
        Some("icmp" | "icmpv6" | "1" | "58") => {
            Matched::Icmp { kind: input.icmp_type.and_then(code), code: input.icmp_code.and_then(code) }
        }
        Some(number) => Matched::Number {
            number: number.parse().map_err(|_| invalid("protocol", "tcp, udp, icmp, or a number from 0 to 255"))?,
        },
    };
    if input.ports.is_some() && !matches!(matched, Matched::Tcp { .. } | Matched::Udp { .. }) {
        return Err(invalid("ports", "only tcp and udp have ports"));
    }
    if (input.icmp_type.is_some() || input.icmp_code.is_some()) && !matches!(matched, Matched::Icmp { .. }) {
        return Err(invalid("icmp_type", "only icmp has types and codes"));
    }
    if input.icmp_code.is_some() && input.icmp_type.is_none() {
        return Err(invalid("icmp_code", "a code is one of a type: say which type"));
    }
    Ok(matched)
}

async fn create_rule(
    networks: Arc<Networks>,
    session: Session,
    input: CreateSecurityGroupRule,
) -> Result<ops::SecurityGroupRule> {
    let id = SecurityGroupRuleId::new();
    let matched = matched(&input)?;
    if input.security_group.as_str() == DEFAULT
        || input.remote_group.as_ref().is_some_and(|group| group.as_str() == DEFAULT)
    {
        with_default(&session).await?;
    }
    let decide = |mut transaction: Transaction| {
        let group = session.find::<SecurityGroup>(&input.security_group)?;
        let project = project_of(&group);
        let remote = match (&input.remote, &input.remote_group) {
            (Some(_), Some(_)) => {
                return Err(Error::invalid("invalid_rule", "A rule is about addresses or about a group, not both")
                    .next("leave out --remote or --remote-group", None));
            }
            (Some(cidr), None) => Remote::Range { cidr: *cidr },
            (None, Some(reference)) => {
                let remote = session.find::<SecurityGroup>(reference)?;
                if remote.meta.project != group.meta.project {
                    return Err(Error::not_found("security-group", reference));
                }
                if remote.meta.id != group.meta.id {
                    transaction = hold(transaction.expect(&remote), remote.meta.id);
                }
                Remote::Group { group: remote.meta.id }
            }
            (None, None) => Remote::Any,
        };
        let of_remote = match remote {
            Remote::Range { cidr } if cidr.is_ipv6() => Some(IpVersion::Ipv6),
            Remote::Range { .. } => Some(IpVersion::Ipv4),
            _ => None,
        };
        let version = input.version.or(of_remote).unwrap_or(IpVersion::Ipv4);
        if of_remote.is_some_and(|other| other != version) {
            return Err(Error::invalid("invalid_rule", "Version and addresses of the rule do not go together"));
        }
        let body = SecurityGroupRule {
            group: group.meta.id,
            direction: input.direction.unwrap_or(Direction::Ingress),
            version,
            matched,
            remote,
            description: input.description.as_ref().map(ToString::to_string).unwrap_or_default(),
        };
        let others = networks.rules_of(group.meta.id);
        if others.len() >= MOST_RULES {
            return Err(Error::invalid("too_many_rules", "The security group has as many rules as possible")
                .detail(format!("at most {MOST_RULES}")));
        }
        let same = |other: &&Arc<Record<SecurityGroupRule>>| {
            SecurityGroupRule { description: String::new(), ..other.body.clone() }
                == SecurityGroupRule { description: String::new(), ..body.clone() }
        };
        if let Some(other) = others.iter().find(same) {
            return Err(
                Error::conflict("rule_exists", "The security group has this rule").detail(other.meta.id.to_string())
            );
        }
        // The group's record is touched, so that no two rules are made without regard to each other.
        transaction = quota::take(transaction.save(group.edit()), project, "security_group_rules", 1)
            .create(Draft::new(id, body).project(project));
        Ok((session.remember::<SecurityGroupRule>(transaction, id, None), ()))
    };
    session.decide_or(decide, explain).await?;
    let record = networks.store.get::<SecurityGroupRule>(id);
    Ok(rule_view(&*record.ok_or_else(|| Error::not_found("security-group-rule", id))?))
}

async fn list_rules(
    networks: Arc<Networks>,
    session: Session,
    input: ListSecurityGroupRules,
) -> Result<Page<ops::SecurityGroupRule>> {
    with_default(&session).await?;
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<SecurityGroupRule>(&request)?;
    if let Some(group) = &input.security_group {
        query = query.index(BY_GROUP, session.find::<SecurityGroup>(group)?.meta.id);
    }
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => query = query.project(project),
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    let page = networks.store.list::<SecurityGroupRule>(&query);
    Ok(Page { items: page.items.iter().map(|record| rule_view(record)).collect(), next: page.next })
}

async fn show_rule(_: Arc<Networks>, session: Session, input: ShowSecurityGroupRule) -> Result<ops::SecurityGroupRule> {
    Ok(rule_view(&*session.find::<SecurityGroupRule>(&input.rule)?))
}

async fn delete_rule(_: Arc<Networks>, session: Session, input: DeleteSecurityGroupRule) -> Result<()> {
    let decide = |transaction: Transaction| {
        let record = session.find::<SecurityGroupRule>(&input.rule)?;
        Ok((end_rule(transaction, &record), ()))
    };
    session.decide_or(decide, explain).await
}

/// Rules of other groups that name this one.
pub(super) fn naming(store: &Store, group: SecurityGroupId) -> Vec<Arc<Record<SecurityGroupRule>>> {
    store.list::<SecurityGroupRule>(&Query::all().index(BY_REMOTE_GROUP, group)).items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_rule_is_about() {
        let rule = |more: serde_json::Value| {
            let mut input = serde_json::json!({ "security_group": "g" });
            input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            matched(&serde_json::from_value(input).unwrap())
        };
        use serde_json::json;
        assert_eq!(rule(json!({})).unwrap(), Matched::Any);
        assert_eq!(
            rule(json!({ "protocol": "TCP", "ports": "80" })).unwrap(),
            Matched::Tcp { ports: "80".parse().ok() }
        );
        assert_eq!(
            rule(json!({ "protocol": "58", "icmp_type": 8 })).unwrap(),
            Matched::Icmp { kind: Some(8), code: None }
        );
        assert_eq!(rule(json!({ "protocol": "112" })).unwrap(), Matched::Number { number: 112 });
        for bad in [
            json!({ "protocol": "256" }),
            json!({ "protocol": "tcpx" }),
            json!({ "ports": "80" }),
            json!({ "protocol": "icmp", "ports": "80" }),
            json!({ "protocol": "tcp", "icmp_type": 1 }),
            json!({ "protocol": "icmp", "icmp_code": 1 }),
        ] {
            assert!(rule(bad.clone()).is_err(), "{bad}");
        }
    }
}
