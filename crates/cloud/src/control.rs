//! The control plane as a whole: opens the store, wires families, engine and core together, and takes it down again.
//!
//! Order matters: kinds before the store, definitions before open runs are taken up, the first start before anybody can
//! log in.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nephos_auth::{Policy, ServerCertificate};
use nephos_ops::Cloud;
use nephos_store::{Author, CommitError, Kinds, Postgres, Sqlite, Store, Transaction, Turn};
use nephos_types::{Error, Result, Secret, Timestamp};
use nephos_workflow::{Config, Holders, Observer};

use crate::{
    cluster::{self, Peers, SharedTokenKeys},
    compute::{self, Compute},
    core::{CloudCore, Handlers},
    idempotency, identity,
    image::{self, Images, NodeImages},
    journal::{Engine, StoreJournal, WorkflowRun},
    network::{self, Networks},
    node::{self, Nodes, Workload},
    system::System,
    workflow::{self, Workflows},
};

/// The database's file in the data folder.
pub const DATABASE: &str = "nephos.db";
/// The policy file in the data folder; absent for the default policy.
const POLICY: &str = "policy.toml";

/// The authority's certificate in the data folder.
const CERTIFICATE: &str = "ca.pem";
/// How long the API's own certificate is good for; it is made anew at each start.
const CERTIFICATE_VALID: Duration = Duration::from_secs(2 * 365 * 24 * 3600);

/// How often it is looked for what has no use any more.
const TIDY_EVERY: Duration = Duration::from_secs(600);

/// What a control plane is opened with.
pub struct Options {
    /// The data folder; it exists.
    pub data: PathBuf,
    /// Where the APIs are reached.
    pub url: String,
    /// Where agents dial: `HOST:PORT`.
    pub node_address: String,
    /// The addresses and names that the APIs need a certificate for; none when they are reached without TLS.
    pub certificate_for: Vec<String>,
    /// Presets the first administrator's password.
    pub admin_password: Option<Secret>,
    /// How images come in.
    pub images: image::Settings,
    /// What looks on while workflows run.
    pub observers: Vec<Arc<dyn Observer>>,
    /// How old the key that signs tokens gets before a fresh one takes over.
    pub rotate_keys_after: Duration,
    /// How long the audit trail is kept.
    pub keep_audit: Duration,
    /// The database to share with other processes; none: an SQLite file in the data folder.
    pub shared: Option<Shared>,
    /// The right to write to that database: see [`crate::Successor`]. Without one it is written to whoever else does.
    pub turn: Option<Turn>,
    /// Which closed workflow runs are kept.
    pub keep_workflows: workflow::Retention,
    /// What operators decide about servers.
    pub compute: compute::Settings,
}

/// A database that several processes of the control plane share.
#[derive(Clone, Debug)]
pub struct Shared {
    /// `postgres://…`
    pub database: String,
    /// The file with the key to the cloud's secrets; made if the database is new.
    pub secret: PathBuf,
    /// The folder of images, which all processes must see.
    pub images: Option<PathBuf>,
}

/// A control plane.
pub struct Control {
    store: Store,
    engine: Engine,
    cloud: Cloud,
    _compute: Arc<Compute>,
    peers: Option<Arc<Peers>>,
    /// The nodes, and what they speak with.
    pub nodes: Arc<Nodes>,
    /// The certificate that was asked for.
    pub certificate: Option<ServerCertificate>,
    /// What to print once, after the very first start.
    pub first_start: Option<identity::Printed>,
}

/// Every kind of record that the cloud keeps.
#[must_use]
pub(crate) fn kinds() -> Kinds {
    let kinds = cluster::kinds(identity::kinds(Kinds::new()).with::<WorkflowRun>());
    workflow::kinds(compute::kinds(network::kinds(node::kinds(image::kinds(kinds)))))
}

