//! A state folder, the micro guest's image, and what is left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::BoxFuture;
use nephos_driver::{
    Boot, ComputeDriver, Disk, DiskFormat, Firmware, GuestSpec, Interface, Observation, Presence, contract::Subject,
};
use nephos_driver_qemu::{Acceleration, Config, QemuDriver};
use nephos_image_build::MicroImage;
use nephos_types::{Bytes, ServerId};
use tempfile::TempDir;

/// A machine under load boots guests many times slower than an idle one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// Whether there is a QEMU to test with. Its absence is said loudly; in CI it is installed.
pub(crate) fn qemu_is_installed() -> bool {
    let runs = |program| std::process::Command::new(program).arg("--version").output().is_ok();
    let installed = runs("qemu-system-x86_64") && runs("qemu-img");
    if !installed {
        eprintln!("\n*** NOT TESTED: QEMU is not installed (packages qemu-system-x86 and qemu-utils) ***\n");
    }
    installed
}

/// The micro guest, built at the first use on a machine.
pub(crate) fn micro() -> &'static MicroImage {
    static IMAGE: OnceLock<MicroImage> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let options = nephos_image_build::Options::default();
        nephos_image_build::micro(&options, |progress| eprintln!("micro guest: {}", progress.what)).unwrap()
    })
}

/// Its disk.
pub(crate) fn image() -> &'static Path {
    &micro().disk
}

/// A state folder of a driver. What still runs in it at the end of a test is killed, so that a failed test leaves
/// nothing behind either.
pub(crate) struct Machine {
    folder: TempDir,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    /// One whose paths are longer than a socket's address may be.
    pub(crate) fn with_long_path() -> Self {
        let folder = tempfile::Builder::new().prefix(&"long-".repeat(40)).tempdir().unwrap();
        Self { folder }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.folder.path().join("compute")
    }

    pub(crate) async fn driver(&self) -> QemuDriver {
        let config = Config { acceleration: Acceleration::Emulate, ..Config::new(self.state()) };
        QemuDriver::open(config).await.unwrap()
    }

    pub(crate) fn run_folder(&self, id: ServerId) -> PathBuf {
        self.state().join("guests").join(id.to_string()).join("run")
    }

    /// The processes that work anywhere in the state folder.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let state = self.state();
        let inside = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&state));
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        pids.filter(inside).collect()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for pid in self.processes() {
            kill(pid);
        }
    }
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// An ordinary guest of the micro image.
pub(crate) fn spec() -> GuestSpec {
    GuestSpec {
        id: ServerId::new(),
        name: "web".into(),
        vcpus: 1,
        memory: Bytes::mib(128),
        disk: Disk { base: Some((image().to_owned(), DiskFormat::Qcow2)), size: Bytes(0), incarnation: 0 },
        firmware: Firmware::Bios,
        boot: Boot::Disk,
        rescue: None,
        interfaces: vec![Interface::User { mac: "52:54:00:00:01:01".into(), forwards: vec![] }],
        config_drive: vec![],
    }
}

/// A guest that boots nothing: for tests that only need its QEMU.
pub(crate) fn empty() -> GuestSpec {
    GuestSpec { disk: Disk { base: None, size: Bytes::mib(8), incarnation: 0 }, ..spec() }
}

pub(crate) async fn observed(driver: &QemuDriver, id: ServerId) -> Observation {
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

/// Waits until the console log shows a text.
pub(crate) async fn log_shows(driver: &QemuDriver, id: ServerId, text: &str) {
    let shows = async || {
        let log = driver.console_log(id, 1 << 20).await.unwrap();
        String::from_utf8_lossy(&log).contains(text).then_some(())
    };
    until(text, shows).await;
}

impl Subject for Machine {
    fn driver(&self) -> BoxFuture<'_, Arc<dyn ComputeDriver>> {
        Box::pin(async { Arc::new(Machine::driver(self).await) as Arc<dyn ComputeDriver> })
    }
    fn base(&self) -> Option<(PathBuf, DiskFormat)> {
        Some((image().to_owned(), DiskFormat::Qcow2))
    }
    fn login(&self) -> (String, String) {
        ("root".to_owned(), "nephos".to_owned())
    }
    fn kernel(&self) -> Option<(PathBuf, PathBuf, String)> {
        Some((micro().kernel.clone(), micro().initrd.clone(), MicroImage::KERNEL_ARGUMENTS.to_owned()))
    }
    fn answers(&self) -> bool {
        true
    }
    fn scratch(&self) -> PathBuf {
        self.state().clone()
    }
    fn kill(&self, _: ServerId, observation: &Observation) {
        kill(observation.pid.expect("a running guest has a process"));
    }
    fn leftovers(&self, id: ServerId) -> Vec<String> {
        let id = id.to_string();
        let files = fs::read_dir(self.state().join("guests")).unwrap();
        let files = files.map(|entry| entry.unwrap().path().display().to_string()).filter(|path| path.contains(&id));
        let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let command = fs::read(entry.ok()?.path().join("cmdline")).ok()?;
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            command.contains(&id).then_some(command)
        });
        files.chain(processes).collect()
    }
    fn patience(&self) -> Duration {
        PATIENCE
    }
}
