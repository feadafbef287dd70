//! Two kinds of records and a store in a folder of its own.

use std::path::{Path, PathBuf};

use nephos_store::{Author, Draft, Kind, Kinds, Options, Postgres, Record, Sqlite, Store, Transaction};
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

/// The SQL engines that a test runs on.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
}

/// Makes a test for each engine out of functions that take one.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::fixture::Engine::Sqlite).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name($crate::fixture::Engine::Postgres).await;
            })*
        }
    };
}
pub(crate) use both;

/// Where a store is while nobody has it open.
pub(crate) enum Home {
    Folder(TempDir),
    Database(String),
}

impl Home {
    pub(crate) fn new(engine: Engine) -> Self {
        match engine {
            Engine::Sqlite => Self::Folder(tempfile::tempdir().unwrap()),
            Engine::Postgres => Self::Database(nephos_testkit_postgres::shared().database()),
        }
    }

    pub(crate) async fn open(&self, kinds: Kinds) -> nephos_types::Result<Store> {
        self.open_with(kinds, Options::default()).await
    }

    pub(crate) async fn open_with(&self, kinds: Kinds, options: Options) -> nephos_types::Result<Store> {
        match self {
            Self::Folder(folder) => {
                Store::open_with(Sqlite::open(folder.path().join("store.db")).await?, kinds, options).await
            }
            Self::Database(url) => Store::open_with(Postgres::open(url).await?, kinds, options).await,
        }
    }
}

pub(crate) struct Fixture {
    pub(crate) home: Home,
    pub(crate) store: Store,
}

impl Fixture {
    pub(crate) async fn new(engine: Engine) -> Self {
        Self::with(engine, Options::default()).await
    }

    pub(crate) async fn with(engine: Engine, options: Options) -> Self {
        let home = Home::new(engine);
        let store = home.open_with(kinds(), options).await.unwrap();
        Self { home, store }
    }

    /// The folder of one on SQLite.
    pub(crate) fn folder(&self) -> &Path {
        match &self.home {
            Home::Folder(folder) => folder.path(),
            Home::Database(url) => panic!("{url} is no folder"),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder().join("store.db")
    }

    pub(crate) async fn reopen(&mut self) {
        self.store.close().await.unwrap();
        self.store = self.home.open(kinds()).await.unwrap();
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
