//! Making what is served be as planned.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use nephos_driver::network::{Ipv6Mode, METADATA_V4, METADATA_V6, NetworkPlan, NetworkSpec, Trouble};
use nephos_types::{Error, NetworkId, PortId};
use tokio::sync::Mutex;

use crate::{
    advertise::Advertisement,
    dns::Forwarder,
    metadata::MetadataSource,
    namespace::{Endpoint, Identity, Opened, Place, identity, inside, open},
    resolv::system_forwarders,
    site::{Shared, Site},
    view::NetworkView,
};

/// An address that was just given up may be in use a little longer: a program that this process is starting has a copy of
/// every socket until it runs.
const TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(20);

/// How guests are served.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For how long addresses are given out; they are renewed after half of it. Long, because guests keep their addresses
    /// that long while nobody answers.
    pub lease: Duration,
    /// DNS servers that are asked for what is not a network's own; none: such questions are refused.
    pub forwarders: Vec<SocketAddr>,
    /// Questions of DNS that others are being asked at once: of one guest, of one network, of all.
    pub questions_per_guest: usize,
    #[allow(missing_docs)]
    pub questions_per_network: usize,
    #[allow(missing_docs)]
    pub questions: usize,
    /// Connections open at once to each of DNS and metadata: of one guest, of one network.
    pub connections_per_guest: usize,
    #[allow(missing_docs)]
    pub connections_per_network: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(86400),
            forwarders: system_forwarders(),
            questions_per_guest: 32,
            questions_per_network: 256,
            questions: 1024,
            connections_per_guest: 32,
            connections_per_network: 1024,
        }
    }
}

/// Where things are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Each network's service namespace.
    pub networks: HashMap<NetworkId, Place>,
    /// For each interface of a router of this node: the router's namespace and the interface in there.
    pub routers: HashMap<PortId, Place>,
}

/// What is not as planned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Troubles {
    /// Networks whose guests are not served everything.
    pub networks: Vec<Trouble<NetworkId>>,
    /// Interfaces of routers that do not advertise.
    pub routers: Vec<Trouble<PortId>>,
}

/// All that this node serves. Dropping it ends it.
pub struct Services {
    shared: Shared,
    sites: Mutex<Sites>,
}

#[derive(Default)]
struct Sites {
    networks: HashMap<NetworkId, Site>,
    routers: HashMap<PortId, Site>,
}

/// What is to be served at one place.
struct Wanted {
    place: Place,
    view: Option<Arc<NetworkView>>,
    said: Option<Advertisement>,
    endpoints: Vec<Endpoint>,
}

impl Services {
    /// Nothing is served yet.
    #[must_use]
    pub fn new(settings: Settings, source: Arc<dyn MetadataSource>) -> Self {
        let forwarder = Arc::new(Forwarder::new(settings.forwarders.clone(), settings.questions));
        let shared = Shared { settings, source, tokens: Arc::default(), forwarder };
        Self { shared, sites: Mutex::default() }
    }

    /// Makes what is served be as planned. What did not change goes on undisturbed. What could not be done is in the
    /// answer, and tried again with the next call. To be called in a Tokio runtime.
    pub async fn update(&self, plan: &NetworkPlan, places: &Places) -> Troubles {
        let mut sites = self.sites.lock().await;
        let views = plan.networks.iter().zip(NetworkView::all(plan));
        let networks = views
            .filter_map(|(network, view)| {
                let place = places.networks.get(&network.id)?.clone();
                let said = Advertisement::of_service(network);
                let endpoints = endpoints(network, said.is_some());
                Some((network.id, Wanted { place, view: Some(Arc::new(view)), said, endpoints }))
            })
            .collect();
        let specs: HashMap<NetworkId, &NetworkSpec> =
            plan.networks.iter().map(|network| (network.id, network)).collect();
        let interfaces = plan.routers.iter().filter(|router| router.up).flat_map(|router| &router.interfaces);
        let routers = interfaces
            .filter_map(|interface| {
                let place = places.routers.get(&interface.port)?.clone();
                let said = Advertisement::of_router(specs.get(&interface.network)?, &interface.advertise)?;
                let endpoints = vec![Endpoint::Advertise];
                Some((interface.port, Wanted { place, view: None, said: Some(said), endpoints }))
            })
            .collect();
        Troubles {
            networks: self.settle(&mut sites.networks, networks).await,
            routers: self.settle(&mut sites.routers, routers).await,
        }
    }

    /// Ends everything.
    pub async fn stop(&self) {
        let Sites { networks, routers } = std::mem::take(&mut *self.sites.lock().await);
        for site in networks.into_values().chain(routers.into_values()) {
            site.end().await;
        }
    }

