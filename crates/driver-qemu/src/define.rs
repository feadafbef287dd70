//! Definitions: what a guest should be is written down, and its disk is made.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_driver::{Accelerator, Boot, DiskFormat, Firmware, GuestSpec, Interface};
use nephos_host::work::{blocking, unwritable};
use nephos_types::{Bytes, Error};

use crate::{
    disk, firmware,
    folder::{Folder, Record, disk_file},
    guest::Guest,
    host::Host,
    prepare::check_kernel,
};

impl Host {
    pub(crate) async fn define(&self, spec: &GuestSpec) -> Result<(), Error> {
        spec.check()?;
        check_paths(spec)?;
        if spec.firmware == Firmware::Uefi && self.uefi.is_none() {
            return Err(firmware::missing());
        }
        let wanted = spec.clone();
        let size = blocking(move || {
            check_kernel(&wanted)?;
            if let Some((path, format)) = &wanted.rescue {
                disk::base_size(path, *format)?;
            }
            disk::wanted_size(&wanted.disk)
        })
        .await?;
        let existing = self.guest(spec.id);
        let folder = Folder::new(&self.folder, spec.id);
        let Some(guest) = existing else {
            let record = Record::off(None);
            let made = self.make(&folder, spec, size, false, Some(record.clone())).await;
            if made.is_err() {
                let _ = blocking(move || folder.remove().map_err(unwritable)).await;
                return made;
            }
            let guest = Guest::new(spec.id, folder, Some(spec.clone()), record);
            self.guests().insert(spec.id, Arc::new(guest));
            return Ok(());
        };
        let _work = guest.work.clone().lock_owned().await;
        let before = guest.now().spec.clone();
        let incarnation = spec.disk.incarnation;
        if before.as_deref() == Some(spec) && folder.has_disk(incarnation) {
            return Ok(());
        }
        let another_disk = before.as_ref().is_some_and(|before| before.disk.incarnation != incarnation);
        if another_disk {
            guest.must_be_off()?;
        } else {
            let base = |spec: &GuestSpec| {
                spec.disk.base.as_ref().and_then(|(path, _)| path.file_name().map(Path::new).map(PathBuf::from))
            };
            if before.is_some_and(|before| base(&before) != base(spec)) {
                return Err(Error::conflict("disk_in_use", "The server's disk is made from another image")
                    .detail("what is written on it only makes sense together with that image")
                    .next("delete the server and create it again", None));
            }
            let current = disk::current_size(&folder, incarnation).map_err(unwritable)?;
            if current.is_some_and(|current| current > size) {
                return Err(Error::conflict("disk_cannot_shrink", "The server's disk is larger already")
                    .detail(format!("it cannot be made {size} without losing what is on it")));
            }
            if let Some(machine) = guest.machine()
                && current.is_some_and(|current| current < size)
            {
                // Before it is written down: a definition that is there already is not looked at again.
                machine
                    .grow_disk(size)
                    .await
                    .map_err(|error| Error::internal("The running server's disk could not be made larger", error))?;
            }
        }
        // The new disk is whole before the definition names it, and the old one stays until then.
        self.make(&folder, spec, size, another_disk, None).await?;
        guest.now().spec = Some(Arc::new(spec.clone()));
        if let Err(error) = folder.keep_only_disk(incarnation) {
            tracing::warn!(id = %spec.id, %error, "a disk that was thrown away is still there");
        }
        Ok(())
    }

    /// Makes what is not there yet, the disk also if something is in its place, and writes the definition, last.
    async fn make(
        &self,
        folder: &Folder,
        spec: &GuestSpec,
        size: Bytes,
        another_disk: bool,
        fresh: Option<Record>,
    ) -> Result<(), Error> {
        let owner = self.users.owner(spec.id);
        folder.create(owner).map_err(unwritable)?;
        if another_disk || !folder.has_disk(spec.disk.incarnation) {
            let rights = self.users.rights(spec.id, &Accelerator::None);
            let run = folder.open_run().map_err(unwritable)?;
            let (name, base) = (disk_file(spec.disk.incarnation), spec.disk.base.as_ref());
            disk::create(&self.config.qemu_img, run.as_fd(), &rights, &name, base, size).await?;
        }
        let (folder, spec) = (folder.clone(), spec.clone());
        let write = move || {
            if let Some(record) = fresh {
                folder.write_record(&record)?;
            }
            folder.write_spec(&spec)
        };
        blocking(move || write().map_err(unwritable)).await
    }
}

/// Refuses paths that would mean one thing to the agent and another to QEMU, which works in another folder.
fn check_paths(spec: &GuestSpec) -> Result<(), Error> {
    let (kernel, initrd) = match &spec.boot {
        Boot::Disk => (None, None),
        Boot::Kernel { kernel, initrd, .. } => (Some(kernel), initrd.as_ref()),
    };
    let image = |image: &Option<(PathBuf, DiskFormat)>| image.as_ref().map(|(path, _)| path.clone());
    let mut error = Error::invalid("invalid_guest", "The server's definition cannot be used");
    for (field, path) in [
        ("disk.base", image(&spec.disk.base)),
        ("rescue", image(&spec.rescue)),
        ("boot.kernel", kernel.cloned()),
        ("boot.initrd", initrd.cloned()),
    ] {
        if path.is_some_and(|path| !path.is_absolute()) {
            error = error.reason(field, "format", "an absolute path is needed");
        }
    }
    if spec.interfaces.iter().any(|interface| matches!(interface, Interface::Namespace { .. })) {
        error = error.reason("interfaces", "type", "a virtual machine is connected by tap devices");
    }
    if error.reasons.is_empty() { Ok(()) } else { Err(error) }
}
