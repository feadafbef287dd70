//! The operations on nodes.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use nephos_ops::node as ops;
use nephos_store::{Bound, CommitError, Query};
use nephos_types::{Error, ErrorKind, NodeId, Page, Result};

use super::{
    JoinToken, Node, Nodes, Reachable, placing,
    record::{index_of, local_claim},
    upgrade,
};
use crate::{CLOUD, Handlers, Session, idempotency::Made, journal::Engine, name_claim};

const TOKEN_VALID: Duration = Duration::from_secs(3600);

impl Nodes {
    /// Registers the operations on nodes.
    pub fn register(self: &Arc<Self>, handlers: &mut Handlers) {
        handlers.handle(self, list);
        handlers.handle(self, show);
        handlers.handle(self, update);
        handlers.handle(self, delete);
        handlers.handle_creation(self, join_token, recall_join_token);
        placing::register(handlers, self);
    }

    /// What people see of a node.
    pub(crate) fn shown(&self, id: NodeId) -> Result<ops::Node> {
        self.view(&*self.record(id)?)
    }

    /// Registers what takes time, too.
    pub(crate) fn register_work(self: &Arc<Self>, handlers: &mut Handlers, engine: &Engine) -> Result<()> {
        let _ = self.engine.set(engine.clone());
        upgrade::register(self, handlers, engine)
    }
}

async fn list(nodes: Arc<Nodes>, session: Session, input: ops::ListNodes) -> Result<Page<ops::Node>> {
    let mut query = Query::all().limit(input.limit.map_or(100, |limit| limit.get() as usize));
    if let Some(after) = input.after {
        query = query.after(after);
    }
    if let Some(state) = input.state {
        let reachable = match state {
            ops::NodeState::Unknown => Reachable::Unknown,
            ops::NodeState::Up => Reachable::Up,
            ops::NodeState::Down => Reachable::Down,
        };
        query = query.index("reachable", index_of(reachable));
    }
    for (key, value) in &input.labels.0 {
        query = query.label(key, value);
    }
    let page = session.store().list::<Node>(&query);
    let items = page.items.iter().map(|record| nodes.brief(record)).collect::<Result<_>>()?;
    Ok(Page { items, next: page.next })
}

async fn show(nodes: Arc<Nodes>, session: Session, input: ops::ShowNode) -> Result<ops::Node> {
    nodes.view(&*session.find::<Node>(&input.node)?)
}

async fn update(nodes: Arc<Nodes>, session: Session, input: ops::UpdateNode) -> Result<ops::Node> {
    if input.reason.is_some() && input.enabled != Some(false) {
        return Err(Error::invalid("reason_without_disabling", "A reason is given for disabling a node only")
            .next("pass `enabled` false along with it", None));
    }
    let id = session
        .decide(|mut transaction| {
            let record = session.find::<Node>(&input.node)?;
            let mut edit = record.edit();
            if let Some(name) = input.name.clone().filter(|name| Some(name) != record.meta.name.as_ref()) {
                transaction = transaction.claim(name_claim::<Node>(CLOUD, &name), record.id());
                if let Some(old) = &record.meta.name {
                    transaction = transaction.release(name_claim::<Node>(CLOUD, old), record.id());
                }
                edit = edit.name(name);
            }
            if let Some(labels) = input.labels.clone() {
                edit = edit.labels(labels);
            }
            if input.enabled == Some(true) {
                placing::not_drained(&record)?;
            }
            edit = edit.modify(|node| match input.enabled {
                Some(true) => node.disabled = None,
                Some(false) => {
                    node.disabled = Some(input.reason.as_ref().map(ToString::to_string).unwrap_or_default());
                }
                None => {}
            });
            Ok((transaction.save(edit), record.id()))
        })
        .await?;
    nodes.version.fetch_add(1, Ordering::AcqRel);
    nodes.view(&*nodes.record(id)?)
}

