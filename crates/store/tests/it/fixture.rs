//! Two kinds of records and a store in a folder of its own.

use std::path::PathBuf;

use nephos_store::{Author, Draft, Kind, Kinds, Options, Record, Sqlite, Store, Transaction};
use nephos_types::{ImageId, NodeId, ProjectId, ServerId};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) size: u32,
    pub(crate) node: Option<NodeId>,
}

impl Kind for Server {
    type Id = ServerId;
    const NAME: &'static str = "server";
    const INDEXES: &'static [&'static str] = &["node", "parity"];

    fn index(record: &Record<Self>, index: &str) -> Vec<String> {
        match index {
            "node" => record.body.node.iter().map(ToString::to_string).collect(),
            _ => vec![if record.body.size.is_multiple_of(2) { "even" } else { "odd" }.to_owned()],
        }
    }
}

/// Changes often, interests nobody later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) beat: u64,
}

impl Kind for Report {
    type Id = ImageId;
    const NAME: &'static str = "report";
    const AUDITED: bool = false;
}

pub(crate) fn kinds() -> Kinds {
    Kinds::new().with::<Server>().with::<Report>()
}

pub(crate) struct Fixture {
    pub(crate) folder: TempDir,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Sqlite::open(folder.path().join("store.db")).await.unwrap();
        let store = Store::open_with(backend, kinds(), options).await.unwrap();
        Self { folder, store }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("store.db")
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await.unwrap();
        self.store = Store::open(Sqlite::open(self.path()).await.unwrap(), kinds()).await.unwrap();
    }

    /// Memory and disk agree.
    pub(crate) async fn sound(&self) {
        let report = self.store.verify().await.unwrap();
        assert!(report.is_sound(), "{report:#?}");
    }
}

pub(crate) fn tx() -> Transaction {
    Transaction::new(Author::new("tester").source("test").operation("test.run"))
}

pub(crate) fn server(bits: u64, size: u32) -> Draft<Server> {
    Draft::new(id(bits), Server { size, node: None })
}

pub(crate) fn id(bits: u64) -> ServerId {
    nephos_types::Id::from_bits(bits)
}

pub(crate) fn project(bits: u64) -> ProjectId {
    nephos_types::Id::from_bits(bits)
}
