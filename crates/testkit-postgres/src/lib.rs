//! A real PostgreSQL server for tests: in a temporary folder, on a unix socket, as an unprivileged user.
//!
//! [`shared`] is one server for all tests of a process, with a database of its own for each test; [`Server::start`] is
//! one that a test may kill. A small shell beside each server waits for the end of the process that started it, whatever
//! ends it, and then stops the server and removes its folder.

use std::{
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};

/// How long a server may take to start; after a crash it first repairs itself.
const START: Duration = Duration::from_secs(60);
/// The user who owns every database.
const OWNER: &str = "nephos";

/// Waits for the end of its standard input, then stops the server and removes everything.
const GUARD: &str = r#"
    cat > /dev/null
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        pid=$(head -n 1 "$1/data/postmaster.pid" 2> /dev/null) && kill -QUIT "$pid" 2> /dev/null
        rm -rf "$1" 2> /dev/null && [ ! -e "$1" ] && exit 0
        sleep 0.3
    done
"#;

/// A server.
pub struct Server {
    folder: PathBuf,
    binaries: PathBuf,
    postmaster: Mutex<Option<Child>>,
    databases: AtomicU32,
    settings: Vec<String>,
    /// Waits for the end of its standard input.
    guard: Child,
}

/// The server that all tests of this process share. It does not wait for the disk, since no test pulls the plug of the
/// machine; one that measures or kills starts its own.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start_with(&["fsync=off"]))
}

impl Server {
    /// Makes a server and starts it.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start: a test cannot go on without it.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// One that also listens on a port of the loopback and can encrypt there, with this certificate and key in PEM.
    #[must_use]
    pub fn start_encrypted(certificate: &str, key: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let port = format!("port={}", free.port());
        let files = [("ssl_cert_file", "server.pem", certificate), ("ssl_key_file", "server.key", key)];
        Self::start_in(&["ssl=on", "listen_addresses=127.0.0.1", &port], &files)
    }

    /// The same with more settings, each as `name=value`.
    #[must_use]
    pub fn start_with(settings: &[&str]) -> Self {
        Self::start_in(settings, &[])
    }

