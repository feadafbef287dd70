//! A full Debian for servers: systemd, cloud-init, the QEMU guest agent and an SSH server, made by mmdebstrap from the
//! distribution's packages.
//!
//! Unlike the micro guest it has files of many owners and runs the packages' own scripts, so it takes root to build.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use nephos_types::{Error, ErrorKind, Result};

use crate::{
    Options, Progress,
    cache::{Cache, digest, lists_state},
    command::{command, io_error, run},
    disk, grub, packages,
    toolbox::Toolbox,
};

/// Part of every name: to be raised when a change of this file, rather than of what it puts in, changes what it builds.
const BUILDER: &str = "2";
const KIND: &str = "debian";
const STEPS: u32 = 4;
/// Images of a suite that are kept.
const KEPT: usize = 3;
/// What makes the disk, besides what the system has to have.
const TOOLS: &[&str] = &["e2fsprogs", "grub-common", "grub-pc-bin"];
/// What is in it besides the essential packages.
const PACKAGES: &[&str] = &[
    "ca-certificates",
    "cloud-guest-utils",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "initramfs-tools",
    "iproute2",
    "iputils-ping",
    "less",
    "linux-image-cloud-amd64",
    "login",
    "netplan.io",
    "openssh-server",
    "procps",
    "qemu-guest-agent",
    "sudo",
    "systemd-sysv",
    "udev",
];
const CUSTOMIZE: &str = include_str!("../debian/customize");
const ARGUMENTS: &str = include_str!("../debian/kernel-arguments");
const MIRROR: &str = "http://deb.debian.org/debian";
const SECURITY_MIRROR: &str = "http://deb.debian.org/debian-security";
/// What is built where the machine itself is no Debian.
const SUITE: &str = "trixie";
const LAYOUT: disk::Layout = disk::Layout { label: "debian-root", size_mib: 2048, keep_owners: true };

/// Which Debian, and from where.
#[derive(Clone, Debug, Default)]
pub struct Release {
    /// `bookworm`, `trixie`, …; `None` for the machine's own, or the stable one.
    pub suite: Option<String>,
    /// Where packages come from; `None` for Debian's own servers.
    pub mirror: Option<String>,
}

/// A Debian on a bootable disk, qcow2, from the cache or newly built, which takes minutes and needs a package mirror.
///
/// # Errors
///
/// As of [`micro`](crate::micro); `Forbidden` without root.
pub fn debian(options: &Options, release: &Release, mut progress: impl FnMut(Progress)) -> Result<PathBuf> {
    crate::supported()?;
    let suite = release.suite.clone().unwrap_or_else(own_suite);
    let mirror = release.mirror.as_deref().unwrap_or(MIRROR);
    let sources = sources(&suite, mirror)?;
    let cache = Cache::open(options.cache.as_deref())?;
    let lists = lists_state();
    let inputs = [BUILDER, CUSTOMIZE, ARGUMENTS, &sources, &lists].into_iter().chain(PACKAGES.iter().copied());
    let target = cache.file(&format!("{KIND}-{suite}-{}.qcow2", digest(inputs)));
    if target.is_file() && !options.rebuild {
        return Ok(target);
    }
    let _lock = cache.lock(KIND)?;
    if target.is_file() && !options.rebuild {
        // Another process has built it meanwhile.
        return Ok(target);
    }
    if !is_root() {
        return Err(Error::new(ErrorKind::Forbidden, "root_needed", "Building a Debian takes root")
            .detail("its files belong to many users, and its packages run their own scripts")
            .next("run it as root, on any Debian or Ubuntu: sudo nephos image build debian", None));
    }
    run(&mut command("qemu-img", ["--version"]))?;
    run(&mut command("mmdebstrap", ["--version"]))?;
    let scratch = cache.scratch(KIND)?;
    let mut step = 0;
    let mut begin = |what| {
        step += 1;
        progress(Progress { step, steps: STEPS, what });
    };
    begin("fetching tools");
    let resolved = packages::resolve_all(scratch.path(), TOOLS.to_vec())?;
    let tools = Toolbox::new(packages::unpack(&resolved, scratch.path())?);
    begin("installing Debian into a folder");
    let root = scratch.path().join("root");
    install(&suite, &sources, scratch.path(), &root)?;
    begin("making the disk");
    let built = scratch.path().join("debian.qcow2");
    disk::make_with(&tools, &root, scratch.path(), &built, &LAYOUT, |_| {
        grub::make_core_by_name(&tools, ARGUMENTS.trim(), scratch.path())
    })?;
    begin("moving it into place");
    fs::File::open(&built).and_then(|file| file.sync_all()).map_err(|error| io_error("writing", &built, error))?;
    fs::rename(&built, &target).map_err(|error| io_error("moving into place", &target, error))?;
    cache.keep_newest(&format!("{KIND}-{suite}-"), KEPT);
    Ok(target)
}

