//! The node protocol, answered.

use std::time::Duration;

use nephos_node_api::{
    AgentProgram, Boxed, Content, ControlPlane, Desired, DesiredServer, Duplex, Enrolment, EnrolmentAnswer,
    HELLO_FIRST, Hello, HelloAnswer, PROTOCOL_VERSION, Renewal, Report, SnapshotHeader,
};
use nephos_types::{Bytes, Error, ErrorKind, ImageId, NodeId, Result, StreamId, Timestamp};
use tokio::time::Instant;

use super::{Node, Nodes, Reachable, program};

impl ControlPlane for Nodes {
    fn enrol(&self, address: String, enrolment: Enrolment) -> Boxed<'_, EnrolmentAnswer> {
        Box::pin(self.enrol_machine(address, enrolment))
    }

    fn hello(&self, node: NodeId, address: String, hello: Hello) -> Boxed<'_, HelloAnswer> {
        Box::pin(async move {
            self.certain(node).await?;
            let live = self.live(node)?;
            // The version before is spoken too; a newer agent speaks ours.
            if hello.protocol == 0 || hello.protocol + 1 < PROTOCOL_VERSION {
                return Err(Error::new(ErrorKind::Unsupported, "agent_too_old", "The agent is too old")
                    .detail(format!(
                        "it speaks version {} of the node protocol, here {PROTOCOL_VERSION} is spoken",
                        hello.protocol
                    ))
                    .next("install the same version of nephos on the node", None));
            }
            let Hello { agent_version, inventory, program, .. } = hello;
            let was = {
                let mut state = live.state();
                state.greeted = true;
                state.heard = Instant::now();
                // The agent may have been restarted with an earlier clock.
                state.reported = Timestamp::default();
                std::mem::replace(&mut state.reachable, Reachable::Up)
            };
            self.amend(&node.to_string(), node, |record| {
                record.reach(live.state().reachable);
                record.address = Some(address.clone());
                record.controller = self.own_name().map(ToOwned::to_owned);
                record.agent_version = Some(agent_version.clone());
                record.inventory = Some(inventory.clone());
                record.program.clone_from(&program);
            })
            .await?;
            if was != Reachable::Up {
                self.write_reachable(node).await;
            }
            if program.is_some() {
                // Whether it is the same as ours will be asked.
                program::Program::own().await?;
            }
            self.signal(node);
            let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            Ok(HelloAnswer {
                protocol: hello.protocol.min(PROTOCOL_VERSION),
                node,
                report_every_ms: milliseconds(self.settings.report_every),
                usage_every_ms: milliseconds(self.settings.usage_every),
            })
        })
    }

    fn desired(&self, node: NodeId, after: Option<u64>, wait: Duration) -> Boxed<'_, Desired> {
        Box::pin(async move {
            let workload = self.workload()?;
            self.certain(node).await?;
            let live = self.live(node)?;
            let mut revisions = live.revisions();
            let until = Instant::now() + wait;
            // The revision is read before what it stands for, so that a change in between is told next time.
            let mut revision = *revisions.borrow_and_update();
            while Some(revision) == after {
                match tokio::time::timeout_at(until, revisions.changed()).await {
                    Ok(Ok(())) => revision = *revisions.borrow_and_update(),
                    Ok(Err(_)) | Err(_) => break,
                }
            }
            let wanted = self.record(node)?.body.wanted_program.clone();
            let program = wanted.map(|wanted| AgentProgram { sha256: wanted.sha256, size: Bytes(wanted.size) });
            let mut streams: Vec<_> = live.state().streams.iter().map(|pending| pending.request.clone()).collect();
            streams.extend(self.wishes(node));
            let (servers, networks) = (workload.desired(node), workload.networks(node));
            Ok(Desired { revision, servers, streams, networks, program })
        })
    }

    fn report(&self, node: NodeId, address: String, report: Report) -> Boxed<'_, ()> {
        Box::pin(async move {
            self.certain(node).await?;
            let live = self.live(node)?;
            let _in_order = live.reporting.lock().await;
            let record = self.record(node)?;
            let ours = record.body.controller.as_deref() == self.own_name();
            {
                let state = live.state();
                if !state.greeted || !ours {
                    return Err(Error::new(ErrorKind::Precondition, HELLO_FIRST, "The control plane has restarted")
                        .next("say hello first", None));
                }
                if report.at <= state.reported {
                    // Delayed or repeated on the way: what it says has been said better since.
                    return Ok(());
                }
            }
            self.heard(node, &live).await;
            let conditions = conditions(&report);
            let moved = record.body.address.as_ref() != Some(&address);
            if moved || !is_noted(&record.body, &conditions) {
                self.amend(&node.to_string(), node, |record| {
                    record.address = Some(address.clone());
                    record.note(&conditions);
                })
                .await?;
                self.signal(node);
            }
            if !report.servers.is_empty() {
                self.workload()?.report(node, &report.servers).await?;
            }
            live.state().reported = report.at;
            Ok(())
        })
    }

    fn renew(&self, node: NodeId, renewal: Renewal) -> Boxed<'_, EnrolmentAnswer> {
        Box::pin(self.renew_certificate(node, renewal))
    }

    fn image(&self, node: NodeId, image: ImageId) -> Boxed<'_, Content> {
        Box::pin(async move {
            let workload = self.workload()?;
            let wanted = workload.desired(node);
            let needed = wanted.iter().flat_map(DesiredServer::images).any(|source| source.id == image);
            if !needed && !workload.may_fetch(node, image) {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "image_not_wanted",
                    "No server of this node is made from the image",
                ));
            }
            let images = self.images.get().ok_or_else(|| Error::bug("images were not attached to the nodes"))?;
            images.open(image).await
        })
    }

    fn program(&self, node: NodeId, sha256: String) -> Boxed<'_, Content> {
        Box::pin(async move {
            let wanted = self.record(node)?.body.wanted_program.clone();
            if wanted.is_none_or(|wanted| wanted.sha256 != sha256) {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "program_not_wanted",
                    "The node has no use for this program",
                ));
            }
            program::Program::own().await?.open(&sha256).await
        })
    }

    fn snapshot(&self, node: NodeId, image: ImageId, header: SnapshotHeader, content: Content) -> Boxed<'_, ()> {
        Box::pin(async move {
            let wanted = self.workload()?.desired(node);
            if !wanted.iter().flat_map(|server| &server.snapshots).any(|task| task.image == image) {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "snapshot_not_wanted",
                    "Nobody wants this copy of a disk",
                ));
            }
            let images = self.images.get().ok_or_else(|| Error::bug("images were not attached to the nodes"))?;
            images.receive(node, image, header, content).await
        })
    }

    fn accept_stream(&self, node: NodeId, stream: StreamId, duplex: Box<dyn Duplex>) -> Boxed<'_, ()> {
        Box::pin(async move { self.answer_stream(node, stream, Ok(duplex)) })
    }

    fn refuse_stream(&self, node: NodeId, stream: StreamId, error: Error) -> Boxed<'_, ()> {
        Box::pin(async move {
            let error: Result<Box<dyn Duplex>> = Err(error);
            self.answer_stream(node, stream, error)
        })
    }
}

