//! The *micro container*: a root file system of about a megabyte as a tar archive, for trying out containers as servers
//! and for their tests. It is busybox with its init, a login prompt on the console, and a shell.

use std::{
    fs,
    io::{self, BufWriter},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use nephos_types::{Error, Result};

use crate::{
    Options, Progress,
    cache::{Cache, digest, lists_state},
    command::io_error,
    packages,
    toolbox::Toolbox,
    tree::{self, GuestFile},
};

/// Part of every name: to be raised when a change of this file, rather than of what it puts in, changes what it builds.
const BUILDER: &str = "1";
const NAME: &str = "micro-container-";
const REMEMBERED: &str = "container-resolved";
const STEPS: u32 = 3;

const FILES: &[GuestFile] = &[
    ("etc/inittab", 0o644, include_str!("../container/inittab")),
    ("etc/rc.boot", 0o755, include_str!("../container/rc.boot")),
    ("etc/rc.shutdown", 0o755, include_str!("../container/rc.shutdown")),
    ("etc/issue", 0o644, include_str!("../container/issue")),
    ("etc/passwd", 0o600, include_str!("../guest/passwd")),
    ("etc/group", 0o644, include_str!("../guest/group")),
    ("etc/shells", 0o644, include_str!("../guest/shells")),
    ("etc/profile", 0o644, include_str!("../guest/profile")),
    ("etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", 0o644, ""),
    ("etc/os-release", 0o644, "ID=micro\nPRETTY_NAME=\"Nephos micro container\"\n"),
];

const KIND: &str = "micro-container";
const FOLDERS: &[&str] = &[
    "bin", "dev", "etc", "home", "mnt", "proc", "root", "run", "sbin", "sys", "tmp", "usr/bin", "usr/sbin", "var/lib",
    "var/log",
];

/// The micro container's root file system, a gzip-compressed tar archive, from the cache or newly built, which takes a
/// few seconds and needs the package mirror.
///
/// # Errors
///
/// As of [`micro`](crate::micro).
pub fn micro_container(options: &Options, mut progress: impl FnMut(Progress)) -> Result<PathBuf> {
    let cache = Cache::open(options.cache.as_deref())?;
    let note = cache.file(&format!("{REMEMBERED}-{}", digest([lists_state().as_str(), &inputs()].into_iter())));
    let existing = |name: &str| Some(cache.file(name)).filter(|path| path.is_file());
    if !options.rebuild
        && let Some(image) = fs::read_to_string(&note).ok().and_then(|name| existing(&name))
    {
        return Ok(image);
    }
    let _lock = cache.lock(KIND)?;
    let scratch = cache.scratch(KIND)?;
    let mut step = 0;
    let mut begin = |what| {
        step += 1;
        progress(Progress { step, steps: STEPS, what });
    };
    begin("resolving packages");
    let resolved = packages::resolve_all(scratch.path(), vec!["busybox-static"])?;
    let inputs = inputs();
    let name = format!("{NAME}{}.tar.gz", digest(resolved.files.iter().map(String::as_str).chain([inputs.as_str()])));
    if options.rebuild || existing(&name).is_none() {
        begin("fetching packages");
        let tools = Toolbox::new(packages::unpack(&resolved, scratch.path())?);
        begin("packing the root file system");
        let root = scratch.path().join("root");
        assemble(&tools, &root)?;
        let packed = scratch.path().join(&name);
        pack(&root, &packed).map_err(|error| io_error("writing", &packed, error))?;
        let target = cache.file(&name);
        fs::rename(&packed, &target).map_err(|error| io_error("moving into place", &target, error))?;
    }
    // Failing costs time only.
    let _ = fs::write(&note, &name);
    existing(&name).ok_or_else(|| Error::bug("the micro container has vanished"))
}

/// Everything that is not a package and decides what the container is.
fn inputs() -> String {
    digest(
        FILES.iter().flat_map(|(path, _, content)| [*path, *content]).chain(FOLDERS.iter().copied()).chain([BUILDER]),
    )
}

fn assemble(tools: &Toolbox, root: &Path) -> Result<()> {
    for folder in FOLDERS {
        tree::make_folder(&root.join(folder))?;
    }
    for (folder, mode) in [("tmp", 0o1777), ("root", 0o700)] {
        let path = root.join(folder);
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            .map_err(|error| io_error("changing", &path, error))?;
    }
    tree::install_busybox(tools, root)?;
    tree::write_files(root, FILES)
}

/// Packs a folder whose files all belong to root.
fn pack(root: &Path, out: &Path) -> io::Result<()> {
    let file = fs::File::create(out)?;
    let mut archive = tar::Builder::new(GzEncoder::new(BufWriter::new(file), Compression::new(6)));
    add(root, Path::new(""), &mut archive)?;
    let file = archive.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()
}

fn add(root: &Path, folder: &Path, archive: &mut tar::Builder<impl io::Write>) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(folder))?
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable();
    for name in names {
        let path = folder.join(name);
        let here = root.join(&path);
        let metadata = fs::symlink_metadata(&here)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if metadata.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, &path, fs::read_link(&here)?)?;
        } else if metadata.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, &path, io::empty())?;
            add(root, &path, archive)?;
        } else {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(metadata.len());
            archive.append_data(&mut header, &path, fs::File::open(&here)?)?;
        }
    }
    Ok(())
}