    async fn settle<Id: Copy + Eq + Hash>(
        &self,
        sites: &mut HashMap<Id, Site>,
        wanted: HashMap<Id, Wanted>,
    ) -> Vec<Trouble<Id>> {
        let unwanted: Vec<Id> = sites.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for id in unwanted {
            end(sites, id).await;
        }
        let mut troubles = vec![];
        for (id, wanted) in wanted {
            if let Err(error) = self.settle_one(sites, id, wanted).await {
                troubles.push(Trouble { id, error });
            }
        }
        troubles
    }

    async fn settle_one<Id: Copy + Eq + Hash>(
        &self,
        sites: &mut HashMap<Id, Site>,
        id: Id,
        wanted: Wanted,
    ) -> Result<(), Error> {
        let known = sites.get(&id).map(Site::identity);
        let running: HashSet<Endpoint> = match sites.get(&id) {
            Some(site) => wanted.endpoints.iter().copied().filter(|endpoint| site.has(*endpoint)).collect(),
            None => HashSet::new(),
        };
        let (place, endpoints) = (wanted.place.clone(), wanted.endpoints.clone());
        let looked = inside(wanted.place.namespace.clone(), move || look(&place, known, &running, &endpoints)).await;
        let (now, opened) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                end(sites, id).await;
                return Err(Error::internal("A network's guests cannot be served", error).detail(format!(
                    "{} in {}",
                    wanted.place.interface,
                    wanted.place.namespace.display()
                )));
            }
        };
        if known != Some(now) {
            end(sites, id).await;
            sites.insert(id, Site::new(now, wanted.place.interface.clone(), &self.shared.settings));
        }
        let Some(site) = sites.get_mut(&id) else { return Ok(()) };
        site.show(wanted.view, wanted.said, &wanted.endpoints).await;
        let mut outcome = Ok(());
        let (mut opened, mut tries) = (opened, TRIES);
        loop {
            tries -= 1;
            let mut in_use = vec![];
            for (endpoint, socket) in opened {
                match socket.and_then(|socket| site.start(endpoint, socket, &self.shared)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => in_use.push(endpoint),
                    Err(error) => {
                        outcome = Err(Error::internal("A network's guests are not served everything", error)
                            .detail(format!("{endpoint:?} on {}", wanted.place.interface)));
                    }
                    Ok(()) => {}
                }
            }
            if in_use.is_empty() {
                return outcome;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
            let interface = wanted.place.interface.clone();
            let again = move || {
                Ok(in_use.into_iter().map(|endpoint| (endpoint, open(endpoint, &interface, now.interface))).collect())
            };
            opened = inside(wanted.place.namespace.clone(), again)
                .await
                .map_err(|error| Error::internal("A network's guests are not served everything", error))?;
        }
    }
}

async fn end<Id: Eq + Hash>(sites: &mut HashMap<Id, Site>, id: Id) {
    if let Some(site) = sites.remove(&id) {
        site.end().await;
    }
}

/// What the place is now, and the sockets that are missing. Runs in the namespace.
fn look(
    place: &Place,
    known: Option<Identity>,
    running: &HashSet<Endpoint>,
    endpoints: &[Endpoint],
) -> io::Result<(Identity, Vec<(Endpoint, io::Result<Opened>)>)> {
    let now = identity(&place.namespace, &place.interface)?;
    let missing = endpoints.iter().filter(|endpoint| known != Some(now) || !running.contains(endpoint));
    let opened = missing.map(|endpoint| (*endpoint, open(*endpoint, &place.interface, now.interface))).collect();
    Ok((now, opened))
}

/// What is served to a network's guests.
fn endpoints(network: &NetworkSpec, advertises: bool) -> Vec<Endpoint> {
    let served = || network.subnets.iter().filter(|subnet| subnet.service.is_some());
    let mut endpoints = vec![];
    if served().any(|subnet| subnet.dhcp && !subnet.cidr.is_ipv6()) {
        endpoints.push(Endpoint::Dhcp4);
    }
    let by_dhcp6 = |mode: Option<Ipv6Mode>| mode.is_some_and(|mode| mode != Ipv6Mode::Slaac);
    if served().any(|subnet| subnet.dhcp && subnet.cidr.is_ipv6() && by_dhcp6(subnet.ipv6_mode)) {
        endpoints.push(Endpoint::Dhcp6);
    }
    if advertises {
        endpoints.push(Endpoint::Advertise);
    }
    let addresses: HashSet<IpAddr> = served().filter_map(|subnet| subnet.service).collect();
    for address in &addresses {
        endpoints.extend([Endpoint::DnsUdp(*address), Endpoint::DnsTcp(*address)]);
    }
    if !addresses.is_empty() {
        endpoints.extend([Endpoint::Metadata(METADATA_V4.into()), Endpoint::Metadata(METADATA_V6.into())]);
    }
    endpoints
}
