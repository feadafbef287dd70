//! A shell in a real guest, by SSH: unlike a console it has exit codes, and nobody else speaks on it.

use std::{
    path::PathBuf,
    process::{Output, Stdio},
};

use nephos_cli::client::Client;
use nephos_ops::compute::CreateKeyPair;
use nephos_testkit::until;
use serde_json::json;
use tempfile::TempDir;

use crate::help::server;

/// What `ssh` ends with when it could not speak with the other side.
const NO_CONNECTION: i32 = 255;

/// A key that servers can be created with.
pub(crate) struct Key {
    folder: TempDir,
}

impl Key {
    /// Makes one, and makes it known to the cloud under this name.
    pub(crate) async fn new(client: &Client, name: &str) -> Self {
        let key = Self { folder: tempfile::tempdir().unwrap() };
        let made = std::process::Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
            .arg(key.file())
            .status()
            .expect("ssh-keygen is installed (package openssh-client)");
        assert!(made.success());
        let public = std::fs::read_to_string(key.file().with_extension("pub")).unwrap();
        let create: CreateKeyPair =
            serde_json::from_value(json!({ "name": name, "public_key": public.trim() })).unwrap();
        client.call(create).await.unwrap();
        key
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("key")
    }

    /// The shell of a server of which port 22 is forwarded.
    pub(crate) async fn shell(&self, client: &Client, name: &str) -> Shell {
        let server = server(client, name).await.expect("the server is there");
        let port = server.forwards.iter().find(|forward| forward.port == 22).expect("port 22 is forwarded").node_port;
        Shell { key: self.file(), port, user: "root" }
    }
}

/// A user's shell in a guest: root's, unless another is named.
pub(crate) struct Shell {
    key: PathBuf,
    port: u16,
    user: &'static str,
}

impl Shell {
    /// Another user's.
    pub(crate) fn of(self, user: &'static str) -> Self {
        Self { user, ..self }
    }

    /// Runs a script as soon as the guest can be spoken with, and returns what it printed. It may run more than once: if
    /// the connection breaks, it is run again.
    pub(crate) async fn run(&self, script: &str) -> String {
        let output = until(&format!("an answer to `{script}`"), || async {
            let output = self.ssh(script).await;
            (output.status.code() != Some(NO_CONNECTION)).then_some(output)
        })
        .await;
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "`{script}`: {}\n{said}{errors}", output.status);
        said.trim_end().to_owned()
    }

    /// Runs a script again and again until it prints this.
    pub(crate) async fn until(&self, script: &str, text: &str) {
        until(&format!("`{script}` to print `{text}`"), || async { (self.run(script).await == text).then_some(()) })
            .await;
    }

    /// What tells one start of the guest's kernel from another.
    pub(crate) async fn boot(&self) -> String {
        self.run("cat /proc/sys/kernel/random/boot_id").await
    }

    async fn ssh(&self, script: &str) -> Output {
        let options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
        ];
        tokio::process::Command::new("ssh")
            .args(["-F", "/dev/null", "-p", &self.port.to_string(), "-i"])
            .arg(&self.key)
            .args(options.iter().flat_map(|option| ["-o", option]))
            .args([&format!("{}@127.0.0.1", self.user), script])
            .env_remove("SSH_AUTH_SOCK")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .expect("ssh is installed (package openssh-client)")
    }
}
