//! One place where something is served: its sockets, and a task for each.

use std::{collections::HashMap, io, sync::Arc};

use tokio::{
    net::{TcpListener, UdpSocket},
    sync::watch,
    task::JoinHandle,
};

use crate::{
    advertise::{self, Advertisement},
    dhcp4, dhcp6,
    dns::{self, Forwarder},
    limit::Limit,
    metadata::{self, MetadataSource, Tokens},
    namespace::{Endpoint, Identity, Opened},
    serve::Current,
    services::Settings,
    view::NetworkView,
};

/// What all places share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) source: Arc<dyn MetadataSource>,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) forwarder: Arc<Forwarder>,
}

/// One place. Dropping it ends everything in it.
pub(crate) struct Site {
    identity: Identity,
    interface: String,
    view: watch::Sender<Arc<NetworkView>>,
    advertisement: watch::Sender<Option<Advertisement>>,
    tasks: HashMap<Endpoint, Task>,
    questions: Limit,
    conversations: Limit,
    connections: Limit,
}

struct Task(JoinHandle<()>);

impl Task {
    /// Ends it, and waits until its socket is closed: another one could not be opened there before.
    async fn end(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Site {
    pub(crate) fn new(identity: Identity, interface: String, settings: &Settings) -> Self {
        Self {
            identity,
            interface,
            view: watch::Sender::new(Arc::new(NetworkView::none())),
            advertisement: watch::Sender::new(None),
            tasks: HashMap::new(),
            questions: Limit::new(settings.questions_per_guest, settings.questions_per_network),
            conversations: Limit::new(settings.connections_per_guest, settings.connections_per_network),
            connections: Limit::new(settings.connections_per_guest, settings.connections_per_network),
        }
    }

    /// What this place was when it was made.
    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether something answers there.
    pub(crate) fn has(&self, endpoint: Endpoint) -> bool {
        self.tasks.get(&endpoint).is_some_and(|task| !task.0.is_finished())
    }

    /// Changes what is served, and ends what is not any more.
    pub(crate) async fn show(
        &mut self,
        view: Option<Arc<NetworkView>>,
        said: Option<Advertisement>,
        wanted: &[Endpoint],
    ) {
        let unwanted: Vec<Endpoint> =
            self.tasks.keys().filter(|endpoint| !wanted.contains(endpoint)).copied().collect();
        for endpoint in unwanted {
            if let Some(task) = self.tasks.remove(&endpoint) {
                task.end().await;
            }
        }
        if let Some(view) = view {
            self.view.send_if_modified(|now| {
                let other = *now != view;
                *now = view;
                other
            });
        }
        self.advertisement.send_if_modified(|now| {
            let other = *now != said;
            *now = said;
            other
        });
    }

    /// Ends everything in it.
    pub(crate) async fn end(mut self) {
        for (_, task) in self.tasks.drain() {
            task.end().await;
        }
    }

    /// Begins to serve at a socket.
    pub(crate) fn start(&mut self, endpoint: Endpoint, socket: Opened, shared: &Shared) -> io::Result<()> {
        let view = Current(self.view.subscribe());
        let index = self.identity.interface;
        let task = match (endpoint, socket) {
            (Endpoint::Dhcp4, Opened::Udp(socket)) => {
                let socket = UdpSocket::from_std(socket)?;
                tokio::spawn(dhcp4::serve(socket, view, shared.settings.lease, self.interface.clone(), index))
            }
            (Endpoint::Dhcp6, Opened::Udp(socket)) => {
                let socket = UdpSocket::from_std(socket)?;
                tokio::spawn(dhcp6::serve(socket, view, shared.settings.lease))
            }
            (Endpoint::DnsUdp(_), Opened::Udp(socket)) => {
                let socket = UdpSocket::from_std(socket)?;
                tokio::spawn(dns::serve_udp(socket, view, shared.forwarder.clone(), self.questions.clone()))
            }
            (Endpoint::DnsTcp(_), Opened::Tcp(listener)) => {
                let listener = TcpListener::from_std(listener)?;
                tokio::spawn(dns::serve_tcp(listener, view, shared.forwarder.clone(), self.conversations.clone()))
            }
            (Endpoint::Metadata(_), Opened::Tcp(listener)) => {
                let listener = TcpListener::from_std(listener)?;
                let (source, tokens) = (shared.source.clone(), shared.tokens.clone());
                tokio::spawn(metadata::serve(listener, view, source, tokens, self.connections.clone()))
            }
            (Endpoint::Advertise, Opened::Udp(socket)) => {
                let socket = UdpSocket::from_std(socket)?;
                tokio::spawn(advertise::advertise(socket, index, self.advertisement.subscribe()))
            }
            _ => return Err(io::Error::other("a socket of another kind was opened")),
        };
        self.tasks.insert(endpoint, Task(task));
        Ok(())
    }
}
