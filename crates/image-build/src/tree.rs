//! The guest's files, as folders on the build machine.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
};

use nephos_types::{Error, Result};

use crate::{
    command::{io_error, run},
    libraries,
    modules::{self, Kernel},
    toolbox::{LOADER, Toolbox},
};

/// A file of `guest/`: where it goes, its permissions, its content. `guest/README.md` says what each is for.
pub(crate) type GuestFile = (&'static str, u32, &'static str);

const FILES: &[GuestFile] = &[
    ("etc/inittab", 0o644, include_str!("../guest/inittab")),
    ("etc/rc.boot", 0o755, include_str!("../guest/rc.boot")),
    ("etc/rc.shutdown", 0o755, include_str!("../guest/rc.shutdown")),
    ("etc/metadata", 0o755, include_str!("../guest/metadata")),
    ("etc/udhcpc.script", 0o755, include_str!("../guest/udhcpc.script")),
    ("usr/sbin/chpasswd", 0o755, include_str!("../guest/chpasswd")),
    ("etc/acpi/PWRF/00000080", 0o755, include_str!("../guest/power-button")),
    ("etc/issue", 0o644, include_str!("../guest/issue")),
    ("etc/passwd", 0o600, include_str!("../guest/passwd")),
    ("etc/group", 0o644, include_str!("../guest/group")),
    ("etc/shells", 0o644, include_str!("../guest/shells")),
    ("etc/profile", 0o644, include_str!("../guest/profile")),
    ("etc/hostname", 0o644, "micro\n"),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", 0o644, ""),
];
const INITRD_FILES: &[GuestFile] = &[("init", 0o755, include_str!("../guest/initrd-init"))];

/// Everything that is not a package and decides what the guest is; part of the image's name.
pub(crate) fn inputs() -> impl Iterator<Item = &'static str> {
    FILES
        .iter()
        .chain(INITRD_FILES)
        .flat_map(|(path, _, content)| [*path, *content])
        .chain([crate::disk::BOOT_ARGUMENTS])
}

const FOLDERS: &[&str] = &[
    "bin",
    "boot",
    "dev",
    "etc/dropbear",
    "home",
    "lib64",
    "mnt",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "root/.ssh",
    "usr/bin",
    "usr/lib",
    "usr/sbin",
    "var/lib",
    "var/log",
];

/// Programs other than busybox, all put into `usr/sbin`.
const PROGRAMS: &[&str] = &["dropbear", "dropbearkey", "qemu-ga", "resize2fs"];

/// The guest's root file system.
pub(crate) fn guest(tools: &Toolbox, kernel: &Kernel, root: &Path) -> Result<()> {
    for folder in FOLDERS {
        make_folder(&root.join(folder))?;
    }
    for (folder, mode) in [("tmp", 0o1777), ("root", 0o700), ("root/.ssh", 0o700)] {
        let path = root.join(folder);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(|error| io_error("changing", &path, error))?;
    }
    for (link, target) in
        [("lib", "usr/lib"), ("var/run", "../run"), ("init", "sbin/init"), ("etc/mtab", "../proc/mounts")]
    {
        make_link(target, &root.join(link))?;
    }
    let mut programs = vec![];
    for name in PROGRAMS {
        let program = tools.program(name)?;
        copy(&program, &root.join("usr/sbin").join(name))?;
        programs.push(program);
    }
    for (name, file) in libraries::closure(tools, &programs)? {
        copy(&file, &root.join("usr/lib").join(name))?;
    }
    let loader = tools.library(LOADER).ok_or_else(|| Error::bug("the packages hold no dynamic loader"))?;
    copy(&loader, &root.join("lib64").join(LOADER))?;
    // After the programs: where busybox has one of the same name, theirs stays.
    install_busybox(tools, root)?;
    kernel.install(tools, &[modules::BOOT, modules::GUEST].concat(), root)?;
    write_files(root, FILES)
}

/// The small initramfs on the guest's disk, which finds that disk.
pub(crate) fn initrd(tools: &Toolbox, kernel: &Kernel, root: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "dev", "newroot", "proc", "sys", "usr/lib"] {
        make_folder(&root.join(folder))?;
    }
    make_link("usr/lib", &root.join("lib"))?;
    install_busybox(tools, root)?;
    kernel.install(tools, modules::BOOT, root)?;
    write_files(root, INITRD_FILES)
}

/// busybox, and a link to it for each of its programs.
pub(crate) fn install_busybox(tools: &Toolbox, root: &Path) -> Result<()> {
    let busybox = tools.program("busybox")?;
    copy(&busybox, &root.join("bin/busybox"))?;
    let list = run(Command::new(&busybox).arg("--list-full"))?;
    for path in String::from_utf8_lossy(&list).lines() {
        let target = match path.matches('/').count() {
            1 => "../bin/busybox",
            2 => "../../bin/busybox",
            _ => continue,
        };
        let link = root.join(path);
        if let Some(folder) = link.parent() {
            make_folder(folder)?;
        }
        if !link.exists() {
            make_link(target, &link)?;
        }
    }
    Ok(())
}

pub(crate) fn write_files(root: &Path, files: &[GuestFile]) -> Result<()> {
    for (path, mode, content) in files {
        let path = root.join(path);
        if let Some(folder) = path.parent() {
            make_folder(folder)?;
        }
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(*mode)
            .open(&path)
            .and_then(|mut file| file.write_all(content.as_bytes()))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(*mode)))
            .map_err(|error| io_error("writing", &path, error))?;
    }
    Ok(())
}

pub(crate) fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|error| io_error("making", path, error))
}

fn make_link(target: &str, link: &Path) -> Result<()> {
    symlink(target, link).map_err(|error| io_error("linking", link, error))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(|error| io_error("copying", from, error))
}
