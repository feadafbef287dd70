//! The node's compute drivers, by name: each server is run by one of them.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt, stream};
use nephos_driver::{Capabilities, ComputeDriver, Feature, GuestEvent, MissingDriver, network::NetworkDriver};
use nephos_network_services as services;
use nephos_types::{Error, Result, ServerId};

/// The drivers of one node, the first one being for servers that name none. Cheap to clone.
#[derive(Clone)]
pub struct Drivers {
    present: Arc<[(String, Arc<dyn ComputeDriver>)]>,
    missing: Arc<[MissingDriver]>,
    networks: Option<(Arc<dyn NetworkDriver>, Option<Arc<services::Settings>>)>,
}

impl Drivers {
    /// These drivers, the preferred one first. A later one with the name of an earlier one is never used.
    #[must_use]
    pub fn new(drivers: Vec<Arc<dyn ComputeDriver>>) -> Self {
        let present = drivers.into_iter().map(|driver| (driver.capabilities().driver, driver)).collect();
        Self { present, missing: Arc::default(), networks: None }
    }

    /// With what the machine does not let it have, for people to see.
    #[must_use]
    pub fn without(self, missing: Vec<MissingDriver>) -> Self {
        Self { missing: missing.into(), ..self }
    }

    /// With networks, made by this driver; `served`: how their guests are served, if they are.
    #[must_use]
    pub fn with_networks(self, networks: Arc<dyn NetworkDriver>, served: Option<services::Settings>) -> Self {
        Self { networks: Some((networks, served.map(Arc::new))), ..self }
    }

    /// What makes networks.
    pub(crate) fn networks(&self) -> Option<Arc<dyn NetworkDriver>> {
        self.networks.as_ref().map(|(driver, _)| Arc::clone(driver))
    }

    /// How guests of networks are served.
    pub(crate) fn served(&self) -> Option<services::Settings> {
        self.networks.as_ref()?.1.as_deref().cloned()
    }

    /// What the machine does not let it have.
    pub(crate) fn missing(&self) -> Vec<MissingDriver> {
        self.missing.to_vec()
    }

    /// What each of them can do.
    pub(crate) fn capabilities(&self) -> Vec<Capabilities> {
        let mut capabilities: Vec<Capabilities> =
            self.present.iter().map(|(_, driver)| driver.capabilities()).collect();
        if self.networks.is_none() {
            for driver in &mut capabilities {
                driver.features.remove(&Feature::Network);
            }
        }
        capabilities
    }

    /// Whether a driver starts its guests in a network namespace.
    pub(crate) fn in_namespace(&self, name: &str) -> bool {
        self.named(name).is_ok_and(|driver| driver.capabilities().features.contains(&Feature::Namespace))
    }

    /// The one of this name; the first one if the name is empty.
    pub(crate) fn named(&self, name: &str) -> Result<&Arc<dyn ComputeDriver>> {
        let found = self.present.iter().find(|(known, _)| name.is_empty() || known == name).map(|(_, driver)| driver);
        found.ok_or_else(|| {
            Error::conflict("no_such_driver", "The node has no driver for the server")
                .detail(format!("it is for the driver `{name}`"))
        })
    }

    /// All guests that the drivers have anything of, and which driver it is.
    pub(crate) async fn list(&self) -> Result<BTreeMap<ServerId, Arc<dyn ComputeDriver>>> {
        let mut guests = BTreeMap::new();
        for (_, driver) in &*self.present {
            for id in driver.list().await? {
                guests.entry(id).or_insert_with(|| Arc::clone(driver));
            }
        }
        Ok(guests)
    }

    /// What happens to guests by themselves, whichever driver runs them.
    pub(crate) fn events(&self) -> Pin<Box<dyn Stream<Item = GuestEvent> + Send>> {
        stream::select_all(self.present.iter().map(|(_, driver)| driver.events())).boxed()
    }
}

impl From<Arc<dyn ComputeDriver>> for Drivers {
    fn from(driver: Arc<dyn ComputeDriver>) -> Self {
        Self::new(vec![driver])
    }
}

impl<D: ComputeDriver> From<Arc<D>> for Drivers {
    fn from(driver: Arc<D>) -> Self {
        Self::new(vec![driver])
    }
}
