//! `nephos up` as a child process.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nephos_cli::client::Client;
use nephos_ops::identity::CreateToken;
use nephos_types::{Error, Result};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    processes::{die_with_the_test, end_of, guests_in, kill_guests_in, send},
    wait::until,
};

/// The administrator's password in tests.
pub const PASSWORD: &str = "correct horse battery staple";

/// How the cloud is started.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Stand in this many simulated nodes; 0 runs real guests on this machine.
    pub simulated_nodes: u32,
    /// Where the APIs are served; the loopback when absent.
    pub listen: Option<IpAddr>,
    /// The network namespace in which it runs; this machine's own when absent.
    pub namespace: Option<String>,
    /// Where agents of other machines dial; the loopback when absent.
    pub node_listen: Option<IpAddr>,
    /// Run `nephos controller` on this PostgreSQL database instead of `nephos up`.
    pub database: Option<String>,
    /// The ports on which APIs and nodes are served; any when 0.
    pub ports: (u16, u16),
    /// Kill the process with SIGKILL at this point of a workflow, e.g. `server.create/find capacity/before`.
    pub kill_at: Option<String>,
    /// Further environment variables.
    pub environment: Vec<(String, String)>,
    /// Further flags.
    pub flags: Vec<String>,
}

/// A running cloud.
pub struct CloudProcess {
    binary: PathBuf,
    settings: Settings,
    folder: TempDir,
    child: Option<Child>,
}

