//! What `cargo xtask bench` measures from inside: the workflow engine on the real store, and a large cloud's data.

use std::{path::Path, time::Duration};

use nephos_store::{Author, CommitError, Draft, Query, Record, Sqlite, Store, Transaction};
use nephos_types::{Error, Id, Name, NodeId, Result, ServerId};
use nephos_workflow::bench::{Figure, steps_per_second};

use crate::{
    CLOUD,
    compute::server::Server,
    control::{DATABASE, kinds},
    journal::StoreJournal,
    name_claim,
    node::{Node, Reachable},
};

/// Records written in one transaction.
const AT_ONCE: usize = 1000;

/// Runs workflows on a new store in a folder, `at_once` at once, for about `time`.
///
/// # Errors
/// If the store fails.
pub async fn workflow_steps(folder: &Path, at_once: usize, time: Duration) -> Result<Figure> {
    let store = Store::open(Sqlite::open(folder.join(DATABASE)).await?, kinds()).await?;
    let figure = steps_per_second(StoreJournal::new(store.clone()), at_once, time).await?;
    store.close().await?;
    Ok(figure)
}

/// Makes the one server of a stopped cloud's data folder many, on as many nodes that nothing is heard of.
///
/// # Errors
/// If there is no server or no node to copy, or the store fails.
pub async fn multiply(data: &Path, nodes: usize, servers: usize) -> Result<()> {
    let store = Store::open(Sqlite::open(data.join(DATABASE)).await?, kinds()).await?;
    let node = first::<Node>(&store)?;
    let server = first::<Server>(&store)?;
    // Ids hold a moment and chance; so many of one moment would meet each other.
    let (first_node, first_server) = (NodeId::new().bits(), ServerId::new().bits());
    let ids: Vec<NodeId> = (first_node..).take(nodes).map(NodeId::from_bits).collect();
    let body = Node { reachable: Reachable::Down, local: None, ..node.body.clone() };
    for (chunk, ids) in ids.chunks(AT_ONCE).enumerate() {
        let mut transaction = transaction();
        for (place, id) in ids.iter().enumerate() {
            let name: Name = format!("many-{}", chunk * AT_ONCE + place).parse()?;
            transaction = transaction
                .claim(name_claim::<Node>(CLOUD, &name), id)
                .create(Draft::new(*id, body.clone()).name(name));
        }
        commit(&store, transaction).await?;
    }
    let project = server.meta.project.ok_or_else(|| Error::bug("a server belongs to no project"))?;
    for start in (0..servers).step_by(AT_ONCE) {
        let mut transaction = transaction();
        for number in start..servers.min(start + AT_ONCE) {
            let id = ServerId::from_bits(first_server + number as u64);
            let name: Name = format!("many-{number}").parse()?;
            let node = ids.get(number % nodes.max(1)).copied();
            transaction = transaction
                .claim(name_claim::<Server>(&project.to_string(), &name), id)
                .create(Draft::new(id, Server { node, ..server.body.clone() }).project(project).name(name));
        }
        commit(&store, transaction).await?;
    }
    store.close().await
}

fn transaction() -> Transaction {
    Transaction::new(Author::new("bench"))
}

async fn commit(store: &Store, transaction: Transaction) -> Result<()> {
    store.commit(transaction).await.map(|_| ()).map_err(CommitError::into)
}

fn first<K: nephos_store::Kind>(store: &Store) -> Result<std::sync::Arc<Record<K>>> {
    let found = store.list::<K>(&Query::all().limit(1)).items.into_iter().next();
    found.ok_or_else(|| Error::not_found(K::NAME, "to copy"))
}
