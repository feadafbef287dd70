//! What all that is served has in common.

use std::{io, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::view::NetworkView;

/// What a network's guests are served at the moment. Changes under whoever serves them.
#[derive(Clone, Debug)]
pub(crate) struct Current(pub(crate) watch::Receiver<Arc<NetworkView>>);

impl Current {
    pub(crate) fn now(&self) -> Arc<NetworkView> {
        self.0.borrow().clone()
    }
}

/// After a failure to receive: some are about one message (an ICMP error that came back), others last as long as the
/// interface is gone. Either way the next try must not burn a processor.
pub(crate) async fn breathe(service: &'static str, error: &io::Error) {
    tracing::debug!(service, %error, "receiving failed");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
