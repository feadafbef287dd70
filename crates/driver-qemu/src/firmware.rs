//! UEFI firmware for guests, as distributions install it, and the variables that each guest keeps.

use std::{fs::File, io::Read, path::Path};

use nephos_driver::{Firmware, GuestSpec};
use nephos_host::work::unwritable;
use nephos_types::{Error, ErrorKind};
use rustix::fs::{Gid, Uid};

use crate::folder::{Folder, VARIABLES};

/// Where distributions put the code and the initial variables: Debian and Ubuntu, Fedora, Arch.
const PLACES: &[(&str, &str)] = &[
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];
/// Both together have 4 MiB at most.
const MAX_VARIABLES: u64 = 4 << 20;

/// The files of the machine's UEFI firmware.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uefi {
    code: &'static str,
    variables: &'static str,
}

impl Uefi {
    /// What is installed.
    pub(crate) fn find() -> Option<Self> {
        let installed = |path: &str| Path::new(path).is_file();
        let (code, variables) = PLACES.iter().find(|(code, variables)| installed(code) && installed(variables))?;
        Some(Self { code, variables })
    }

    /// The code, if this guest begins with it. Its variables are there from then on.
    pub(crate) fn prepare(
        uefi: Option<Self>,
        spec: &GuestSpec,
        folder: &Folder,
        owner: Option<(Uid, Gid)>,
    ) -> Result<Option<File>, Error> {
        if spec.firmware == Firmware::Bios {
            return Ok(None);
        }
        let uefi = uefi.ok_or_else(missing)?;
        let unreadable = |error| Error::internal("The UEFI firmware cannot be read", error);
        if folder.open_in_run(VARIABLES, false).map_err(unwritable)?.is_none() {
            let mut initial = vec![];
            let file = File::open(uefi.variables).map_err(unreadable)?;
            file.take(MAX_VARIABLES).read_to_end(&mut initial).map_err(unreadable)?;
            folder.write_in_run(VARIABLES, &initial, owner).map_err(unwritable)?;
        }
        File::open(uefi.code).map(Some).map_err(unreadable)
    }
}

/// The refusal where there is none.
pub(crate) fn missing() -> Error {
    Error::new(ErrorKind::Unsupported, "uefi_missing", "UEFI firmware is not installed on this node")
        .next("install it", Some("apt-get install --no-install-recommends ovmf".to_owned()))
}
