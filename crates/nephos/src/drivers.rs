//! What runs servers on this machine: virtual machines and containers, whichever the machine lets us have.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_agent::Drivers;
use nephos_driver::{ComputeDriver, MissingDriver};
use nephos_driver_container::{Config as ContainerConfig, ContainerDriver};
use nephos_driver_network::{LinuxNetworks, Settings as NetworkSettings};
use nephos_driver_qemu::{Acceleration, Config as QemuConfig, QemuDriver};
use nephos_network_services as services;
use nephos_types::{Error, ErrorKind, Result};
use sha2::{Digest, Sha256};

/// Where distributions and our own image build leave kernels that a probe guest can boot.
const KERNEL_FOLDERS: [&str; 1] = ["/boot"];

/// Opens all drivers on a node's folder. One that the machine cannot have is left out and said so, in the log and by
/// the node; a machine that can have none is no node.
pub(crate) async fn open(folder: &Path) -> Result<Drivers> {
    let (qemu, container) = tokio::join!(qemu(folder), container(folder));
    let (mut present, mut missing, mut refusals) = (vec![], vec![], vec![]);
    for (name, opened) in [("qemu", qemu), ("container", container)] {
        match opened {
            Ok(driver) => present.push(driver),
            // Anything else, such as a folder that another agent has, is a reason not to start.
            Err(error) if error.kind == ErrorKind::Unsupported => {
                missing.push(MissingDriver { driver: name.to_owned(), reason: reason(&error) });
                refusals.push(error);
            }
            Err(error) => return Err(error),
        }
    }
    if present.is_empty() {
        let mut error = Error::new(ErrorKind::Unsupported, "no_driver", "Nothing on this machine can run servers");
        for (missing, refusal) in missing.into_iter().zip(refusals) {
            error = error.reason(missing.driver, "present", missing.reason);
            error.next.extend(refusal.next);
        }
        return Err(error);
    }
    for missing in &missing {
        tracing::warn!(driver = missing.driver, reason = missing.reason, "this node goes on without a driver");
    }
    let drivers = Drivers::new(present).without(missing);
    Ok(match networks(folder) {
        Ok(networks) => drivers.with_networks(Arc::new(networks), Some(services::Settings::default())),
        Err(error) => {
            tracing::warn!(reason = reason(&error), "servers on this node have user-mode networking only");
            drivers
        }
    })
}

/// An error in one line: what is wrong, and what to do about it.
fn reason(error: &Error) -> String {
    let mut text = error.chain();
    for step in &error.next {
        text.push_str(&format!("; {}", step.action));
        if let Some(command) = &step.cmd {
            text.push_str(&format!(": {command}"));
        }
    }
    text
}

/// Virtual machines. Hardware virtualisation is probed for with whatever kernel the machine has.
async fn qemu(folder: &Path) -> Result<Arc<dyn ComputeDriver>> {
    let mut settings = QemuConfig::new(folder);
    settings.acceleration = Acceleration::Probe { kernels: kernels() };
    Ok(Arc::new(QemuDriver::open(settings).await?))
}

/// Networks. What they are called on this machine follows from the node's folder, so that nodes do not meet.
fn networks(folder: &Path) -> Result<LinuxNetworks> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut hasher = Sha256::new();
    hasher.update(folder.as_os_str().as_encoded_bytes());
    let name: String = hasher.finalize().iter().take(5).map(|byte| format!("{byte:02x}")).collect();
    let mut settings = NetworkSettings::new(format!("nephos-{name}"));
    settings.host = true;
    settings.underlay = match std::env::var("NEPHOS_UNDERLAY") {
        Err(_) => None,
        Ok(address) => Some(address.parse().map_err(|_| {
            Error::invalid("invalid_setting", "NEPHOS_UNDERLAY is not an address of this machine").detail(address)
        })?),
    };
    LinuxNetworks::open(settings)
}

/// Containers, in a folder of their own within the node's.
async fn container(folder: &Path) -> Result<Arc<dyn ComputeDriver>> {
    Ok(Arc::new(ContainerDriver::open(ContainerConfig::new(folder.join("containers"))).await?))
}

fn kernels() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = KERNEL_FOLDERS
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz")))
        .collect();
    found.extend(nephos_image_build::cached().map(|image| image.kernel));
    found
}
