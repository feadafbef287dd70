//! A control plane in a few lines: what should be is set by the test, what is reported is kept.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use nephos_driver::{Firmware, Observation, Power, network::NetworkPlan};
use nephos_node_api::{
    AgentProgram, BootSource, Boxed, Condition, Content, ControlPlane, Desired, DesiredServer, Duplex, Enrolment,
    EnrolmentAnswer, HELLO_FIRST, Hello, HelloAnswer, Renewal, Report, ServerReport, ServerState, SnapshotHeader,
    StreamPurpose, StreamRequest, WantedPower,
};
use nephos_types::{Bytes, Error, ErrorKind, ImageId, NodeId, Result, ServerId, StreamId};
use tokio::sync::{mpsc, watch};

#[derive(Default)]
pub(crate) struct State {
    pub(crate) servers: BTreeMap<ServerId, DesiredServer>,
    pub(crate) streams: Vec<StreamRequest>,
    pub(crate) reports: BTreeMap<ServerId, ServerReport>,
    pub(crate) hellos: u32,
    pub(crate) heard: u32,
    pub(crate) images: BTreeMap<ImageId, Vec<u8>>,
    pub(crate) fetched: u32,
    /// Reports to lose, before or after they were heard.
    pub(crate) lose_before: u32,
    pub(crate) lose_after: u32,
    pub(crate) heard_hello: bool,
    pub(crate) away: bool,
    /// Copies of disks that arrived: how often, and what came.
    pub(crate) copies: BTreeMap<ImageId, (u32, SnapshotHeader, Vec<u8>)>,
    /// Copies to break off in the middle.
    pub(crate) break_copies: u32,
    /// What the agent should be, and what it can fetch.
    pub(crate) program: Option<AgentProgram>,
    pub(crate) programs: BTreeMap<String, Vec<u8>>,
    pub(crate) fetched_programs: u32,
    pub(crate) health: Vec<Condition>,
}

pub(crate) struct Fake {
    pub(crate) node: NodeId,
    pub(crate) state: Mutex<State>,
    revision: watch::Sender<u64>,
    changed: watch::Sender<u64>,
    opened: mpsc::UnboundedSender<(StreamId, Result<Box<dyn Duplex>>)>,
    pub(crate) streams: tokio::sync::Mutex<mpsc::UnboundedReceiver<(StreamId, Result<Box<dyn Duplex>>)>>,
}

impl Fake {
    pub(crate) fn new() -> Arc<Self> {
        let (opened, streams) = mpsc::unbounded_channel();
        Arc::new(Self {
            node: NodeId::new(),
            state: Mutex::default(),
            revision: watch::Sender::new(7),
            changed: watch::Sender::new(0),
            opened,
            streams: tokio::sync::Mutex::new(streams),
        })
    }

    /// Changes what should be and wakes the agent.
    pub(crate) fn want(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap());
        self.revision.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn want_server(&self, server: &DesiredServer) {
        self.want(|state| {
            state.servers.insert(server.id, server.clone());
        });
    }

    pub(crate) fn request(&self, purpose: StreamPurpose) -> StreamId {
        let id = StreamId::new();
        self.want(|state| state.streams.push(StreamRequest { id, purpose, at: None }));
        id
    }

    /// Waits until what is reported satisfies the condition.
    pub(crate) async fn until<T>(&self, what: &str, mut condition: impl FnMut(&State) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        let wait = async {
            loop {
                changed.borrow_and_update();
                if let Some(found) = condition(&self.state.lock().unwrap()) {
                    return found;
                }
                changed.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), wait).await {
            Ok(found) => found,
            Err(_) => panic!("never: {what}; reports: {:#?}", self.state.lock().unwrap().reports),
        }
    }

    pub(crate) async fn until_reached(&self, id: ServerId, generation: u64, power: Option<Power>) -> ServerReport {
        self.until(&format!("{id} at generation {generation}, {power:?}"), |state| {
            state
                .reports
                .get(&id)
                .filter(|report| report.generation == generation && power_of(report) == power)
                .cloned()
        })
        .await
    }

    fn guard(&self) -> Result<()> {
        if self.state.lock().unwrap().away {
            return Err(Error::new(ErrorKind::Unavailable, "away", "The control plane is away"));
        }
        Ok(())
    }
}

/// `None` when gone, or not settled.
pub(crate) fn power_of(report: &ServerReport) -> Option<Power> {
    match &report.state {
        ServerState::Present(Observation { power, .. }) => Some(*power),
        _ => None,
    }
}

pub(crate) fn server(power: WantedPower) -> DesiredServer {
    DesiredServer {
        id: ServerId::new(),
        generation: 1,
        name: "web".to_owned(),
        vcpus: 1,
        memory: Bytes::mib(64),
        disk: Bytes::mib(1),
        image: None,
        interfaces: vec![],
        config_drive: vec![],
        power,
        reboots: 0,
        reboot_grace_ms: 0,
        driver: String::new(),
        incarnation: 0,
        rescue: None,
        firmware: Firmware::Bios,
        boot: BootSource::Disk,
        snapshots: vec![],
        metadata: None,
    }
}

