//! Another machine: a network namespace at the other end of a cable (a veth pair), with an agent of its own in it.

use std::{
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    processes::{die_with_the_test, end_of, guests_in, kill_guests_in, send},
    wait::until,
};

/// Cables of this process.
static CABLES: AtomicU32 = AtomicU32::new(0);

/// A machine beside this one. Gone with all that runs in it when it is dropped.
pub struct Machine {
    binary: PathBuf,
    cable: Cable,
    folder: TempDir,
    agent: Option<Child>,
}

/// The namespace and the veth pair that leads to it.
struct Cable {
    namespace: String,
    near: String,
    address: Ipv4Addr,
}

fn ip(arguments: &[&str]) -> Result<(), String> {
    let output = Command::new("ip").args(arguments).stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
}

impl Cable {
    fn lay() -> Result<Self, String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("only root can make network namespaces".to_owned());
        }
        let (pid, number) = (std::process::id(), CABLES.fetch_add(1, Ordering::Relaxed));
        // Of 198.18.0.0/15, which is for tests of networks and routed nowhere, four addresses for each cable.
        let subnet =
            u32::from(Ipv4Addr::new(198, 18, 0, 0)) + (pid.wrapping_mul(31).wrapping_add(number) % (1 << 15)) * 4;
        let (near, far) = (format!("nt{pid}n{number}"), format!("nt{pid}f{number}"));
        let cable = Self { namespace: format!("nephos-test-{pid}-{number}"), near, address: (subnet + 1).into() };
        let (near_address, far_address) =
            (format!("{}/30", cable.address), format!("{}/30", Ipv4Addr::from(subnet + 2)));
        // From here on, dropping the cable removes what there is of it.
        let (namespace, near) = (cable.namespace.as_str(), cable.near.as_str());
        ip(&["netns", "add", namespace])?;
        ip(&["link", "add", near, "type", "veth", "peer", "name", &far, "netns", namespace])?;
        ip(&["address", "add", &near_address, "dev", near])?;
        ip(&["link", "set", near, "up"])?;
        ip(&["-n", namespace, "address", "add", &far_address, "dev", &far])?;
        ip(&["-n", namespace, "link", "set", &far, "up"])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        Ok(cable)
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = ip(&["link", "delete", &self.near]);
        let _ = ip(&["netns", "delete", &self.namespace]);
    }
}

impl Machine {
    /// A machine on which nothing runs yet; `None`, having said why, where there cannot be one.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>) -> Option<Self> {
        match Cable::lay() {
            Ok(cable) => {
                let folder = tempfile::Builder::new().prefix("nephos-test-").tempdir().expect("a temporary folder");
                Some(Self { binary: binary.into(), cable, folder, agent: None })
            }
            Err(why) => {
                eprintln!("SKIPPED: there is no second machine for this test: {why}");
                None
            }
        }
    }

    /// The address at this end of the cable, which the other machine reaches.
    #[must_use]
    pub fn near_address(&self) -> Ipv4Addr {
        self.cable.address
    }

    /// The address at the other end of the cable, which this machine reaches.
    #[must_use]
    pub fn far_address(&self) -> Ipv4Addr {
        (u32::from(self.cable.address) + 1).into()
    }

    /// The network namespace that it is.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.cable.namespace
    }

    /// The agent's data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Runs `nephos agent` there, with these flags.
    pub fn start_agent(&mut self, flags: &[&str]) {
        let log = self.folder.path().join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("the log file");
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.cable.namespace])
            .arg(&self.binary)
            .args(["agent", "--data"])
            .arg(self.data())
            .args(flags)
            .env("NEPHOS_LOG", "info,nephos_agent=debug,nephos_driver_qemu=debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log);
        die_with_the_test(&mut command);
        self.agent = Some(command.spawn().expect("ip starts"));
    }

    /// The agent's process id, if it was started.
    #[must_use]
    pub fn agent_pid(&self) -> Option<u32> {
        // `ip netns exec` has become the agent: the process is the same.
        self.agent.as_ref().map(Child::id)
    }

    /// Kills the agent as a power failure would, and leaves its guests alone.
    pub fn kill_agent(&mut self) {
        // `ip netns exec` has become the agent: the process is the same.
        if let Some(mut agent) = self.agent.take() {
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }

    /// Waits until the agent has ended by itself.
    pub async fn agent_ended(&mut self) -> ExitStatus {
        let mut agent = self.agent.take().expect("the agent runs");
        until("the agent to end", || {
            let status = agent.try_wait().ok().flatten();
            async move { status }
        })
        .await
    }

    /// Asks the agent to stop, and waits until it has.
    pub async fn stop_agent(&mut self) -> ExitStatus {
        send(self.agent.as_ref().expect("the agent runs").id(), Signal::SIGTERM);
        self.agent_ended().await
    }

    /// Process ids of the guests that run there.
    #[must_use]
    pub fn guests(&self) -> Vec<u32> {
        guests_in(&self.data())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "---- log of the agent in {}\n{}",
                self.data().display(),
                end_of(&self.folder.path().join("log"))
            );
        }
        self.kill_agent();
        kill_guests_in(&self.data());
    }
}
