//! Two machines: control plane and agent in network namespaces of their own, with a cable between.

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use nephos_agent::{Join, RemoteNode};
use nephos_cloud::node::Settings;
use nephos_driver::simulated::SimulatedHost;
use tokio_util::sync::CancellationToken;

use crate::{
    join::{Cloud, until},
    quick,
};

/// Two namespaces and the cable; gone when dropped.
struct Wired {
    names: [String; 2],
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

impl Wired {
    fn new() -> Self {
        let pid = std::process::id();
        let wired = Self { names: [format!("nephos-c{pid}"), format!("nephos-a{pid}")] };
        for name in &wired.names {
            ip(&format!("netns add {name}"));
        }
        let [control, agent] = &wired.names;
        ip(&format!("-n {control} link add cable type veth peer name cable netns {agent}"));
        for (name, address) in [(control, "10.99.0.1/24"), (agent, "10.99.0.2/24")] {
            ip(&format!("-n {name} address add {address} dev cable"));
            ip(&format!("-n {name} link set cable up"));
        }
        wired
    }

    /// Runs work on a thread within one of the namespaces.
    fn within<T: Send + 'static>(
        &self,
        which: usize,
        work: impl AsyncFnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let path = PathBuf::from("/run/netns").join(&self.names[which]);
        std::thread::spawn(move || {
            let namespace = std::fs::File::open(path).unwrap();
            nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }
}

impl Drop for Wired {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "delete", name]).output();
        }
    }
}

#[test]
fn an_agent_in_its_own_network_namespace_joins_is_cut_off_and_comes_back() {
    if !nix::unistd::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("SKIPPED: network namespaces need root and `ip`");
        return;
    }
    let wired = Wired::new();
    let (data, machine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (say, hear) = std::sync::mpsc::channel();
    let stop = CancellationToken::new();

    let folder = machine.path().to_owned();
    let (token_say, token_hear) = tokio::sync::oneshot::channel::<String>();
    let stop_agent = stop.clone();
    let agent = wired.within(1, async move || {
        let token = token_hear.await.unwrap();
        let join = Join::parse("https://10.99.0.1:6785", Some(&token)).unwrap();
        let remote = RemoteNode::open(&folder, Some(&join), None).await.unwrap();
        say.send(remote.node()).unwrap();
        remote.run(quick(), Arc::new(SimulatedHost::new(1).driver()), stop_agent).await.unwrap();
    });

    let (folder, names) = (data.path().to_owned(), wired.names.clone());
    let control = wired.within(0, async move || {
        let settings = Settings {
            silent_after: Duration::from_millis(1500),
            report_every: Duration::from_millis(200),
            ..Settings::default()
        };
        let cloud = Cloud::start(&folder, "10.99.0.1:6785", settings).await;
        token_say.send(cloud.token(Duration::from_secs(600)).await).unwrap();
        let node = tokio::task::spawn_blocking(move || hear.recv().unwrap()).await.unwrap();
        cloud.until_up(node, true).await;
        ip(&format!("-n {} link set cable down", names[1]));
        cloud.until_up(node, false).await;
        ip(&format!("-n {} link set cable up", names[1]));
        cloud.until_up(node, true).await;
        // It gets another address, and stays who it is.
        assert_eq!(cloud.address_of(node).as_deref(), Some("10.99.0.2"));
        ip(&format!("-n {} address delete 10.99.0.2/24 dev cable", names[1]));
        ip(&format!("-n {} address add 10.99.0.3/24 dev cable", names[1]));
        until(|| cloud.address_of(node).as_deref() == Some("10.99.0.3")).await;
        cloud.until_up(node, true).await;
    });
    control.join().unwrap();
    stop.cancel();
    agent.join().unwrap();
}
