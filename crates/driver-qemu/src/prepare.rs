//! What a start needs open: the agent opens the files, and QEMU inherits them.

use std::{
    fs::File,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    path::Path,
};

use nephos_driver::{Boot, DiskFormat, GuestSpec, Interface};
use nephos_host::{netns, work::unwritable};
use nephos_types::{Bytes, Error, ErrorKind};
use rustix::fs::{Gid, Uid};

use crate::{
    command_line, config_drive, disk,
    firmware::Uefi,
    folder::{Folder, INITRD, KERNEL, Launched},
};

/// The largest kernel, and what is left of a guest's memory at least when its first root file system is in it.
const MAX_KERNEL: u64 = 256 << 20;

/// What is open for a start.
pub(crate) struct Prepared {
    pub(crate) run: OwnedFd,
    base: Option<(File, DiskFormat)>,
    rescue: Option<(File, DiskFormat)>,
    config_drive: Option<File>,
    kernel: Option<(File, Option<File>)>,
    firmware: Option<File>,
    /// The tap device of each interface, if it has one.
    taps: Vec<Option<OwnedFd>>,
    pub(crate) errors: File,
    /// The size that the disk has to be given.
    pub(crate) grow: Option<Bytes>,
}

impl Prepared {
    /// For a guest whose disk should have this size; `saved` if it goes on from its memory.
    pub(crate) fn new(
        folder: &Folder,
        spec: &GuestSpec,
        size: Bytes,
        saved: bool,
        uefi: Option<Uefi>,
        owner: Option<(Uid, Gid)>,
    ) -> Result<Self, Error> {
        let base = disk::open_base(spec.disk.base.as_ref())?;
        let rescue = disk::open_base(spec.rescue.as_ref())?;
        let config_drive = if spec.config_drive.is_empty() {
            None
        } else {
            let image = config_drive::image(&spec.config_drive)
                .map_err(|error| Error::internal("The configuration drive cannot be made", error))?;
            folder.write_config_drive(&image).map_err(unwritable)?;
            Some(File::open(folder.config_drive()).map_err(unwritable)?)
        };
        if !saved {
            copy_kernel(folder, spec)?;
        }
        let kernel = match &spec.boot {
            Boot::Disk => None,
            Boot::Kernel { initrd, .. } => {
                let open = |name| folder.open_copy(name).map_err(unwritable);
                Some((open(KERNEL)?, initrd.as_ref().map(|_| open(INITRD)).transpose()?))
            }
        };
        let firmware = Uefi::prepare(uefi, spec, folder, owner)?;
        let taps = spec.interfaces.iter().map(open_tap).collect::<Result<_, _>>()?;
        folder.clear_sockets().map_err(unwritable)?;
        let current = disk::current_size(folder, spec.disk.incarnation).map_err(unwritable)?;
        let grow = current.is_some_and(|current| current < size).then_some(size);
        let run = folder.open_run().map_err(unwritable)?;
        let errors = File::create(folder.errors()).map_err(unwritable)?;
        Ok(Self { run, base, rescue, config_drive, kernel, firmware, taps, errors, grow })
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(&self, launched: &Launched, saved: bool) -> Vec<String> {
        let image =
            |image: &Option<(File, DiskFormat)>| image.as_ref().map(|(file, format)| (file.as_raw_fd(), *format));
        let kernel = self.kernel.as_ref().map(|(kernel, initrd)| command_line::Kernel {
            kernel: kernel.as_raw_fd(),
            initrd: initrd.as_ref().map(AsRawFd::as_raw_fd),
            arguments: match &launched.spec.boot {
                Boot::Kernel { command_line, .. } => command_line,
                Boot::Disk => "",
            },
        });
        command_line::arguments(&command_line::Launch {
            spec: &launched.spec,
            machine: &launched.machine,
            accelerator: &launched.accelerator,
            base: image(&self.base),
            rescue: image(&self.rescue),
            config_drive: self.config_drive.as_ref().map(AsRawFd::as_raw_fd),
            kernel,
            firmware: self.firmware.as_ref().map(AsRawFd::as_raw_fd),
            taps: &self.taps.iter().map(|tap| tap.as_ref().map(AsRawFd::as_raw_fd)).collect::<Vec<_>>(),
            paused: self.grow.is_some(),
            incoming: saved,
        })
    }

    /// What QEMU inherits.
    pub(crate) fn inherited(&self) -> Vec<RawFd> {
        let images = self.base.iter().chain(&self.rescue).map(|(file, _)| file);
        let kernel = self.kernel.iter().flat_map(|(kernel, initrd)| [kernel].into_iter().chain(initrd));
        let files = images.chain(&self.config_drive).chain(kernel).chain(&self.firmware).map(AsRawFd::as_raw_fd);
        files.chain(self.taps.iter().flatten().map(AsRawFd::as_raw_fd)).collect()
    }
}

/// Opens the tap device of an interface, if it has one.
fn open_tap(interface: &Interface) -> Result<Option<OwnedFd>, Error> {
    let Interface::Tap { namespace, device, .. } = interface else { return Ok(None) };
    let opened = netns::open(namespace).and_then(|namespace| netns::open_tap(namespace, device));
    opened.map(Some).map_err(|error| {
        Error::new(ErrorKind::Unavailable, "port_not_made", "The server's port cannot be opened")
            .detail(format!("{device} in {}: {error}", namespace.display()))
    })
}

/// Copies the kernel that is loaded directly: QEMU opens it by itself, under the guest's user, who may not read the
/// original. What a guest boots from the disk has none.
fn copy_kernel(folder: &Folder, spec: &GuestSpec) -> Result<(), Error> {
    let (kernel, initrd) = match &spec.boot {
        Boot::Disk => (None, None),
        Boot::Kernel { kernel, initrd, .. } => (Some(kernel), initrd.as_ref()),
    };
    for (name, original, limit) in [(KERNEL, kernel, MAX_KERNEL), (INITRD, initrd, spec.memory.0)] {
        match original {
            Some(path) => {
                let file = open_kernel(path, limit)?;
                folder.write_copy(name, file).map_err(unwritable)?;
            }
            None => folder.remove_copy(name).map_err(unwritable)?,
        }
    }
    Ok(())
}

/// Opens a kernel or its first root file system, of at most so many bytes.
fn open_kernel(path: &Path, limit: u64) -> Result<File, Error> {
    let unreadable = |why: String| {
        Error::new(ErrorKind::Internal, "kernel_unreadable", "The kernel cannot be read")
            .detail(format!("{}: {why}", path.display()))
    };
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    let metadata = file.metadata().map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(unreadable("not a plain file".to_owned()));
    }
    if metadata.len() > limit {
        return Err(Error::invalid("kernel_too_large", "The kernel or its first root file system is too large")
            .detail(format!("{}: {} bytes, at most {limit} fit", path.display(), metadata.len())));
    }
    Ok(file)
}

/// Refuses a definition whose kernel could not be loaded.
pub(crate) fn check_kernel(spec: &GuestSpec) -> Result<(), Error> {
    if let Boot::Kernel { kernel, initrd, .. } = &spec.boot {
        open_kernel(kernel, MAX_KERNEL)?;
        if let Some(initrd) = initrd {
            open_kernel(initrd, spec.memory.0)?;
        }
    }
    Ok(())
}