/// A node whose clock differs by more shows and logs times that mislead, and soon cannot prove who it is.
const CLOCKS_DIFFER: Duration = Duration::from_secs(30);
/// Bounds on what a node says of its health.
const MOST_CONDITIONS: usize = 16;
const LONGEST_MESSAGE: usize = 1000;

/// What somebody should look at, as code and message.
fn conditions(report: &Report) -> Vec<(String, String)> {
    let cut = |text: &str| text.chars().take(LONGEST_MESSAGE).collect::<String>();
    let said = report.health.iter().take(MOST_CONDITIONS);
    let mut conditions: Vec<_> = said.map(|condition| (cut(&condition.code), cut(&condition.message))).collect();
    let now = Timestamp::now();
    let difference = now.since(report.at).max(report.at.since(now));
    if difference > CLOCKS_DIFFER {
        let message = "its clock differs from the control plane's by more than 30 s; synchronise both by NTP";
        conditions.push(("clock_differs".to_owned(), message.to_owned()));
    }
    conditions
}

fn is_noted(node: &Node, conditions: &[(String, String)]) -> bool {
    node.health.len() == conditions.len()
        && node
            .health
            .iter()
            .zip(conditions)
            .all(|(noted, (code, message))| noted.code == *code && noted.message == *message)
}
