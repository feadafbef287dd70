//! Streams between somebody here and a node: asked for in what the node should do, dialled by the node.

use std::{sync::Arc, time::Duration};

use nephos_node_api::{Duplex, StreamPurpose, StreamRequest};
use nephos_types::{Error, ErrorKind, NodeId, Result, StreamId};
use tokio::sync::oneshot;

use super::{Node, Nodes, live::Live};

/// How long a node may take to dial.
const DIAL_WITHIN: Duration = Duration::from_secs(15);
/// Streams of one node that are waited for at the same time.
const MOST: usize = 64;

/// A stream that somebody waits for.
pub(super) struct Pending {
    pub(super) request: StreamRequest,
    taker: oneshot::Sender<Result<Box<dyn Duplex>>>,
}

/// Takes the request back when nobody waits any more.
struct Waiting {
    live: Arc<Live>,
    id: StreamId,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.live.state().streams.retain(|pending| pending.request.id != self.id);
    }
}

impl Nodes {
    /// Opens a stream to a node: asks the node to dial it, and waits until it has.
    ///
    /// # Errors
    /// Of kind `Unavailable` if the node is not up, `Timeout` if it does not dial in time, and whatever the node says
    /// if it cannot open the stream.
    pub async fn open_stream(&self, node: NodeId, purpose: StreamPurpose) -> Result<Box<dyn Duplex>> {
        let summary = self.summary(node).ok_or_else(|| Error::not_found("node", node))?;
        if !summary.up {
            return Err(Error::new(ErrorKind::Unavailable, "node_down", "The server's node is not heard of")
                .detail(format!("node {}", summary.name))
                .next("look at the node", Some(format!("nephos node show {}", summary.name))));
        }
        let live = self.live(node)?;
        let (taker, taken) = oneshot::channel();
        let id = StreamId::new();
        {
            let mut state = live.state();
            if state.streams.len() >= MOST {
                return Err(Error::new(
                    ErrorKind::RateLimited,
                    "too_many_streams",
                    "Too many streams wait for this node",
                )
                .next("try again in a moment", None));
            }
            state.streams.push(Pending { request: StreamRequest { id, purpose: purpose.clone(), at: None }, taker });
        }
        let waiting = Waiting { live: live.clone(), id };
        live.change();
        let elsewhere = self.store.get::<Node>(node).filter(|record| self.is_heard_elsewhere(&record.body));
        let wished = match (&self.settings.peers, elsewhere) {
            (Some(peers), Some(_)) => {
                let at = Some(peers.node_address().to_owned());
                Some(self.wish(node, StreamRequest { id, purpose, at }).await?)
            }
            _ => None,
        };
        let answer = tokio::time::timeout(DIAL_WITHIN, taken).await;
        drop(waiting);
        drop(wished);
        match answer {
            Ok(Ok(stream)) => stream,
            Ok(Err(_)) => Err(Error::bug("a stream was given up by whoever should have answered")),
            Err(_) => Err(Error::new(ErrorKind::Timeout, "node_silent", "The node did not open the stream in time")
                .detail(format!("node {}, {} s", summary.name, DIAL_WITHIN.as_secs()))),
        }
    }

    /// Gives whoever waits for a stream its answer.
    pub(super) fn answer_stream(&self, node: NodeId, stream: StreamId, answer: Result<Box<dyn Duplex>>) -> Result<()> {
        let live = self.live(node)?;
        let pending = {
            let mut state = live.state();
            let index = state.streams.iter().position(|pending| pending.request.id == stream);
            index.map(|index| state.streams.swap_remove(index))
        };
        let nobody = || Error::not_found("stream", stream);
        pending.ok_or_else(nobody)?.taker.send(answer).map_err(|_| nobody())
    }
}
