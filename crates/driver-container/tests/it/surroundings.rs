//! A state folder, the micro container's image, and what is left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_driver::{
    Answer, Boot, ComputeDriver, Disk, DiskFormat, Firmware, GuestSpec, Interface, Observation, Presence, Question,
    contract::Subject,
};
use nephos_driver_container::{Config, ContainerDriver};
use nephos_types::{Bytes, ServerId};
use tempfile::TempDir;

/// A machine under load starts containers many times slower than an idle one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// Whether containers can be run here. If not, it is said loudly; in CI they can.
pub(crate) fn containers_can_run() -> bool {
    let root = rustix::process::geteuid().is_root();
    let installed = ["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"].iter().any(|path| Path::new(path).exists());
    if !root || !installed {
        eprintln!("\n*** NOT TESTED: containers need root and crun or runc (root: {root}, runtime: {installed}) ***\n");
    }
    root && installed
}

/// The micro container's root file system, built at the first use on a machine.
pub(crate) fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let options = nephos_image_build::Options::default();
        nephos_image_build::micro_container(&options, |progress| eprintln!("micro container: {}", progress.what))
            .unwrap()
    })
}

/// A state folder of a driver. What still runs in it at the end of a test is killed, so that a failed test leaves
/// nothing behind either.
pub(crate) struct Machine {
    folder: TempDir,
    runtime: Option<PathBuf>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), runtime: None }
    }

    /// One that uses this runtime.
    pub(crate) fn with_runtime(runtime: &str) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), runtime: Some(runtime.into()) }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("containers")
    }

    pub(crate) fn config(&self) -> Config {
        let mut config = Config::new(self.state());
        config.keeper = env!("CARGO_BIN_EXE_nephos-container-keeper").into();
        if let Some(runtime) = &self.runtime {
            config.runtimes = vec![runtime.clone()];
        }
        config
    }

    pub(crate) async fn driver(&self) -> ContainerDriver {
        ContainerDriver::open(self.config()).await.unwrap()
    }

    /// The keepers that work anywhere in the state folder.
    pub(crate) fn keepers(&self) -> Vec<u32> {
        let state = self.state();
        let inside = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&state));
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(inside).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for pid in self.keepers() {
            kill(pid);
        }
        let guests = fs::read_dir(self.state().join("guests")).into_iter().flatten().flatten();
        for group in guests.flat_map(|guest| groups(&guest.file_name().to_string_lossy())) {
            for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
                kill(pid.parse().unwrap());
            }
            let _ = fs::write(group.join("freezer.state"), "THAWED");
            // Its processes need a moment to leave.
            for _ in 0..1000 {
                if fs::remove_dir(&group).is_ok() {
                    break;
                }
                std::thread::yield_now();
            }
        }
    }
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// The control groups of this name.
pub(crate) fn groups(name: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/sys/fs/cgroup/nephos").join(name)];
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        found.push(entry.path().join("nephos").join(name));
    }
    found.retain(|path| path.exists());
    found
}

/// An ordinary guest of the micro container.
pub(crate) fn spec() -> GuestSpec {
    GuestSpec {
        id: ServerId::new(),
        name: "web".into(),
        vcpus: 1,
        memory: Bytes::mib(64),
        disk: Disk { base: Some((image().to_owned(), DiskFormat::Tar)), size: Bytes::mib(64), incarnation: 0 },
        firmware: Firmware::Bios,
        boot: Boot::Disk,
        rescue: None,
        interfaces: vec![Interface::User { mac: "52:54:00:00:01:01".into(), forwards: vec![] }],
        config_drive: vec![],
    }
}

pub(crate) async fn observed(driver: &ContainerDriver, id: ServerId) -> Observation {
    match driver.observe(id).await {
        Presence::Present(observation) => observation,
        other => panic!("{id}: {other:?}"),
    }
}

/// Asks until the answer is there.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Runs a script in a guest; its exit code and everything it wrote.
pub(crate) async fn shell(driver: &ContainerDriver, id: ServerId, script: &str) -> (Option<i32>, String) {
    let question = Question::Execute {
        command: ["/bin/sh", "-c", script].map(str::to_owned).into(),
        environment: [].into(),
        input: vec![],
        limit_ms: PATIENCE.as_millis() as u64,
        max_output: 1 << 20,
    };
    match driver.ask(id, &question).await {
        Ok(Answer::Ended { code, output, errors, .. }) => {
            (code, format!("{}{}", String::from_utf8_lossy(&output), String::from_utf8_lossy(&errors)))
        }
        other => panic!("{script}: {other:?}"),
    }
}

/// Waits until the console log shows a text.
pub(crate) async fn log_shows(driver: &ContainerDriver, id: ServerId, text: &str) {
    let shows = async || {
        let log = driver.console_log(id, 1 << 20).await.unwrap();
        String::from_utf8_lossy(&log).contains(text).then_some(())
    };
    if tokio::time::timeout(PATIENCE - Duration::from_secs(60), until(text, shows)).await.is_err() {
        let log = driver.console_log(id, 1 << 20).await.unwrap();
        panic!("{text:?} is not in the log: {}", String::from_utf8_lossy(&log));
    }
}

/// A free port of this machine.
pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Subject for Machine {
    fn driver(&self) -> BoxFuture<'_, Arc<dyn ComputeDriver>> {
        Box::pin(async { Arc::new(Machine::driver(self).await) as Arc<dyn ComputeDriver> })
    }
    fn base(&self) -> Option<(PathBuf, DiskFormat)> {
        Some((image().to_owned(), DiskFormat::Tar))
    }
    fn login(&self) -> (String, String) {
        ("root".to_owned(), "nephos".to_owned())
    }
    fn mount_command(&self) -> String {
        // It is there already.
        "ls /mnt".to_owned()
    }
    fn answers(&self) -> bool {
        true
    }
    fn scratch(&self) -> PathBuf {
        self.folder().to_owned()
    }
    fn kill(&self, _: ServerId, observation: &Observation) {
        kill(observation.pid.expect("a running guest has a process"));
    }
    fn leftovers(&self, id: ServerId) -> Vec<String> {
        let id = id.to_string();
        let files = fs::read_dir(self.state().join("guests")).unwrap();
        let files = files.map(|entry| entry.unwrap().path().display().to_string()).filter(|path| path.contains(&id));
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let entry = entry.ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?.display().to_string();
            cwd.contains(&id).then_some(cwd)
        });
        let groups = groups(&id).into_iter().map(|path| path.display().to_string());
        let devices = fs::read_dir("/sys/block").unwrap().filter_map(|entry| {
            let file = fs::read_to_string(entry.ok()?.path().join("loop/backing_file")).ok()?;
            file.contains(&id).then_some(file)
        });
        files.chain(processes).chain(groups).chain(devices).collect()
    }
    fn patience(&self) -> Duration {
        PATIENCE
    }
}
