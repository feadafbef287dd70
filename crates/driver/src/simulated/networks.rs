//! Networks that exist only in memory: everything that is planned is so at once.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use futures_util::future::BoxFuture;
use nephos_types::{Error, NetworkId, PortId};

use crate::{
    network::{NetworkCapabilities, NetworkDriver, NetworkPlan, NetworkReport, PortTraffic, Trouble},
    refusal,
};

/// A simulated network driver, with scripted faults: ports that cannot be made.
#[derive(Default)]
pub struct SimulatedNetworks {
    plan: Mutex<NetworkPlan>,
    broken: Mutex<BTreeMap<PortId, Error>>,
}

impl SimulatedNetworks {
    /// What was last asked for.
    #[must_use]
    pub fn plan(&self) -> NetworkPlan {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on this port cannot be made, for this reason; with `None` it can again.
    pub fn break_port(&self, port: PortId, reason: Option<Error>) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => broken.insert(port, reason),
            None => broken.remove(&port),
        };
    }
}

impl NetworkDriver for SimulatedNetworks {
    fn capabilities(&self) -> NetworkCapabilities {
        NetworkCapabilities {
            underlay: None,
            physical: vec!["simulated".to_owned()],
            vlan: true,
            host: true,
            underlay_mtu: 1500,
        }
    }

    fn apply<'a>(&'a self, plan: &'a NetworkPlan) -> BoxFuture<'a, Result<NetworkReport, Error>> {
        Box::pin(async move {
            *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = plan.clone();
            let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            let trouble = |port: PortId| Some(Trouble { id: port, error: broken.get(&port)?.clone() });
            let ports = plan.ports.iter().filter_map(|port| trouble(port.id)).collect();
            Ok(NetworkReport { ports, ..NetworkReport::default() })
        })
    }

    fn tap(&self, port: PortId) -> Result<(PathBuf, String), Error> {
        let planned = self.plan().ports.iter().any(|planned| planned.id == port);
        if !planned {
            return Err(refusal::unknown_port(port));
        }
        Ok((PathBuf::from("/simulated"), "tap0".to_owned()))
    }

    fn service_namespace(&self, network: NetworkId) -> Result<(PathBuf, String), Error> {
        let planned = self.plan().networks.iter().any(|planned| planned.id == network);
        if planned {
            Ok((PathBuf::from("/simulated"), "service".to_owned()))
        } else {
            Err(refusal::unknown_network(network))
        }
    }

    fn traffic(&self, _: PortId) -> BoxFuture<'_, Result<PortTraffic, Error>> {
        Box::pin(async { Ok(PortTraffic::default()) })
    }

    fn remove_all(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = NetworkPlan::default();
            Ok(())
        })
    }
}
