//! Every fault at every step: in the end the agent is the program and nothing more is wanted, or nothing has changed.

use futures_util::future::BoxFuture;
use nephos_auth::Authority;
use nephos_node_api::{Condition, ControlPlane, Hardware, Hello, Inventory, PROTOCOL_VERSION, PortRange, Report};
use nephos_store::{Kinds, Sqlite, Store};
use nephos_types::{Bytes, Timestamp};
use nephos_workflow::faults::{self, End, Scenario};
use serde_json::Value;

use super::*;
use crate::{
    journal::{StoreJournal, WorkflowRun},
    node::{Settings, kinds},
};

/// An agent, and whether it can take up what it is offered.
struct Agent {
    able: bool,
    input: std::sync::Mutex<Option<Input>>,
}

struct World {
    _folder: tempfile::TempDir,
    nodes: Arc<Nodes>,
    node: NodeId,
}

fn hello(program: &str) -> Hello {
    let inventory = Inventory {
        hostname: "host".to_owned(),
        kernel: "6.1".to_owned(),
        architecture: std::env::consts::ARCH.to_owned(),
        cpu_model: "fast".to_owned(),
        cpus: 4,
        memory: Bytes::mib(8192),
        disk: Bytes::mib(100 << 10),
        forward_ports: PortRange { first: 20_000, last: 20_009 },
        compute: vec![],
        missing: vec![],
        hardware: Hardware::default(),
        network: None,
    };
    let program = Some(program.to_owned());
    Hello { protocol: PROTOCOL_VERSION, agent_version: "1".to_owned(), inventory, program }
}

fn here() -> String {
    "here".to_owned()
}

impl Scenario for Agent {
    type Journal = StoreJournal;
    type World = World;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, World)> {
        Box::pin(async move {
            let folder = tempfile::tempdir().unwrap();
            let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
            let store = Store::open(backend, kinds(Kinds::new().with::<WorkflowRun>())).await.unwrap();
            let nodes = Nodes::new(store.clone(), Authority::ephemeral().unwrap(), Settings::default());
            let node = nodes.local("a", "a").await.unwrap();
            nodes.hello(node, here(), hello("old")).await.unwrap();
            *self.input.lock().unwrap() = Some(Input { node, sha256: "new".to_owned(), size: 3 });
            (StoreJournal::new(store), World { _folder: folder, nodes, node })
        })
    }

    fn definitions(&self, _: &StoreJournal, world: &World) -> Vec<Definition<Effects>> {
        vec![definition(&Arc::downgrade(&world.nodes))]
    }

    fn settle<'a>(&'a self, _: &'a StoreJournal, world: &'a World) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let record = world.nodes.record(world.node).unwrap();
            let Some(wanted) = &record.body.wanted_program else { return };
            if self.able {
                world.nodes.hello(world.node, here(), hello(&wanted.sha256)).await.unwrap();
            } else {
                let failed = Condition { code: UPGRADE_FAILED.to_owned(), message: "no".to_owned() };
                let report = Report { at: Timestamp::now(), full: false, servers: vec![], health: vec![failed] };
                world.nodes.report(world.node, here(), report).await.unwrap();
            }
        })
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn input(&self) -> Value {
        serde_json::to_value(self.input.lock().unwrap().as_ref().unwrap()).unwrap()
    }

    fn check(&self, _: &StoreJournal, world: &World, end: End) -> Result<(), String> {
        let record = world.nodes.record(world.node).map_err(|error| error.chain())?;
        let program = record.body.program.as_deref();
        let right = match end {
            End::Whole => self.able && program == Some("new"),
            // An agent that took it up before the workflow was stopped stays what it is: there is no way back, and no harm.
            End::Nothing => program == Some("old") || self.able,
        };
        match (&record.body.wanted_program, right) {
            (None, true) => Ok(()),
            (wanted, _) => Err(format!("it is {program:?} and should be {wanted:?}")),
        }
    }
}

#[tokio::test]
async fn whatever_fails_the_agent_is_the_program_or_nothing_is_wanted() {
    faults::check(&Agent { able: true, input: Default::default() }).await.assert();
}

#[tokio::test]
async fn an_agent_that_cannot_take_it_up_is_left_alone() {
    let scenario = Agent { able: false, input: Default::default() };
    let trial = faults::strike(&scenario, vec![]).await;
    let run = trial.verdict.unwrap();
    assert_eq!(run.error.as_ref().unwrap().code, UPGRADE_FAILED);
}