impl Control {
    /// Opens the control plane on a data folder, making a new cloud if it is empty, and takes up what was going on.
    pub async fn open(options: Options) -> Result<Self> {
        let data = &options.data;
        let keep = nephos_store::Options { keep_audit: options.keep_audit, ..nephos_store::Options::default() };
        let store = match &options.shared {
            None => Store::open_with(Sqlite::open(data.join(DATABASE)).await?, kinds(), keep).await?,
            Some(shared) => {
                let backend = match options.turn {
                    Some(turn) => Postgres::open_in_turn(&shared.database, turn).await?,
                    None => Postgres::open(&shared.database).await?,
                };
                Store::open_with(backend, kinds(), keep).await?
            }
        };
        let peers = match &options.shared {
            None => None,
            Some(shared) => {
                cluster::share(&store, data, &shared.secret).await?;
                Some(Peers::join(store.clone(), options.node_address.clone()).await?)
            }
        };
        let policy = policy(&data.join(POLICY))?;
        let choices = identity::Options {
            rotate_keys_after: options.rotate_keys_after,
            processes: cluster::processes,
            ..identity::Options::default()
        };
        let uses = [image::project_use(), workflow::project_use()]
            .into_iter()
            .chain(compute::project_uses())
            .chain(network::quota::project_uses())
            .collect();
        let authority = match &options.shared {
            None => identity::Authority::open(store.clone(), data, choices, uses)?,
            Some(shared) => {
                let keys = SharedTokenKeys::open(&store, data, &shared.secret)?;
                identity::Authority::open_with(store.clone(), data, choices, uses, Box::new(keys))?
            }
        };
        authority.tend_keys().await?;
        let mut config = Config::default();
        if let Some(peers) = &peers {
            let holders: Arc<dyn Holders> = peers.clone();
            config = Config { name: peers.name().clone(), exclusive: false, holders: Some(holders), ..config };
        }
        let engine = Engine::new(StoreJournal::new(store.clone()), config);
        for observer in options.observers {
            engine.observe(observer);
        }
        let mut handlers = Handlers::new();
        identity::register(&mut handlers, &authority);
        let folder = options.shared.as_ref().and_then(|shared| shared.images.clone());
        let folder = folder.unwrap_or_else(|| data.join("images"));
        let alone = peers.as_ref().is_none_or(|peers| peers.is_alone());
        let images = Images::register(&mut handlers, &store, &engine, &folder, alone, options.images).await?;
        let certificates = nephos_auth::Authority::open(&data.join("keys/authority"))?;
        // Clients trust the cloud by this file.
        fs::write(data.join(CERTIFICATE), certificates.certificate())
            .map_err(|error| Error::internal("the authority's certificate cannot be written", error))?;
        let certificate = match options.certificate_for.as_slice() {
            [] => None,
            names => Some(certificates.server_certificate(names, CERTIFICATE_VALID)?),
        };
        let settings =
            node::Settings { address: Some(options.node_address), peers: peers.clone(), ..node::Settings::default() };
        let nodes = Nodes::new(store.clone(), certificates, settings);
        nodes.register(&mut handlers);
        nodes.register_work(&mut handlers, &engine)?;
        let networks = Networks::register(&mut handlers, &store);
        let compute = Compute::register(&mut handlers, &store, &engine, &nodes, &images, &networks, options.compute)?;
        compute::server::consoles::register(&mut handlers, &compute, &authority);
        let workload: Arc<dyn Workload> = compute.clone();
        nodes.attach(&workload, Arc::new(NodeImages(images)));
        let workflows = Workflows::register(&mut handlers, &store, &engine, &authority)?;
        System::register(&mut handlers, &store, data, &folder);
        let missing = handlers.missing();
        if !missing.is_empty() {
            return Err(Error::bug("operations without a handler").detail(missing.join(", ")));
        }
        let core = Arc::new(CloudCore::new(store.clone(), authority.clone(), policy, handlers));
        let cloud = Cloud::new(core);

        let first = identity::FirstStart {
            admin_password: options.admin_password,
            url: options.url,
            authority: absolute(&data.join(CERTIFICATE)),
        };
        let first_start = identity::bootstrap(&authority, data, first).await?;
        first_flavors(&store).await?;
        compute::quota::count_domains(&store).await?;
        keep_tidy(&store, &authority, options.keep_workflows);
        if let Some(peers) = &peers {
            cluster::follow(&compute, peers);
            tokio::spawn(peers.clone().keep_beating());
        }
        engine.recover().await?;
        workflows.begin(cloud.clone());
        Ok(Self { store, engine, cloud, _compute: compute, peers, nodes, certificate, first_start })
    }

    /// The handle for front ends.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        self.cloud.clone()
    }

    /// Parks what runs; it goes on after the next start, or in another process.
    pub async fn stop(&self) {
        self.engine.stop().await;
        if let Some(peers) = &self.peers
            && let Err(error) = peers.leave().await
        {
            tracing::warn!(error = %error.chain(), "the other controllers will notice by themselves that this one has ended");
        }
    }

    /// Waits until this process cannot go on because it can no longer follow the others, and says why.
    pub async fn broken(&self) -> Error {
        self.store.ended().await
    }

    /// Closes the store; everything acknowledged is on disk.
    pub async fn close(self) -> Result<()> {
        self.store.close().await
    }
}

/// Forgets, now and then, what has no use any more: idempotency keys after a day, revocations of tokens that ended,
/// workflow runs that closed long ago.
fn keep_tidy(store: &Store, authority: &Arc<identity::Authority>, keep_workflows: workflow::Retention) {
    let (store, authority) = (store.clone(), Arc::downgrade(authority));
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(TIDY_EVERY).await;
            let Some(authority) = authority.upgrade() else { return };
            let outcomes = [
                idempotency::sweep(&store).await,
                authority.tend_keys().await.map(|()| 0),
                authority.sweep().await,
                workflow::sweep(&store, keep_workflows, Timestamp::now()).await,
            ];
            for outcome in outcomes {
                if let Err(error) = outcome {
                    tracing::warn!(error = %error.chain(), "tidying up failed; it is tried again");
                }
            }
        }
    });
}

/// The path as it is understood from any folder.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// The policy: the default one, with what the file says instead.
fn policy(path: &Path) -> Result<Policy> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Policy::default()),
        Err(error) => {
            return Err(Error::invalid("policy_unreadable", "The policy file cannot be read").detail(error.to_string()));
        }
    };
    let operations = nephos_ops::table().iter().map(|entry| entry.spec.name);
    Policy::parse(&text, operations, ["reader", "member", "manager", "admin", "service"])
}

/// The flavors of a new cloud, made once; they can be deleted like others.
async fn first_flavors(store: &Store) -> Result<()> {
    const DONE: &str = "compute/first-start";
    if store.owner(DONE).is_some() {
        return Ok(());
    }
    let transaction = Transaction::new(Author::new("cloud").operation("first-start")).claim(DONE, "done");
    match store.commit(compute::flavor::first(transaction)?).await {
        Ok(_) => Ok(()),
        Err(CommitError::Taken { key, .. }) if key == DONE => Ok(()),
        Err(error) => Err(error.into()),
    }
}
