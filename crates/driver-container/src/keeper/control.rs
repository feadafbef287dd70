//! What the keeper says and is told.

use std::path::Path;

use nephos_host::files;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{Order, State};

/// Listeners at once.
const MAX_LISTENERS: usize = 64;
/// The longest order.
const MAX_ORDER: u64 = 4096;

/// The keeper's side.
pub(crate) struct Control {
    state: watch::Sender<State>,
    pub(crate) orders: mpsc::Receiver<Order>,
}

impl Control {
    /// Says what is so to whoever connects, from now on.
    pub(crate) fn serve(listener: UnixListener, state: State) -> Self {
        let state = watch::Sender::new(state);
        let (sender, orders) = mpsc::channel(16);
        tokio::spawn(accept(listener, state.clone(), sender));
        Self { state, orders }
    }

    /// Says what is so now, and writes it down.
    pub(crate) fn say(&self, change: impl FnOnce(&mut State)) {
        self.state.send_modify(change);
        if let Err(error) = files::replace(Path::new(super::STATE), &*self.state.borrow()) {
            eprintln!("the state cannot be written: {error}");
        }
    }

    /// Takes notice of what counts only when somebody asks.
    pub(crate) fn quietly(&self) -> watch::Sender<State> {
        self.state.clone()
    }
}

async fn accept(listener: UnixListener, state: watch::Sender<State>, orders: mpsc::Sender<Order>) {
    let mut listeners = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept(), if listeners.len() < MAX_LISTENERS => {
                listeners.spawn(serve(stream, state.subscribe(), orders.clone()));
            }
            Some(_) = listeners.join_next() => {}
        }
    }
}

async fn serve(stream: UnixStream, mut state: watch::Receiver<State>, orders: mpsc::Sender<Order>) {
    let (from_agent, mut to_agent) = stream.into_split();
    let saying = async {
        loop {
            let Ok(mut line) = serde_json::to_vec(&*state.borrow_and_update()) else { break };
            line.push(b'\n');
            if to_agent.write_all(&line).await.is_err() || state.changed().await.is_err() {
                break;
            }
        }
    };
    let listening = async {
        let mut from_agent = BufReader::new(from_agent);
        let mut line = String::new();
        while let Ok(1..) = (&mut from_agent).take(MAX_ORDER).read_line(&mut line).await {
            match serde_json::from_str(&line) {
                Ok(order) => {
                    if orders.send(order).await.is_err() {
                        break;
                    }
                }
                Err(_) => break,
            }
            line.clear();
        }
    };
    tokio::select! {
        () = saying => {}
        () = listening => {}
    }
}