    /// `files`: which setting names the file, its name, and what it holds.
    fn start_in(settings: &[&str], files: &[(&str, &str, &str)]) -> Self {
        let binaries = binaries();
        let folder = tempfile::Builder::new().prefix("nephos-pg-").tempdir().expect("a temporary folder").keep();
        let guard = guard(&folder);
        if let Some((user, group)) = unprivileged() {
            chown(&folder, Some(user), Some(group)).expect("the folder is given to an unprivileged user");
        }
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700)).expect("permissions");
        let mut settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        for (setting, name, content) in files {
            let path = folder.join(name);
            std::fs::write(&path, content).expect("a file is written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
            if let Some((user, group)) = unprivileged() {
                chown(&path, Some(user), Some(group)).expect("the file is given to an unprivileged user");
            }
            settings.push(format!("{setting}={}", path.display()));
        }
        let data = folder.join("data");
        let output = command(&binaries.join("initdb"))
            .args(["--no-sync", "--no-instructions", "--auth=trust", "--encoding=UTF8", "--locale=C"])
            .args(["--username", OWNER, "--pgdata"])
            .arg(&data)
            .output()
            .expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let server =
            Self { folder, binaries, postmaster: Mutex::new(None), databases: AtomicU32::new(0), settings, guard };
        server.run();
        server
    }

    /// Starts it (again) and waits until it answers.
    pub fn run(&self) {
        let mut postmaster = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner);
        let begin = Instant::now();
        loop {
            let log = std::fs::OpenOptions::new().create(true).append(true).open(self.log()).expect("a log file");
            let mut child = command(&self.binaries.join("postgres"))
                .arg("-D")
                .arg(self.folder.join("data"))
                .args(["-c", "listen_addresses=", "-c", "max_connections=200"])
                .args(["-c", &format!("unix_socket_directories={}", self.folder.display())])
                .args(self.settings.iter().flat_map(|setting| ["-c", setting]))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .process_group(0)
                .spawn()
                .expect("postgres starts");
            // One that was killed leaves its shared memory to its children for a moment, and then this one ends.
            let ended = loop {
                if self.answers() {
                    break false;
                }
                if child.try_wait().expect("a child can be asked for").is_some() {
                    break true;
                }
                assert!(begin.elapsed() < START, "PostgreSQL does not answer: {}", self.what_it_said());
                pause();
            };
            if !ended {
                *postmaster = Some(child);
                return;
            }
            assert!(begin.elapsed() < START, "PostgreSQL does not start: {}", self.what_it_said());
            pause();
        }
    }

    /// Ends the server at once, as if its machine had failed but for the disk.
    pub fn kill(&self) {
        let child = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops the server without waiting for those who are connected, and without a checkpoint.
    pub fn stop_immediately(&self) {
        let child = self.postmaster.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut child) = child {
            if let Ok(pid) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
            let _ = child.wait();
        }
    }

    /// The URL of a new, empty database.
    #[must_use]
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// The URL of a database with this name.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let folder = self.folder.display().to_string().replace('/', "%2F");
        format!("postgres://{OWNER}@{folder}:{}/{name}", self.port())
    }

    /// The URL of a database with this name by way of the loopback.
    #[must_use]
    pub fn url_by_port(&self, name: &str) -> String {
        format!("postgres://{OWNER}@127.0.0.1:{}/{name}", self.port())
    }

    fn port(&self) -> &str {
        self.settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432")
    }

    /// Runs statements in a database and answers what they print.
    ///
    /// # Panics
    /// If they fail.
    #[must_use]
    pub fn query(&self, database: &str, sql: &str) -> String {
        let output = self.psql(database, sql);
        assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn sql(&self, database: &str, sql: &str) {
        let _ = self.query(database, sql);
    }

    /// Whether it takes connections.
    fn answers(&self) -> bool {
        self.psql("postgres", "SELECT 1").status.success()
    }

    fn psql(&self, database: &str, sql: &str) -> std::process::Output {
        Command::new(self.binaries.join("psql"))
            .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set=ON_ERROR_STOP=1"])
            .args(["--username", OWNER, "--dbname", database, "--host"])
            .arg(&self.folder)
            .args(["--port", self.port(), "--command", sql])
            .output()
            .expect("psql runs")
    }

    /// Where the socket is.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn what_it_said(&self) -> String {
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop_immediately();
        // Now it removes the folder.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

fn guard(folder: &Path) -> Child {
    Command::new("/bin/sh")
        .args(["-c", GUARD, "guard"])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A signal from the terminal is meant for the tests; this must outlive them.
        .process_group(0)
        .spawn()
        .expect("a shell starts")
}

/// Whom a server runs as when the tests run as root, for whom PostgreSQL refuses to run.
fn unprivileged() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let nobody = User::from_name("nobody").ok().flatten().expect("a user `nobody`");
    Some((nobody.uid.as_raw(), nobody.gid.as_raw()))
}

fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_remove("PGDATA").current_dir("/");
    if let Some((user, group)) = unprivileged() {
        command.uid(user).gid(group);
    }
    command
}

/// Whether PostgreSQL is installed.
#[must_use]
pub fn installed() -> bool {
    found().is_some()
}

fn binaries() -> PathBuf {
    found().expect("PostgreSQL is installed: on Debian, install the package `postgresql`")
}

/// The folder of the newest installed version.
fn found() -> Option<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, folder): &(u32, PathBuf)| folder.join("initdb").exists())
        .collect();
    versions.sort();
    let newest = versions.pop().map(|(_, folder)| folder);
    newest.or_else(|| {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).find(|folder| folder.join("initdb").exists())
    })
}

#[allow(clippy::disallowed_methods, reason = "a helper of tests that waits for another process")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
