//! Messages in, answers out.

use std::{net::IpAddr, time::Duration};

use tokio::net::UdpSocket;

use super::answer::{LONGEST, answer};
use crate::serve::{Current, breathe};

/// Answers messages until it is dropped.
pub(crate) async fn serve(socket: UdpSocket, view: Current, lease_time: Duration) {
    let mut buffer = vec![0; LONGEST + 1];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                breathe("DHCPv6", &error).await;
                continue;
            }
        };
        let IpAddr::V6(source) = from.ip() else { continue };
        let reply = buffer.get(..length).and_then(|bytes| answer(&view.now(), lease_time, bytes, source));
        if let Some(message) = reply
            && let Err(error) = socket.send_to(&message, from).await
        {
            tracing::debug!(%error, "an answer of DHCPv6 could not be sent");
        }
    }
}
