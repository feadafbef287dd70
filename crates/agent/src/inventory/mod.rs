//! What the machine has, from `/proc` and the file system.

mod hardware;

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use nephos_driver::{Capabilities, MissingDriver};
use nephos_node_api::Inventory;
use nephos_types::{Bytes, Error, Result};

use crate::config::Config;

/// Reads it; what guests cannot have is already taken off.
pub(crate) fn read(config: &Config, compute: Vec<Capabilities>, missing: Vec<MissingDriver>) -> Result<Inventory> {
    if let Some(inventory) = &config.inventory {
        return Ok(Inventory { compute, missing, ..inventory.clone() });
    }
    let system = nix::sys::utsname::uname().map_err(|error| Error::internal("uname failed", error))?;
    let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
    let total = memory_total(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let reserved = config.reserved_memory.unwrap_or(Bytes(Bytes::mib(256).0 + total.0 / 50));
    Ok(Inventory {
        hostname: text(system.nodename()),
        kernel: text(system.release()),
        architecture: text(system.machine()),
        cpu_model: cpu_model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        cpus: std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory: Bytes(total.0.saturating_sub(reserved.0)),
        disk: disk(config.data.as_deref().unwrap_or(Path::new("/")), config.reserved_disk)?,
        forward_ports: config.forward_ports,
        compute,
        missing,
        hardware: hardware::read(Path::new("/")),
        network: None,
    })
}

fn memory_total(meminfo: &str) -> Bytes {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next()?.parse().ok())
        .map_or(Bytes(0), |kib: u64| Bytes(kib.saturating_mul(1024)))
}

fn cpu_model(cpuinfo: &str) -> String {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(|| "unknown".to_owned(), |(_, model)| model.trim().to_owned())
}

/// What guests' disks may fill: what is free, and what guests have filled already.
fn disk(data: &Path, reserved: Bytes) -> Result<Bytes> {
    let system = nix::sys::statvfs::statvfs(data)
        .map_err(|error| Error::internal("The agent's disk cannot be measured", error))?;
    let free = system.blocks_available().saturating_mul(system.fragment_size());
    Ok(Bytes(free.saturating_add(filled(data, 4)).saturating_sub(reserved.0)))
}

fn filled(folder: &Path, depth: u32) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| match metadata.is_dir() {
            true if depth > 0 => filled(&path, depth - 1),
            true => 0,
            false => metadata.blocks().saturating_mul(512),
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_files_are_understood() {
        assert_eq!(memory_total("MemTotal:       24689372 kB\nMemFree: 1 kB\n"), Bytes(24_689_372 * 1024));
        assert_eq!(memory_total("garbage"), Bytes(0));
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: Fancy CPU @ 3 GHz\n"), "Fancy CPU @ 3 GHz");
        assert_eq!(cpu_model(""), "unknown");
    }
}