impl CloudProcess {
    /// A cloud that does not run yet.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, settings: Settings) -> Self {
        let folder = tempfile::Builder::new().prefix("nephos-test-").tempdir().expect("a temporary folder");
        Self { binary: binary.into(), settings, folder, child: None }
    }

    /// Starts a new cloud and waits until it is ready.
    pub async fn start(binary: impl Into<PathBuf>, settings: Settings) -> Self {
        let mut cloud = Self::new(binary, settings);
        cloud.start_again().await;
        cloud
    }

    /// Makes a cloud out of a backup, without starting it. What `nephos restore` printed is returned if it failed.
    pub fn restored(
        binary: impl Into<PathBuf>,
        settings: Settings,
        backup: &Path,
    ) -> std::result::Result<Self, String> {
        let folder = tempfile::Builder::new().prefix("nephos-test-").tempdir().expect("a temporary folder");
        let cloud = Self { binary: binary.into(), settings, folder, child: None };
        let output = cloud.command(&["restore"]).arg(backup).output().expect("the nephos binary starts");
        if output.status.success() { Ok(cloud) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
    }

    /// Starts it, without waiting.
    pub fn spawn(&mut self) {
        let _ = fs::remove_file(self.data().join("endpoint"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("the log file");
        let at = |address: Option<IpAddr>, port| format!("{}:{port}", address.unwrap_or(Ipv4Addr::LOCALHOST.into()));
        let (port, node_port) = self.settings.ports;
        let mut command = self.program_within();
        match &self.settings.database {
            None => command.arg("up"),
            Some(database) => command.args(["controller", "--database", database]),
        };
        command
            .args(["--listen", &at(self.settings.listen, port), "--node-listen"])
            .arg(at(self.settings.node_listen.or(self.settings.listen), node_port))
            .arg("--data")
            .arg(self.data())
            .args(&self.settings.flags)
            .env("NEPHOS_ADMIN_PASSWORD", PASSWORD)
            .env("NEPHOS_LOG", "info,nephos_agent=debug,nephos_driver_qemu=debug")
            .env("NEPHOS_SIMULATED_NODES", self.settings.simulated_nodes.to_string())
            .envs(self.settings.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the log file"))
            .stderr(log);
        if let Some(point) = &self.settings.kill_at {
            command.env("NEPHOS_KILL_AT", point);
        }
        die_with_the_test(&mut command);
        self.child = Some(command.spawn().expect("the nephos binary starts"));
    }

    /// Starts it (again) and waits until it is ready.
    pub async fn start_again(&mut self) {
        self.spawn();
        until("the cloud to be ready", || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                panic!("the cloud ended at once ({status}):\n{}", self.log_text());
            }
            let endpoint = fs::read_to_string(self.data().join("endpoint")).ok();
            async move { endpoint }
        })
        .await;
    }

    /// Settings for the next start.
    pub fn settings(&mut self) -> &mut Settings {
        &mut self.settings
    }

    /// The settings of the latest start.
    #[must_use]
    pub fn settings_now(&self) -> &Settings {
        &self.settings
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What the process has printed.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The end of what the process has printed.
    #[must_use]
    pub fn log_text(&self) -> String {
        end_of(&self.log())
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        fs::read_to_string(self.data().join("endpoint")).expect("the cloud is ready").trim().to_owned()
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the cloud runs").id()
    }

    /// A client without a token.
    #[must_use]
    pub fn anonymous(&self) -> Client {
        Client::new(&self.url(), None).expect("a client")
    }

    /// A client for the administrator's project.
    pub async fn admin(&self) -> Client {
        self.client("admin", PASSWORD, Some("admin")).await.expect("the administrator logs in")
    }

    /// A client for the project `demo`, in which the administrator also has a role.
    pub async fn demo(&self) -> Client {
        self.client("admin", PASSWORD, Some("demo")).await.expect("the administrator logs in")
    }

    /// A client for a user of the default domain, in a project of that domain.
    pub async fn client(&self, user: &str, password: &str, project: Option<&str>) -> Result<Client> {
        let token = self.token(user, password, project).await?;
        self.anonymous().with_token(Some(token))
    }

    /// A token for the project `demo`, for tests that speak HTTP themselves.
    pub async fn demo_token(&self) -> String {
        self.token("admin", PASSWORD, Some("demo")).await.expect("the administrator logs in")
    }

    async fn token(&self, user: &str, password: &str, project: Option<&str>) -> Result<String> {
        let input = match project {
            Some(project) => serde_json::json!({ "user": user, "password": password, "project": project }),
            None => serde_json::json!({ "user": user, "password": password, "unscoped": true }),
        };
        let input: CreateToken =
            serde_json::from_value(input).map_err(|error| Error::internal("the token request does not fit", error))?;
        Ok(self.anonymous().call(input).await?.token.reveal().to_owned())
    }

    /// Runs the command line against this cloud and returns standard output; panics if it fails.
    pub fn nephos(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the nephos binary starts");
        assert!(
            output.status.success(),
            "nephos {arguments:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The program, where the cloud runs.
    fn program_within(&self) -> Command {
        match &self.settings.namespace {
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(&self.binary);
                command
            }
            None => Command::new(&self.binary),
        }
    }

    /// The command line, set up for this cloud, on this machine.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.set_up(Command::new(&self.binary), arguments)
    }

    /// The command line, set up for this cloud, where the cloud runs.
    #[must_use]
    pub fn command_within(&self, arguments: &[&str]) -> Command {
        self.set_up(self.program_within(), arguments)
    }

    fn set_up(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .args(arguments)
            .env("NEPHOS_DATA", self.data())
            // Cached tokens, too, go with the test.
            .env("XDG_CACHE_HOME", self.folder.path().join("cache"))
            .env("NO_COLOR", "1")
            .env_remove("NEPHOS_URL")
            .env_remove("NEPHOS_TOKEN")
            .stdin(Stdio::null());
        command
    }

    /// Kills the process as a power failure would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks the process to stop, and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        let child = self.child.take().expect("the cloud runs");
        send(child.id(), Signal::SIGTERM);
        self.child = Some(child);
        self.ended().await
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the cloud runs");
        until("the cloud to end", || {
            let status = child.try_wait().ok().flatten();
            async move { status }
        })
        .await
    }

    /// Process ids of guests of this cloud: QEMU processes and keepers of containers that work in its data folder.
    #[must_use]
    pub fn guests(&self) -> Vec<u32> {
        guests_in(&self.data())
    }
}

impl Drop for CloudProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the cloud in {}\n{}", self.data().display(), self.log_text());
        }
        self.kill();
        kill_guests_in(&self.data());
    }
}
