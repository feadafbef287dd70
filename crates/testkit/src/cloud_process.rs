//! `nephos up` as a child process.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use nephos_cli::client::Client;
use nephos_ops::identity::CreateToken;
use nephos_types::{Error, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::wait::until;

/// The administrator's password in tests.
const PASSWORD: &str = "correct horse battery staple";

/// How the cloud is started.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Stand in this many simulated nodes; 0 runs real guests on this machine.
    pub simulated_nodes: u32,
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
    /// Starts a new cloud and waits until it is ready.
    pub async fn start(binary: impl Into<PathBuf>, settings: Settings) -> Self {
        let folder = tempfile::Builder::new().prefix("nephos-test-").tempdir().expect("a temporary folder");
        let mut cloud = Self { binary: binary.into(), settings, folder, child: None };
        cloud.start_again().await;
        cloud
    }

    /// Starts it, without waiting.
    pub fn spawn(&mut self) {
        let _ = fs::remove_file(self.data().join("endpoint"));
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("the log file");
        let mut command = Command::new(&self.binary);
        command
            .args(["up", "--listen", "127.0.0.1:0", "--node-listen", "127.0.0.1:0", "--data"])
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
        // A test that is killed must not leave its cloud behind.
        // SAFETY: prctl is async-signal-safe and touches only the child.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                Ok(())
            });
        }
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
        let text = fs::read_to_string(self.log()).unwrap_or_default();
        let start = text.len().saturating_sub(20_000);
        text.get(text.ceil_char_boundary(start)..).unwrap_or_default().to_owned()
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
        let input = match project {
            Some(project) => serde_json::json!({ "user": user, "password": password, "project": project }),
            None => serde_json::json!({ "user": user, "password": password, "unscoped": true }),
        };
        let input: CreateToken =
            serde_json::from_value(input).map_err(|error| Error::internal("the token request does not fit", error))?;
        let token = self.anonymous().call(input).await?;
        self.anonymous().with_token(Some(token.token.reveal().to_owned()))
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

    /// The command line, set up for this cloud.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .env("NEPHOS_DATA", self.data())
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
        let _ = kill(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)), Signal::SIGTERM);
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

    /// Process ids of guests of this cloud: QEMU processes that work in its data folder.
    #[must_use]
    pub fn guests(&self) -> Vec<u32> {
        processes_in(&self.data())
    }
}

/// QEMU processes whose working folder or arguments name a folder.
fn processes_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let name = folder.to_string_lossy().into_owned();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let program = fs::read_link(process.join("exe")).unwrap_or_default();
            let qemu = program.file_name().is_some_and(|file| file.to_string_lossy().starts_with("qemu-system"));
            let here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            let named =
                fs::read(process.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&name));
            qemu && (here || named)
        })
        .collect()
}

impl Drop for CloudProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- log of the cloud in {}\n{}", self.data().display(), self.log_text());
        }
        self.kill();
        for pid in self.guests() {
            let _ = kill(Pid::from_raw(i32::try_from(pid).unwrap_or(i32::MAX)), Signal::SIGKILL);
        }
    }
}