async fn delete(nodes: Arc<Nodes>, session: Session, input: ops::DeleteNode) -> Result<()> {
    let name = input.node.clone();
    let id = loop {
        let record = session.find::<Node>(&input.node)?;
        if input.force && record.body.reachable == Reachable::Up {
            return Err(Error::conflict("node_up", "The node is up, so it is not removed by force")
                .detail("what runs on it would run on without anybody knowing")
                .next("delete its servers first", Some(format!("nephos server list --node {name}"))));
        }
        let servers = format!("capacity/{}/servers", record.id());
        if record.body.local.is_some()
            && record.body.reachable == Reachable::Up
            && session.store().counter(&servers) == 0
        {
            return Err(Error::conflict("node_up", "The node is this cloud's own machine, and its agent runs")
                .detail("the agent is part of `nephos up`; it would go on without a node, and make it anew at the next start")
                .next("to keep servers off it, disable it", Some(format!("nephos node update {name} --enabled=false"))));
        }
        let mut transaction = session.transaction().delete(&record);
        if let Some(name) = &record.meta.name {
            transaction = transaction.release(name_claim::<Node>(CLOUD, name), record.id());
        }
        if let Some(local) = &record.body.local {
            transaction = transaction.release(local_claim(local), record.id());
        }
        if !input.force {
            // One more would be too many: refused if there is any.
            transaction = transaction.add(servers.clone(), 1, Bound::AtMost(1)).add(servers, -1, Bound::Any);
        }
        match session.commit(transaction).await {
            Ok(_) => break record.id(),
            Err(CommitError::Conflict { .. }) => {}
            Err(CommitError::Exceeded { value, .. }) => {
                return Err(Error::conflict("node_in_use", "Servers are on the node")
                    .detail(format!("{value} of them, with those that go back there if their resize is reverted"))
                    .next(
                        "delete them first, or have their resizes decided",
                        Some(format!("nephos server list --node {name}")),
                    )
                    .next(
                        "if the machine is lost, remove it by force",
                        Some(format!("nephos node delete {name} --force")),
                    ));
            }
            Err(error) => return Err(error.into()),
        }
    };
    let live = nodes.live.write().unwrap_or_else(PoisonError::into_inner).remove(&id);
    nodes.version.fetch_add(1, Ordering::AcqRel);
    if let Some(live) = live {
        // Its poll ends and is refused.
        live.change();
    }
    Ok(())
}

async fn join_token(nodes: Arc<Nodes>, session: Session, input: ops::CreateJoinToken) -> Result<ops::JoinToken> {
    let address = match (&input.address, &nodes.settings.address) {
        (Some(address), _) => checked_address(address.as_str())?,
        (None, Some(address)) => match &nodes.settings.peers {
            // The agent goes on with the next one when one is gone.
            Some(peers) => peers.node_addresses().join(","),
            None => address.clone(),
        },
        (None, None) => {
            return Err(Error::new(ErrorKind::Unsupported, "no_node_listener", "Machines cannot join this cloud")
                .detail("the control plane listens on no address that nodes could reach")
                .next("start it with --node-listen ADDR:PORT", None));
        }
    };
    let valid = input.valid_for.map_or(TOKEN_VALID, |seconds| Duration::from_secs(seconds.get()));
    let (transaction, minted) = nodes.mint(session.transaction(), valid)?;
    session.commit_creation::<JoinToken>(transaction, minted.id, None).await?;
    Ok(ops::JoinToken {
        id: minted.id,
        command: format!("nephos agent --join https://{address} --token {}", minted.token.reveal()),
        token: minted.token,
        expires_at: minted.expires_at,
    })
}

async fn recall_join_token(_: Arc<Nodes>, _: Session, _: Made) -> Result<ops::JoinToken> {
    Err(Error::conflict("shown_once", "A join token is shown only once")
        .next("make another one, with another idempotency key", Some("nephos node join-token".to_owned())))
}

/// `HOST:PORT` that can stand in the printed command without meaning anything else to a shell.
fn checked_address(address: &str) -> Result<String> {
    let host_and_port = address.rsplit_once(':').filter(|(host, port)| {
        !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'[' | b']' | b':'))
            && port.parse::<u16>().is_ok_and(|port| port != 0)
    });
    match host_and_port {
        Some(_) => Ok(address.to_owned()),
        None => Err(Error::invalid("invalid_address", "Not an address that a machine can reach")
            .detail("it is `HOST:PORT`")
            .reason("address", "format", "HOST:PORT")),
    }
}
