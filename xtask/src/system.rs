//! Which system packages are needed, which are missing, and how they come onto a Debian or Ubuntu machine.

use std::{path::Path, process::Command};

use crate::process::{Outcome, output, run, succeeds};

/// A file that shows a package to be there, and the package.
type Need = (&'static str, &'static str);

/// What the cloud runs servers with.
const FOR_RUNNING: &[Need] = &[
    ("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/bin/qemu-img", "qemu-utils"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("/usr/bin/crun", "crun"),
    ("/usr/sbin/mkfs.ext4", "e2fsprogs"),
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf"),
    ("/usr/sbin/nft", "nftables"),
];

/// What the tests need besides.
const FOR_TESTS: &[Need] = &[
    ("/usr/bin/python3", "python3"),
    ("/usr/share/doc/python3-venv", "python3-venv"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/bin/busybox", "busybox-static"),
    ("/usr/bin/dig", "bind9-dnsutils"),
    ("/usr/bin/curl", "curl"),
    ("/usr/sbin/dhclient", "isc-dhcp-client"),
    ("/usr/bin/rdisc6", "ndisc6"),
    ("/usr/bin/ping", "iputils-ping"),
    ("/usr/bin/ssh", "openssh-client"),
    ("/usr/bin/mmdebstrap", "mmdebstrap"),
    ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring"),
    ("/usr/bin/openssl", "openssl"),
    ("/usr/lib/postgresql", "postgresql"),
    ("/usr/lib/ISOLINUX/isolinux.bin", "isolinux"),
    ("/usr/lib/syslinux/modules/bios/ldlinux.c32", "syslinux-common"),
    ("/usr/bin/xorriso", "xorriso"),
    ("/usr/lib/grub/x86_64-efi/linux.mod", "grub-efi-amd64-bin"),
    ("/usr/bin/grub-mkimage", "grub-common"),
];

/// Installs what running the cloud needs.
pub(crate) fn ensure_running() -> Outcome {
    ensure(&[FOR_RUNNING])
}

/// Installs what the tests need.
pub(crate) fn ensure_tests() -> Outcome {
    ensure(&[FOR_RUNNING, FOR_TESTS])
}

fn ensure(needs: &[&[Need]]) -> Outcome {
    let mut missing: Vec<&str> = needs
        .iter()
        .flat_map(|list| list.iter())
        // With merged /usr a file may be listed under either path.
        .filter(|(file, _)| !Path::new(file).exists() && !Path::new(file.trim_start_matches("/usr")).exists())
        .map(|(_, package)| *package)
        .collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    println!("missing system packages: {}", missing.join(" "));
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(format!(
            "this machine has no apt-get; install what corresponds to these Debian packages and try again: {}",
            missing.join(" ")
        ));
    }
    println!("installing them with apt-get");
    run(apt().args(["update", "-q"]))?;
    let mut wanted: Vec<String> = missing.iter().map(ToString::to_string).collect();
    // Where a newer qemu-utils than the archive's was put on the machine, the archive's qemu-system-x86 cannot stand
    // beside it: both have to be of one version.
    if missing.contains(&"qemu-system-x86") {
        let version = candidate("qemu-system-x86")?;
        wanted.retain(|package| package != "qemu-utils");
        wanted.push(format!("qemu-utils={version}"));
    }
    run(apt().args(["install", "-y", "-q", "--no-install-recommends", "--allow-downgrades"]).args(&wanted))
}

fn candidate(package: &str) -> Outcome<String> {
    let policy = output(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C"))?;
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
        .ok_or_else(|| format!("the package archive has no `{package}`"))
}

fn apt() -> Command {
    let root = output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut command = Command::new("sudo");
        command.arg("apt-get");
        command
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// A Python environment with these packages from PyPI, made once in the user's cache folder. Returns its folder.
pub(crate) fn python(name: &str, packages: &[&str]) -> Outcome<std::path::PathBuf> {
    let folder = crate::process::cache_folder().join("python").join(name);
    let stamp = folder.join("installed");
    let wanted = packages.join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(folder);
    }
    println!("installing from PyPI: {}", packages.join(" "));
    if !succeeds(Command::new("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder)) {
        return Err(format!("python3 could not make a virtual environment in {}", folder.display()));
    }
    run(Command::new(folder.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check"])
        .args(packages))?;
    std::fs::write(&stamp, wanted).map_err(|error| format!("{}: {error}", stamp.display()))?;
    Ok(folder)
}
