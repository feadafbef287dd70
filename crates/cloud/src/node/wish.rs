//! Streams to nodes that another process of the control plane hears.
//!
//! What a node should do is told by the process that it polls, so whoever wants a stream writes that down for that one
//! to find, with the address at which it waits itself; the node dials there. So no process passes on another's bytes.

use nephos_node_api::StreamRequest;
use nephos_store::{Author, Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{NodeId, Result, StreamId, Timestamp};
use serde::{Deserialize, Serialize};

use super::Nodes;

/// Wishes that are older were left by a process that died.
const OLD: f64 = 60.0;

/// Somebody at another process waits for a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StreamWish {
    /// Who is to dial.
    pub(crate) node: NodeId,
    /// What the node is told.
    pub(crate) request: StreamRequest,
}

impl Kind for StreamWish {
    type Id = StreamId;
    const NAME: &'static str = "stream_wish";
    const AUDITED: bool = false;
    const INDEXES: &'static [&'static str] = &["node"];
    fn index(record: &Record<Self>, _: &str) -> Vec<String> {
        vec![record.body.node.to_string()]
    }
}

/// Takes the wish back when nobody waits any more.
pub(super) struct Wished {
    store: Store,
    id: StreamId,
}

impl Drop for Wished {
    fn drop(&mut self) {
        let (store, id) = (self.store.clone(), self.id);
        tokio::spawn(async move {
            if let Some(record) = store.get::<StreamWish>(id)
                && let Err(error) = store.commit(Transaction::new(Author::new("streams")).delete(&record)).await
            {
                tracing::debug!(%error, "a wish for a stream was left");
            }
        });
    }
}

impl Nodes {
    /// Writes down that somebody here waits for a stream from a node that is heard elsewhere.
    pub(super) async fn wish(&self, node: NodeId, request: StreamRequest) -> Result<Wished> {
        let id = request.id;
        let mut transaction =
            Transaction::new(Author::new("streams")).create(Draft::new(id, StreamWish { node, request }));
        let now = Timestamp::now();
        let all = self.store.list::<StreamWish>(&Query::all().limit(100)).items;
        for old in all.iter().filter(|wish| now.since(wish.meta.created_at).as_secs_f64() > OLD) {
            transaction = transaction.delete(old);
        }
        self.store.commit(transaction).await?;
        Ok(Wished { store: self.store.clone(), id })
    }

    /// The streams that a node is to dial elsewhere.
    pub(super) fn wishes(&self, node: NodeId) -> Vec<StreamRequest> {
        let now = Timestamp::now();
        let all = self.store.list::<StreamWish>(&Query::all().index("node", node)).items;
        let fresh = all.iter().filter(|wish| now.since(wish.meta.created_at).as_secs_f64() <= OLD);
        fresh.map(|wish| wish.body.request.clone()).collect()
    }
}