impl ControlPlane for Fake {
    fn enrol(&self, _: String, _: Enrolment) -> Boxed<'_, EnrolmentAnswer> {
        Box::pin(async { Err(Error::bug("not here")) })
    }

    fn hello(&self, node: NodeId, _: String, hello: Hello) -> Boxed<'_, HelloAnswer> {
        Box::pin(async move {
            self.guard()?;
            let mut state = self.state.lock().unwrap();
            state.hellos += 1;
            state.heard_hello = true;
            Ok(HelloAnswer { protocol: hello.protocol, node, report_every_ms: 200, usage_every_ms: 100 })
        })
    }

    fn desired(&self, _: NodeId, after: Option<u64>, wait: Duration) -> Boxed<'_, Desired> {
        Box::pin(async move {
            self.guard()?;
            let mut revision = self.revision.subscribe();
            let _ = tokio::time::timeout(wait, revision.wait_for(|revision| Some(*revision) != after)).await;
            let revision = *revision.borrow();
            let state = self.state.lock().unwrap();
            let servers = state.servers.values().cloned().collect();
            Ok(Desired {
                revision,
                servers,
                streams: state.streams.clone(),
                networks: NetworkPlan::default(),
                program: state.program.clone(),
            })
        })
    }

    fn report(&self, _: NodeId, _: String, report: Report) -> Boxed<'_, ()> {
        Box::pin(async move {
            self.guard()?;
            let mut state = self.state.lock().unwrap();
            if !state.heard_hello {
                return Err(Error::new(ErrorKind::Precondition, HELLO_FIRST, "Say hello first"));
            }
            if state.lose_before > 0 {
                state.lose_before -= 1;
                return Err(Error::new(ErrorKind::Unavailable, "lost", "Lost on the way"));
            }
            state.heard += 1;
            if report.full {
                state.reports.clear();
            }
            for server in report.servers {
                state.reports.insert(server.id, server);
            }
            state.health = report.health;
            self.changed.send_modify(|count| *count += 1);
            if state.lose_after > 0 {
                state.lose_after -= 1;
                return Err(Error::new(ErrorKind::Unavailable, "lost", "The answer was lost"));
            }
            Ok(())
        })
    }

    fn renew(&self, _: NodeId, _: Renewal) -> Boxed<'_, EnrolmentAnswer> {
        Box::pin(async { Err(Error::bug("not here")) })
    }

    fn image(&self, _: NodeId, image: ImageId) -> Boxed<'_, Content> {
        Box::pin(async move {
            let mut state = self.state.lock().unwrap();
            state.fetched += 1;
            let bytes = state.images.get(&image).cloned().ok_or_else(|| Error::not_found("image", image))?;
            let length = bytes.len() as u64;
            let chunks: Vec<_> = bytes.chunks(1000).map(|chunk| Ok(chunk.to_vec().into())).collect();
            Ok(Content { length, body: Box::pin(futures_util::stream::iter(chunks)) })
        })
    }

    fn program(&self, _: NodeId, sha256: String) -> Boxed<'_, Content> {
        Box::pin(async move {
            let mut state = self.state.lock().unwrap();
            state.fetched_programs += 1;
            self.changed.send_modify(|count| *count += 1);
            let bytes = state.programs.get(&sha256).cloned().ok_or_else(|| Error::not_found("program", sha256))?;
            let length = bytes.len() as u64;
            Ok(Content { length, body: Box::pin(futures_util::stream::iter([Ok(bytes.into())])) })
        })
    }

    fn snapshot(&self, _: NodeId, image: ImageId, header: SnapshotHeader, mut content: Content) -> Boxed<'_, ()> {
        Box::pin(async move {
            self.guard()?;
            let broken = {
                let mut state = self.state.lock().unwrap();
                let broken = state.break_copies > 0;
                state.break_copies = state.break_copies.saturating_sub(1);
                broken
            };
            if broken {
                return Err(Error::new(ErrorKind::Unavailable, "lost", "Lost on the way"));
            }
            let mut bytes = vec![];
            while let Some(chunk) = content.body.next().await {
                bytes.extend_from_slice(&chunk.map_err(|error| Error::internal("a body broke off", error))?);
            }
            assert_eq!(bytes.len() as u64, content.length);
            let mut state = self.state.lock().unwrap();
            let copy = state.copies.entry(image).or_insert((0, header, vec![]));
            *copy = (copy.0 + 1, header, bytes);
            Ok(())
        })
    }

    fn accept_stream(&self, _: NodeId, stream: StreamId, duplex: Box<dyn Duplex>) -> Boxed<'_, ()> {
        let _ = self.opened.send((stream, Ok(duplex)));
        Box::pin(async { Ok(()) })
    }

    fn refuse_stream(&self, _: NodeId, stream: StreamId, error: Error) -> Boxed<'_, ()> {
        let _ = self.opened.send((stream, Err(error)));
        Box::pin(async { Ok(()) })
    }
}
