//! Networks to test on: a namespace with a bridge, as the services see it, and a namespace for each guest.

use std::{
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nephos_network_services::Place;
use nephos_types::MacAddress;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A name that no other test has, short enough for an interface.
fn fresh() -> String {
    format!("ns{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

pub(crate) fn ip(arguments: &str) {
    let output = run("ip", &arguments.split_whitespace().collect::<Vec<_>>());
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A network namespace, removed with everything in it.
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    fn new() -> Self {
        let name = fresh();
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Self(name)
    }

    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.0)
    }

    /// Runs a program in there; gives what it wrote, and fails unless it succeeds.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.try_run(program, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}\n{errors}", output.status);
        text
    }

    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> Output {
        let all: Vec<&str> = ["netns", "exec", &self.0, program].into_iter().chain(arguments.iter().copied()).collect();
        run("ip", &all)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let pids = run("ip", &["netns", "pids", &self.0]);
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            if pid != std::process::id().to_string() {
                run("kill", &["-9", pid]);
            }
        }
        run("ip", &["netns", "del", &self.0]);
    }
}

/// A network: what a network driver would have made of it.
pub(crate) struct Bed {
    pub(crate) side: Namespace,
    pub(crate) guests: Vec<Namespace>,
}

pub(crate) const BRIDGE: &str = "br0";
pub(crate) const GUEST: &str = "eth0";

impl Bed {
    /// A service side with these addresses, and a guest for each MAC address.
    pub(crate) fn new(addresses: &[&str], macs: &[MacAddress]) -> Self {
        let side = Namespace::new();
        let name = &side.0;
        ip(&format!("-n {name} link add {BRIDGE} type bridge mcast_snooping 0"));
        ip(&format!("-n {name} link set {BRIDGE} up"));
        for address in addresses.iter().chain(&["169.254.169.254/32", "fe80::a9fe:a9fe/64"]) {
            let nodad = if address.contains(':') { "nodad" } else { "" };
            ip(&format!("-n {name} addr add {address} dev {BRIDGE} {nodad}"));
        }
        let mut bed = Self { side, guests: vec![] };
        for mac in macs {
            bed.add_guest(*mac);
        }
        bed
    }

    pub(crate) fn add_guest(&mut self, mac: MacAddress) -> usize {
        let guest = Namespace::new();
        let number = self.guests.len();
        let (side, name) = (&self.side.0, &guest.0);
        // Duplicate address detection takes a second, in which nothing would be tested.
        guest.run("sh", &["-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad"]);
        ip(&format!("-n {side} link add tap{number} type veth peer name {GUEST} netns {name}"));
        ip(&format!("-n {side} link set tap{number} master {BRIDGE} up"));
        ip(&format!("-n {name} link set {GUEST} address {mac}"));
        ip(&format!("-n {name} link set {GUEST} up"));
        self.guests.push(guest);
        number
    }

    pub(crate) fn place(&self) -> Place {
        Place { namespace: self.side.path(), interface: BRIDGE.to_owned() }
    }
}
