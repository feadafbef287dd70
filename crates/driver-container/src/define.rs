//! Bringing what a guest should be to the disk.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_driver::{Boot, DiskFormat, Firmware, GuestSpec, Interface, refusal};
use nephos_host::work::{blocking, unwritable};
use nephos_types::Error;

use crate::{
    disk,
    folder::{Folder, Record},
    guest::Guest,
    host::Host,
};

impl Host {
    /// Makes a guest's definition and disk exist; leaves a running guest running.
    pub(crate) async fn define(self: &Arc<Self>, spec: &GuestSpec) -> Result<(), Error> {
        spec.check()?;
        let (image, format) = check(spec)?;
        let size = disk::wanted_size(&spec.disk)?;
        let folder = Folder::new(&self.folder, spec.id);
        let Some(guest) = self.guest(spec.id) else {
            let base = self.bases.ensure(image, format).await?;
            let record = Record::off(&base, None);
            let made = async {
                folder.create().map_err(unwritable)?;
                disk::create(&folder.disk(), size).await?;
                folder.write_record(&record).and_then(|()| folder.write_spec(spec)).map_err(unwritable)
            };
            if let Err(error) = made.await {
                let _ = blocking(move || folder.remove().map_err(unwritable)).await;
                return Err(error);
            }
            let guest = Guest::new(spec.id, folder, Some(spec.clone()), record);
            self.guests().insert(spec.id, Arc::new(guest));
            return Ok(());
        };
        let _work = guest.work.clone().lock_owned().await;
        let before = guest.now().spec.clone();
        if before.as_deref() == Some(spec) && folder.disk().exists() {
            return Ok(());
        }
        let mut fresh = !folder.disk().exists();
        if let Some(before) = &before {
            let base =
                |spec: &GuestSpec| spec.disk.base.as_ref().and_then(|(path, _)| path.file_name().map(PathBuf::from));
            if before.disk.incarnation != spec.disk.incarnation {
                guest.must_be_off()?;
                fresh = true;
            } else if base(before) != base(spec) {
                return Err(Error::conflict("disk_in_use", "The server's disk is made from another image")
                    .detail("what is written on it only makes sense together with that image")
                    .next("rebuild the server from the other image, or create another server", None));
            }
        }
        let current = disk::current_size(&folder).map_err(unwritable)?;
        if !fresh && current.is_some_and(|current| current > size) {
            return Err(Error::conflict("disk_cannot_shrink", "The server's disk is larger already")
                .detail(format!("it cannot be made {size} without losing what is on it")));
        }
        if fresh {
            let base = self.bases.ensure(image, format).await?;
            disk::create(&folder.disk(), size).await?;
            guest.set(|record| record.base = base)?;
        }
        folder.write_spec(spec).map_err(unwritable)?;
        guest.now().spec = Some(Arc::new(spec.clone()));
        Ok(())
    }
}

/// What a container cannot be made of.
fn check(spec: &GuestSpec) -> Result<(&Path, DiskFormat), Error> {
    let wrong = |constraint: &str, detail: &str| {
        Error::invalid("invalid_guest", "The server's definition cannot be used").reason(
            "disk.base",
            constraint,
            detail,
        )
    };
    let Some((image, format)) = &spec.disk.base else {
        return Err(wrong("required", "a container needs an image with a root file system"));
    };
    if !image.is_absolute() {
        return Err(wrong("format", "an absolute path is needed"));
    }
    if spec.firmware != Firmware::Bios {
        return Err(refusal::unsupported(spec.id, "have a firmware"));
    }
    if spec.interfaces.iter().any(|interface| matches!(interface, Interface::Tap { .. })) {
        return Err(refusal::unsupported(spec.id, "have a tap device"));
    }
    if spec.boot != Boot::Disk {
        return Err(refusal::unsupported(spec.id, "boot a kernel of its own"));
    }
    Ok((image, *format))
}
