//! Hardware virtualisation or emulation.
//!
//! A `/dev/kvm` that can be opened proves nothing, nor does a QEMU that says `running`: there are machines on which
//! guests then hang in their first instructions. So KVM is used only after a real Linux kernel has been seen to boot
//! under it. The outcome is remembered for the pair of host kernel and QEMU version.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nephos_driver::Accelerator;
use nephos_host::process::Process;
use nephos_types::ServerId;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::{launch::Launch, rights::Users};

const DEVICE: &str = "/dev/kvm";
/// A kernel that boots writes its first line well within a second.
const PROBE_LIMIT: Duration = Duration::from_secs(4);
const MAX_KERNEL: u64 = 256 << 20;

#[derive(Serialize, Deserialize, PartialEq)]
struct Remembered {
    host_kernel: String,
    qemu: String,
    accelerator: Accelerator,
}

/// How a probe is made.
pub(crate) struct Probe<'a> {
    /// QEMU.
    pub(crate) qemu: &'a Path,
    /// Its version.
    pub(crate) version: &'a str,
    /// Where the outcome is remembered and the probe guest lives meanwhile.
    pub(crate) state: &'a Path,
    /// Whose rights the probe guest has.
    pub(crate) users: Users,
    /// Linux kernels to try; the first one that can be read is used. The host's own are tried after these.
    pub(crate) kernels: &'a [PathBuf],
}

impl Probe<'_> {
    /// What guests on this machine can be run with.
    pub(crate) async fn run(&self) -> Accelerator {
        let emulate = |reason: String| Accelerator::Tcg { reason };
        if let Err(error) = File::options().read(true).write(true).open(DEVICE) {
            return emulate(format!("{DEVICE}: {error}"));
        }
        let host_kernel = host_kernel();
        let memory = self.state.join("accelerator.json");
        if let Some(known) = remembered(&memory)
            && known.host_kernel == host_kernel
            && known.qemu == self.version
        {
            return known.accelerator;
        }
        let own = ["vmlinuz".to_owned(), format!("vmlinuz-{host_kernel}")];
        let own = own.iter().map(|name| Path::new("/boot").join(name)).chain([PathBuf::from("/vmlinuz")]);
        let Some(kernel) = self.kernels.iter().cloned().chain(own).find(|path| File::open(path).is_ok()) else {
            return emulate(format!("there is no Linux kernel to try {DEVICE} with"));
        };
        let accelerator = match self.boot(&kernel).await {
            Ok(true) => Accelerator::Kvm,
            Ok(false) => emulate(format!("a probe guest did not boot with {DEVICE} within {PROBE_LIMIT:?}")),
            // Says nothing about the machine, so it is not remembered.
            Err(error) => return emulate(format!("{DEVICE} could not be tried: {error}")),
        };
        let known = Remembered { host_kernel, qemu: self.version.to_owned(), accelerator: accelerator.clone() };
        if let Err(error) =
            serde_json::to_vec(&known).map_err(io::Error::from).and_then(|text| fs::write(&memory, text))
        {
            tracing::warn!(%error, "the accelerator's probe cannot be remembered");
        }
        accelerator
    }

    /// Whether a kernel says hello under KVM.
    async fn boot(&self, kernel: &Path) -> io::Result<bool> {
        let id = ServerId::new();
        let folder = self.state.join("probe");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        let outcome = self.boot_in(&folder, kernel, id).await;
        fs::remove_dir_all(&folder)?;
        outcome
    }

    async fn boot_in(&self, folder: &Path, kernel: &Path, id: ServerId) -> io::Result<bool> {
        // A copy, because the original may be readable by root only.
        let copy = folder.join("kernel");
        io::copy(&mut File::open(kernel)?.take(MAX_KERNEL), &mut File::create(&copy)?)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o644))?;
        let run = rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        if let Some((uid, gid)) = self.users.owner(id) {
            rustix::fs::fchown(&run, Some(uid), Some(gid))?;
        }
        let rights = self.users.rights(id, &Accelerator::Kvm);
        let arguments: Vec<String> = [
            "-name",
            "accelerator-probe",
            "-no-user-config",
            "-nodefaults",
            "-display",
            "none",
            "-machine",
            "q35",
            "-accel",
            "kvm",
            "-cpu",
            "host",
            "-m",
            "size=256M",
            "-no-reboot",
            "-chardev",
            "file,id=serial0,path=serial.log",
            "-serial",
            "chardev:serial0",
            "-kernel",
            "kernel",
            "-append",
            "console=ttyS0 earlyprintk=ttyS0",
        ]
        .map(str::to_owned)
        .into();
        let errors = folder.join("errors.log");
        let launch = Launch {
            program: self.qemu,
            arguments: &arguments,
            folder: std::os::fd::AsFd::as_fd(&run),
            rights: &rights,
            inherited: &[],
            output: Stdio::null(),
            errors: File::create(&errors)?.into(),
            limits: None,
        };
        let process = Process::of_child(launch.spawn()?)?;
        let deadline = Instant::now() + PROBE_LIMIT;
        let booted = loop {
            let mut said = vec![];
            if let Ok(log) = File::open(folder.join("serial.log")) {
                log.take(1 << 20).read_to_end(&mut said)?;
            }
            if String::from_utf8_lossy(&said).contains("Linux version") {
                break true;
            }
            if process.has_ended() || Instant::now() >= deadline {
                break false;
            }
            sleep(Duration::from_millis(20)).await;
        };
        process.kill()?;
        process.ended().await;
        Ok(booted)
    }
}

fn remembered(path: &Path) -> Option<Remembered> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// The running kernel's release.
fn host_kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
