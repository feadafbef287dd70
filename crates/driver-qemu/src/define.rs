//! Definitions: what a guest should be is written down, and its disk is made.

use std::{
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use nephos_driver::{Accelerator, GuestSpec};
use nephos_types::{Bytes, Error};

use crate::{
    disk,
    folder::{Folder, Record},
    guest::Guest,
    host::Host,
    work::{blocking, unwritable},
};

impl Host {
    pub(crate) async fn define(&self, spec: &GuestSpec) -> Result<(), Error> {
        spec.check()?;
        if spec.disk.base.as_ref().is_some_and(|(path, _)| !path.is_absolute()) {
            return Err(Error::invalid("invalid_guest", "The server's definition cannot be used").reason(
                "disk.base",
                "format",
                "an absolute path is needed",
            ));
        }
        let wanted = spec.disk.clone();
        let size = blocking(move || disk::wanted_size(&wanted)).await?;
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
            disk::create(&self.config.qemu_img, run.as_fd(), &rights, &spec.disk, size).await?;
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
