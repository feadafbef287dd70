//! The distribution's packages: which ones, fetched and unpacked into a folder.
//!
//! apt resolves them all in one run against a private, nearly empty dpkg status, so that alternatives, renamed
//! libraries and signatures are apt's business, and nothing on the machine changes. What the micro guest does not
//! need although packages depend on it (maintainer scripts' helpers, the distribution's initramfs) is entered into
//! that status as if it were installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use nephos_types::{Error, ErrorKind, Result};

use crate::command::{command, io_error, run};

/// What the guest is made of, and the tools that make it. The tools come from the same packages instead of from the
/// machine, so that they need not be installed and their versions fit.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "dropbear-bin",
    "e2fsprogs",
    "grub-common",
    "grub-pc-bin",
    "kmod",
    "qemu-guest-agent",
    "xz-utils",
    "zstd",
];

/// Kernels in order of preference: small ones for virtual machines first. They are names of meta packages, because the
/// names of the kernels themselves change with each update.
const KERNELS: &[&str] =
    &["linux-image-cloud-amd64", "linux-image-virtual", "linux-image-amd64", "linux-image-generic"];

/// Never fetched although something depends on it.
const ASSUMED: &[&str] = &[
    "amd64-microcode",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "initramfs-tools",
    "intel-microcode",
    "linux-base",
    "linux-firmware",
    "sysvinit-utils",
    "ucf",
    "wireless-regdb",
];

/// The exact packages, as apt resolved them.
pub(crate) struct Resolved {
    /// What to install.
    wanted: Vec<&'static str>,
    /// The files, sorted: `<package>_<version>_<architecture>.deb`.
    pub(crate) files: Vec<String>,
}

/// Finds out which packages there are now. Needs `apt-get update` to have run, and no network.
pub(crate) fn resolve(scratch: &Path) -> Result<Resolved> {
    let known = |name: &str| {
        run(&mut command("apt-cache", ["show", "--no-all-versions", name])).is_ok_and(|out| !out.is_empty())
    };
    // Says so if there is no apt at all.
    run(&mut command("apt-get", ["--version"]))?;
    let kernel = KERNELS
        .iter()
        .copied()
        .find(|name| known(name))
        .ok_or_else(|| no_package(format!("apt knows none of the kernels {}", KERNELS.join(", "))))?;
    resolve_all(scratch, PACKAGES.iter().copied().chain([kernel]).collect())
}

/// Finds out which packages these and what they need are now.
pub(crate) fn resolve_all(scratch: &Path, wanted: Vec<&'static str>) -> Result<Resolved> {
    let output = run(apt_get(scratch)?.args(["--print-uris", "-qq", "install"]).args(&wanted))
        .map_err(|error| no_package(error.detail))?;
    // Lines: 'URI' FILE SIZE CHECKSUM
    let mut files: Vec<String> = String::from_utf8_lossy(&output)
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1))
        .filter(|file| file.ends_with(".deb"))
        .map(str::to_owned)
        .collect();
    files.sort_unstable();
    Ok(Resolved { wanted, files })
}

fn no_package(detail: String) -> Error {
    Error::new(ErrorKind::Unavailable, "packages_unavailable", "The packages of the micro guest cannot be found")
        .detail(detail)
        .next("fetch the lists of packages: apt-get update", Some("apt-get update".to_owned()))
}

/// Fetches the packages (apt checks their signatures) and unpacks them into `scratch/tree`.
pub(crate) fn unpack(resolved: &Resolved, scratch: &Path) -> Result<PathBuf> {
    run(apt_get(scratch)?.args(["--download-only", "-q", "install"]).args(&resolved.wanted)).map_err(|error| {
        Error::new(
            ErrorKind::Unavailable,
            "packages_unavailable",
            "The packages of the micro guest could not be fetched",
        )
        .detail(error.detail)
        .next(
            "check that the package mirror can be reached, and bring the lists up to date: apt-get update",
            Some("apt-get update".to_owned()),
        )
    })?;
    let tree = scratch.join("tree");
    let debs = archives(scratch);
    for entry in fs::read_dir(&debs).map_err(|error| io_error("reading", &debs, error))? {
        let deb = entry.map_err(|error| io_error("reading", &debs, error))?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            run(command("dpkg-deb", ["--extract".as_ref(), deb.as_os_str(), tree.as_os_str()])
                .stdin(std::process::Stdio::null()))?;
        }
    }
    Ok(tree)
}

fn archives(scratch: &Path) -> PathBuf {
    scratch.join("archives")
}

/// `apt-get` that sees the machine's package lists but neither its installed packages nor its locks.
fn apt_get(scratch: &Path) -> Result<Command> {
    let partial = archives(scratch).join("partial");
    fs::create_dir_all(&partial).map_err(|error| io_error("making", &partial, error))?;
    let status = scratch.join("status");
    let stanzas: String = ASSUMED
        .iter()
        .map(|name| {
            // initramfs-tools stands for every program that could make the distribution's initramfs.
            let provides = if *name == "initramfs-tools" { "Provides: linux-initramfs-tool\n" } else { "" };
            format!(
                "Package: {name}\nStatus: install ok installed\nVersion: 9999\nArchitecture: all\n{provides}\
                 Maintainer: none\nDescription: assumed\n\n"
            )
        })
        .collect();
    fs::write(&status, stanzas).map_err(|error| io_error("writing", &status, error))?;
    let mut apt = command("apt-get", ["-y", "--no-install-recommends"]);
    for (option, value) in [
        ("Dir::State::status", status.as_path()),
        ("Dir::State::extended_states", &scratch.join("extended_states")),
        ("Dir::Cache::archives", &archives(scratch)),
        ("Debug::NoLocking", Path::new("1")),
        // The folder is private to this user; apt's own sandbox user could not write to it.
        ("APT::Sandbox::User", Path::new("root")),
    ] {
        apt.arg("-o").arg(format!("{option}={}", value.display()));
    }
    apt.stdin(std::process::Stdio::null());
    Ok(apt)
}
