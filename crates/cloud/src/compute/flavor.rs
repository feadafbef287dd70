//! Flavors: the sizes that servers are made in. They belong to the cloud as a whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use nephos_ops::{
    compute::{self as ops, CreateFlavor, DeleteFlavor, ListFlavors, ShowFlavor},
    image::Properties,
};
use nephos_store::{Draft, Kind, Query, Record, Store, Transaction};
use nephos_types::{FlavorId, Name, Page, PageRequest, Result, Text};
use serde::{Deserialize, Serialize};

use super::Compute;
use crate::{
    core::Handlers,
    idempotency::Made,
    node::check_traits,
    placement::Needs,
    resolve::{CLOUD, Named, name_claim, name_of},
    session::{Session, refusal},
};

/// A flavor as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flavor {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Root disk in GiB; 0 means the image's own size.
    pub disk_gib: u64,
    /// Properties that the aggregates of a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub properties: BTreeMap<String, String>,
    /// Traits that a node must have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required_traits: BTreeSet<String>,
    /// Traits that a node must not have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub forbidden_traits: BTreeSet<String>,
}

impl Flavor {
    /// Of this size, asking for nothing else.
    #[must_use]
    pub fn of_size(vcpus: u32, memory_mib: u64, disk_gib: u64) -> Self {
        let (required_traits, forbidden_traits) = (BTreeSet::new(), BTreeSet::new());
        Self { vcpus, memory_mib, disk_gib, properties: BTreeMap::new(), required_traits, forbidden_traits }
    }

    /// What it asks of a node's kind.
    #[must_use]
    pub fn needs(&self) -> Needs {
        Needs {
            zone: None,
            properties: self.properties.clone(),
            required: self.required_traits.clone(),
            forbidden: self.forbidden_traits.clone(),
        }
    }
}

impl Kind for Flavor {
    type Id = FlavorId;
    const NAME: &'static str = "flavor";
}

impl Named for Flavor {
    const NOUN: &'static str = "flavor";
    fn spaces(_: &Session) -> Vec<String> {
        vec![CLOUD.to_owned()]
    }
}

/// The flavors of a new cloud: name, vCPUs, MiB, GiB.
const FIRST: [(&str, u32, u64, u64); 4] =
    [("tiny", 1, 256, 0), ("small", 1, 1024, 10), ("medium", 2, 4096, 20), ("large", 4, 8192, 40)];

/// Adds the flavors of a new cloud to the transaction that makes it.
pub fn first(mut transaction: Transaction) -> Result<Transaction> {
    for (name, vcpus, memory_mib, disk_gib) in FIRST {
        let name: Name = name.parse()?;
        transaction = draft(transaction, FlavorId::new(), name, Flavor::of_size(vcpus, memory_mib, disk_gib));
    }
    Ok(transaction)
}

fn draft(transaction: Transaction, id: FlavorId, name: Name, body: Flavor) -> Transaction {
    let claim = name_claim::<Flavor>(CLOUD, &name);
    transaction.create(Draft::new(id, body).name(name)).claim(claim, id)
}

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle_creation(compute, create, |compute: Arc<Compute>, _: Session, made: Made| async move {
        shown(&compute.store, made.id::<Flavor>()?)
    });
    handlers.handle(compute, list);
    handlers.handle(compute, show);
    handlers.handle(compute, delete);
}

fn view(record: &Record<Flavor>) -> Result<ops::Flavor> {
    Ok(ops::Flavor {
        id: record.meta.id,
        name: name_of(record)?,
        vcpus: record.body.vcpus,
        memory_mib: record.body.memory_mib,
        disk_gib: record.body.disk_gib,
        properties: Properties(record.body.properties.clone()),
        required_traits: record.body.required_traits.clone(),
        forbidden_traits: record.body.forbidden_traits.clone(),
        labels: record.meta.labels.clone(),
        created_at: record.meta.created_at,
    })
}

fn shown(store: &Store, id: FlavorId) -> Result<ops::Flavor> {
    view(&*store.get::<Flavor>(id).ok_or_else(|| nephos_types::Error::not_found("flavor", id))?)
}

async fn create(compute: Arc<Compute>, session: Session, input: CreateFlavor) -> Result<ops::Flavor> {
    let id = FlavorId::new();
    let traits = |names: &[Text<100>]| check_traits(names.iter().map(Text::as_str));
    let disk_gib = input.disk_gib.map_or(0, nephos_types::Number::get);
    let body = Flavor {
        properties: input.properties.0,
        required_traits: traits(input.required_traits.as_slice())?,
        forbidden_traits: traits(input.forbidden_traits.as_slice())?,
        ..Flavor::of_size(input.vcpus.get_u32(), input.memory_mib.get(), disk_gib)
    };
    if let Some(both) = body.required_traits.intersection(&body.forbidden_traits).next() {
        return Err(nephos_types::Error::invalid("invalid_trait", "A trait cannot be required and forbidden")
            .detail(both.clone()));
    }
    let claim = name_claim::<Flavor>(CLOUD, &input.name);
    let transaction = session
        .transaction()
        .create(Draft::new(id, body).name(input.name.clone()).labels(input.labels))
        .claim(claim, id);
    session.commit_creation::<Flavor>(transaction, id, None).await.map_err(refusal)?;
    shown(&compute.store, id)
}

async fn list(compute: Arc<Compute>, _: Session, input: ListFlavors) -> Result<Page<ops::Flavor>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let page = compute.store.list::<Flavor>(&Query::all().page::<Flavor>(&request)?);
    Ok(Page { items: page.items.iter().map(|record| view(record)).collect::<Result<_>>()?, next: page.next })
}

async fn show(_: Arc<Compute>, session: Session, input: ShowFlavor) -> Result<ops::Flavor> {
    view(&*session.find::<Flavor>(&input.flavor)?)
}

async fn delete(_: Arc<Compute>, session: Session, input: DeleteFlavor) -> Result<()> {
    session
        .decide(|transaction| {
            let record = session.find::<Flavor>(&input.flavor)?;
            let claim = name_claim::<Flavor>(CLOUD, name_of(&record)?);
            Ok((transaction.delete(&record).release(claim, record.meta.id), ()))
        })
        .await
}
