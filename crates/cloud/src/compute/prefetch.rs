//! Bringing images to nodes before servers need them there: `image.prefetch`.
//!
//! While a run goes on, a claim for each node says that the node may fetch the image. On the node the image is in the
//! cache like any other: it goes when there is no room for what servers need.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::{StreamExt, future::BoxFuture, stream};
use nephos_node_api::{FetchReport, ImageSource, StreamPurpose, frame};
use nephos_ops::{
    Started,
    image::{Image as View, PrefetchImage},
};
use nephos_store::Transaction;
use nephos_types::{Error, ErrorKind, ImageId, NodeId, Result, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, Retry, StepContext};
use serde::{Deserialize, Serialize};

use super::{Compute, Held};
use crate::{
    core::Handlers,
    image,
    journal::{self, Effects},
    node::Node,
    session::{Session, refusal},
};

const NAME: &str = "image.prefetch";
/// Nodes that fetch at the same time, so that they do not take the control plane's network from everybody else.
const AT_ONCE: usize = 8;
const WITHIN: Duration = Duration::from_secs(6 * 3600);

/// What a run is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Input {
    /// The image, and what else it takes to boot it.
    sources: Vec<ImageSource>,
    nodes: Vec<NodeId>,
}

fn claim(node: NodeId, image: ImageId) -> String {
    format!("prefetch/{node}/{image}")
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) -> Result<()> {
    handlers.handle(compute, prefetch);
    compute.engine.register(definition(&Held::of(compute)))
}

impl Compute {
    /// Whether a node is asked to fetch an image that no server of it needs yet.
    pub(super) fn prefetches(&self, node: NodeId, image: ImageId) -> bool {
        self.store.owner(&claim(node, image)).is_some()
    }
}

async fn prefetch(compute: Arc<Compute>, session: Session, input: PrefetchImage) -> Result<Started<View>> {
    let workflow = WorkflowId::new();
    let image = session
        .decide_or(
            |mut transaction| {
                let bootable = compute.images.bootable(&session, &input.image)?;
                let nodes = nodes(&compute, &session, &input, &bootable.source)?;
                let mut sources = vec![bootable.source.clone()];
                if let nephos_node_api::BootSource::Kernel { kernel, initrd, .. } = &bootable.boot {
                    sources.extend([kernel].into_iter().chain(initrd).cloned());
                }
                for record in &bootable.records {
                    transaction = image::hold(transaction.expect(record), record.meta.id);
                }
                for node in &nodes {
                    for source in &sources {
                        transaction = transaction.claim(claim(*node, source.id), workflow);
                    }
                }
                let id = bootable.source.id;
                let run = compute
                    .engine
                    .prepare(NAME, workflow, &Input { sources, nodes })?
                    .subject(id.to_string())
                    .project(session.identity()?.project())
                    .author(journal::asked_by(&session));
                Ok((journal::start(transaction, run), id))
            },
            |error| match error {
                nephos_store::CommitError::Taken { .. } => {
                    Error::conflict("prefetch_goes_on", "The image is being sent to one of these nodes already")
                        .next("see how far it is", Some("nephos workflow list --open".to_owned()))
                }
                other => refusal(other),
            },
        )
        .await?;
    let resource = compute.images.shown(&session, image)?;
    compute.engine.kick(workflow);
    Ok(Started { workflow, resource })
}

/// The nodes that are named; otherwise all that are heard of and could boot the image.
fn nodes(compute: &Compute, session: &Session, input: &PrefetchImage, source: &ImageSource) -> Result<Vec<NodeId>> {
    let named = input.nodes.as_slice().iter().map(|node| Ok(session.find::<Node>(node)?.meta.id));
    let named = named.collect::<Result<BTreeSet<NodeId>>>()?;
    if !named.is_empty() {
        return Ok(named.into_iter().collect());
    }
    let could = compute.nodes.summaries().into_iter().filter(|node| {
        node.up
            && node.disabled.is_none()
            && node.drivers().iter().any(|driver| driver.disk_formats.contains(&source.format))
    });
    let could: Vec<NodeId> = could.map(|node| node.id).collect();
    if could.is_empty() {
        return Err(Error::new(ErrorKind::Capacity, "no_placement", "No node could boot the image")
            .next("see the nodes", Some("nephos node list".to_owned())));
    }
    Ok(could)
}

fn definition(held: &Held) -> Definition<Effects> {
    let mut definition = Definition::builder::<Input>(NAME);
    let (undoing, sending, ending) = (held.clone(), held.clone(), held.clone());
    definition
        .step("check request", |_| async { Ok(Done::value(())) })
        .undo(move |context, _: Option<()>| {
            let held = undoing.clone();
            async move {
                held.get()?;
                Ok(Done::value(()).with(Some(released(&context))))
            }
        })
        .add();
    definition
        .step("send to nodes", move |context| {
            let held = sending.clone();
            async move { send(&*held.get()?, &context).await }
        })
        .retry(Retry::attempts(3))
        .call_limit(WITHIN)
        .add();
    definition
        .step("finish", move |context| {
            let held = ending.clone();
            async move {
                held.get()?;
                Ok(Done::value(()).with(Some(released(&context))))
            }
        })
        .no_return()
        .add();
    definition.build()
}

/// Lets go of everything that the run has claimed and held.
fn released(context: &StepContext<Input>) -> Transaction {
    let input = context.input();
    let mut transaction = journal::effects(NAME, context.run_id());
    for source in &input.sources {
        transaction = image::let_go(transaction, source.id);
        for node in &input.nodes {
            transaction = transaction.release(claim(*node, source.id), context.run_id());
        }
    }
    transaction
}

async fn send(compute: &Compute, context: &StepContext<Input>) -> Result<Done<(), Effects>, Failure> {
    let input = context.input();
    let fetches: Vec<BoxFuture<'_, (NodeId, Result<()>)>> = input
        .nodes
        .iter()
        .map(|node| Box::pin(async { (*node, fetch(compute, *node, &input.sources).await) }) as BoxFuture<'_, _>)
        .collect();
    let mut sending = stream::iter(fetches).buffer_unordered(AT_ONCE);
    let (mut done, mut failed) = (0, None);
    while let Some((node, outcome)) = sending.next().await {
        match outcome {
            Ok(()) => done += 1,
            Err(error) => {
                tracing::info!(%node, error = %error.chain(), "an image could not be brought to a node");
                failed = Some(error);
            }
        }
        let percent = u8::try_from(done * 100 / input.nodes.len().max(1)).ok();
        context.progress(percent, format!("{done} of {} nodes have it", input.nodes.len()));
    }
    match failed {
        // The others are told apart by what they answer when asked again: at once.
        Some(error) => Err(error.into()),
        None => Ok(Done::value(())),
    }
}

/// Has a node fetch what it has not yet.
async fn fetch(compute: &Compute, node: NodeId, sources: &[ImageSource]) -> Result<()> {
    for source in sources {
        let purpose = StreamPurpose::FetchImage { image: source.clone() };
        let mut stream = compute.nodes.open_stream(node, purpose).await?;
        loop {
            match frame::read::<FetchReport>(&mut stream).await? {
                FetchReport::Underway { .. } => {}
                FetchReport::Ended { error: None } => break,
                FetchReport::Ended { error: Some(error) } => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
