//! Builds the *micro guest*: a disk image of under 30 MB that boots to a login within seconds even under emulation, for
//! trying out a cloud and for its tests.
//!
//! It is made of the distribution's own packages (kernel, busybox, dropbear, qemu-guest-agent, e2fsprogs, GRUB), which
//! apt resolves, fetches and checks; nothing is compiled, nothing on the machine is changed, and no root is needed.
//! `guest/` holds the files that make it what it is. [`micro`] blocks: call it from a thread that may wait.
//!
//! Invariants: an image in the cache is complete; equal inputs have equal names; it is built once, however many
//! processes ask for it.
//!
//! Must not know: the cloud. What comes out are files; uploading them is the caller's business.

mod cache;
mod command;
mod container;
mod cpio;
mod debian;
mod disk;
mod grub;
mod libraries;
mod modules;
mod packages;
mod toolbox;
mod tree;

use std::{
    fs,
    path::{Path, PathBuf},
};

use nephos_types::{Error, ErrorKind, Result};

pub use crate::{
    container::micro_container,
    debian::{Release, debian},
};

use crate::{
    cache::Cache,
    command::{command, io_error, run},
    modules::Kernel,
    packages::Resolved,
    toolbox::Toolbox,
};

/// The packages that must be installed to build.
#[must_use]
pub fn required_packages() -> &'static [&'static str] {
    &["apt", "dpkg", "qemu-utils"]
}

/// Where to keep the image, and whether one that exists will do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The folder of built images; `None` for `$XDG_CACHE_HOME/nephos/images` or `~/.cache/nephos/images`.
    pub cache: Option<PathBuf>,
    /// Build although the cache has it.
    pub rebuild: bool,
}

/// The files of a built guest. They are in the cache: copy what is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MicroImage {
    /// A bootable disk, qcow2, 128 MiB for the guest.
    pub disk: PathBuf,
    /// The kernel by itself, e.g. for QEMU's `-kernel`.
    pub kernel: PathBuf,
    /// The whole guest as an initramfs: with [`MicroImage::kernel`] it boots to a login without any disk.
    pub initrd: PathBuf,
}

impl MicroImage {
    /// Kernel arguments for booting [`MicroImage::kernel`] with [`MicroImage::initrd`] on a serial console.
    pub const KERNEL_ARGUMENTS: &str =
        "quiet console=ttyS0,115200 net.ifnames=0 mitigations=off cryptomgr.notests random.trust_cpu=on audit=0";
}

/// A step begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which one, from 1.
    pub step: u32,
    /// How many there are.
    pub steps: u32,
    /// What it does, e.g. `fetching packages`.
    pub what: &'static str,
}

/// How many steps a build has.
const STEPS: u32 = 5;
const KIND: &str = "micro";

/// The micro guest, from the cache or newly built, which takes some 20 s and needs the package mirror.
///
/// # Errors
///
/// `Unsupported` if this machine is not an x86-64 Debian or Ubuntu, or a program is missing (the error says which
/// package has it); `Unavailable` if the packages cannot be found or fetched; `Internal` if the disk is full or the
/// distribution is not as expected.
pub fn micro(options: &Options, mut progress: impl FnMut(Progress)) -> Result<MicroImage> {
    supported()?;
    let cache = Cache::open(options.cache.as_deref())?;
    let lists = cache::lists_state();
    if !options.rebuild
        && let Some(image) = cache.remembered(&lists).and_then(|name| cache.get(&name))
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
    let resolved = match packages::resolve(scratch.path()) {
        Ok(resolved) => resolved,
        // Without package lists (or mirror) an image from earlier packages is as good as it gets.
        Err(error) => return cache.newest().filter(|_| !options.rebuild).ok_or(error),
    };
    let name = cache::name(&resolved);
    let existing = cache.get(&name);
    let image = match existing {
        Some(image) if !options.rebuild => image,
        _ => {
            let built = build(&resolved, scratch.path(), &mut begin)?;
            cache.publish(&built, &name)?
        }
    };
    cache.remember(&lists, &name);
    Ok(image)
}

/// The newest micro guest that was built before, without building one.
#[must_use]
pub fn cached() -> Option<MicroImage> {
    Cache::open(None).ok()?.newest()
}

fn supported() -> Result<()> {
    if std::env::consts::ARCH == "x86_64" {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Unsupported, "unsupported_architecture", "The micro guest is for x86-64 only")
        .detail(format!("this machine is {}", std::env::consts::ARCH))
        .next("build it on an x86-64 machine, and upload the result with: nephos image upload", None))
}

/// Builds into a folder of `scratch` and returns that.
fn build(resolved: &Resolved, scratch: &Path, begin: &mut impl FnMut(&'static str)) -> Result<PathBuf> {
    // Before the long part: without this the end would fail.
    run(&mut command("qemu-img", ["--version"]))?;
    begin("fetching packages");
    let tools = Toolbox::new(packages::unpack(resolved, scratch)?);
    begin("assembling the guest");
    let kernel = Kernel::find(&tools)?;
    let [root, initrd, built] = ["root", "initrd", "built"].map(|name| scratch.join(name));
    fs::create_dir(&built).map_err(|error| io_error("making", &built, error))?;
    tree::guest(&tools, &kernel, &root)?;
    tree::initrd(&tools, &kernel, &initrd)?;
    let files = cache::files(&built);
    begin("packing the initramfs");
    pack(&root, &files.initrd)?;
    pack(&initrd, &root.join("boot/initrd"))?;
    for to in [&files.kernel, &root.join("boot/vmlinuz")] {
        fs::copy(&kernel.image, to).map_err(|error| io_error("copying", &kernel.image, error))?;
    }
    begin("making the disk");
    disk::make(&tools, &root, scratch, &files.disk)?;
    Ok(built)
}

/// Packs a folder as a compressed initramfs. gzip, because every kernel can unpack it, at little cost under emulation.
fn pack(folder: &Path, out: &Path) -> Result<()> {
    let file = fs::File::create(out).map_err(|error| io_error("making", out, error))?;
    let mut packed = flate2::write::GzEncoder::new(std::io::BufWriter::new(file), flate2::Compression::new(6));
    cpio::write_folder(folder, &mut packed)
        .and_then(|()| packed.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error))
        .map(drop)
        .map_err(|error| io_error("writing", out, error))
}