/// The suite of the machine, if it is a Debian.
fn own_suite() -> String {
    let about = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |key: &str| about.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim_matches('"'));
    match (value("ID="), value("VERSION_CODENAME=")) {
        (Some("debian"), Some(codename)) => codename.to_owned(),
        _ => SUITE.to_owned(),
    }
}

/// Lines of apt's `sources.list`.
fn sources(suite: &str, mirror: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if suite.is_empty() || !suite.chars().all(plain) {
        return Err(Error::invalid("invalid_suite", format!("`{suite}` is no Debian suite"))
            .next("for example: --suite trixie", None));
    }
    let scheme = ["http://", "https://", "file:/"].iter().any(|scheme| mirror.starts_with(scheme));
    if !scheme || mirror.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(Error::invalid("invalid_mirror", format!("`{mirror}` is no mirror of Debian's packages"))
            .next(format!("for example: --mirror {MIRROR}"), None));
    }
    let mut sources = format!("deb {mirror} {suite} main\n");
    if mirror == MIRROR && !matches!(suite, "sid" | "unstable") {
        sources.push_str(&format!("deb {mirror} {suite}-updates main\n"));
        sources.push_str(&format!("deb {SECURITY_MIRROR} {suite}-security main\n"));
    }
    Ok(sources)
}

fn install(suite: &str, sources: &str, scratch: &Path, root: &Path) -> Result<()> {
    let hook = scratch.join("customize");
    fs::write(&hook, CUSTOMIZE)
        .and_then(|()| fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)))
        .map_err(|error| io_error("writing", &hook, error))?;
    let list = scratch.join("sources.list");
    fs::write(&list, sources).map_err(|error| io_error("writing", &list, error))?;
    let mut command = command("mmdebstrap", ["--mode=root", "--variant=minbase", "--format=directory"]);
    command
        .args(["--aptopt=Acquire::Languages \"none\"", "--dpkgopt=path-exclude=/usr/share/man/*"])
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(format!("--include={}", PACKAGES.join(",")))
        .arg(format!("--customize-hook={}", hook.display()))
        .arg(suite)
        .args([root, &list]);
    run(&mut command).map(drop).map_err(|error| match error.code.as_ref() {
        "image_build_failed" => error.next("check that the mirror can be reached and has the suite", None),
        _ => error,
    })
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|about| std::os::unix::fs::MetadataExt::uid(&about) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_suites_and_mirrors_get_into_apts_sources() {
        let all = sources("trixie", MIRROR).unwrap();
        assert_eq!(all.lines().count(), 3);
        assert_eq!(sources("sid", "file:/srv/mirror").unwrap(), "deb file:/srv/mirror sid main\n");
        for (suite, mirror) in
            [("", MIRROR), ("a b", MIRROR), ("x\ny", MIRROR), ("sid", "ftp://x"), ("sid", "http://x y")]
        {
            assert!(sources(suite, mirror).is_err(), "{suite} {mirror}");
        }
    }
}
