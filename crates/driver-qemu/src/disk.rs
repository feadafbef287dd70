//! Root disks: a qcow2 overlay per guest on a read-only base image.
//!
//! Formats are stated, never probed: a guest can write any header into its disk. Sizes are read from headers here, so
//! that nothing but the guest's own confined QEMU ever opens an image as a whole.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nephos_driver::{Disk, DiskFormat};
use nephos_host::process::Process;
use nephos_types::{Bytes, Error, ErrorKind};
use tokio::time::timeout;

use crate::{
    folder::{Folder, disk_file},
    launch::{Launch, Limits, Rights},
};

/// Bounds on `qemu-img`; making an overlay takes a few milliseconds.
const LIMITS: Limits = Limits { cpu_seconds: 20, address_space: Bytes::mib(2048) };
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// The size of a disk image as a guest sees it, from its file's header.
///
/// A qcow2 image that needs another file (a backing file or external data) is refused: only our overlays have a base,
/// and theirs is stated on the command line.
pub(crate) fn base_size(path: &Path, format: DiskFormat) -> Result<Bytes, Error> {
    let unreadable = |error: io::Error| {
        Error::new(ErrorKind::Internal, "base_image_unreadable", "The base image cannot be read")
            .detail(format!("{}: {error}", path.display()))
    };
    let mut file = File::open(path).map_err(unreadable)?;
    match format {
        DiskFormat::Tar | DiskFormat::Oci => {
            Err(Error::invalid("base_image_unusable", "The base image is a root file system, not a disk")
                .detail("it is for containers"))
        }
        DiskFormat::Raw | DiskFormat::Iso => {
            let length = file.metadata().map_err(unreadable)?.len();
            Ok(Bytes(length.next_multiple_of(512)))
        }
        DiskFormat::Qcow2 => {
            let mut header = vec![];
            file.by_ref().take(104).read_to_end(&mut header).map_err(unreadable)?;
            let refuse = |why: &str| {
                Error::invalid("base_image_unusable", "The base image is not a usable qcow2 file").detail(why)
            };
            let header = Header::parse(&header).ok_or_else(|| refuse("it has no qcow2 header"))?;
            if header.backing {
                return Err(refuse("it needs a backing file"));
            }
            if header.external_data {
                return Err(refuse("its data is in another file"));
            }
            Ok(header.size)
        }
    }
}

/// The parts in use of a qcow2 header, <https://www.qemu.org/docs/master/interop/qcow2.html>.
struct Header {
    size: Bytes,
    backing: bool,
    external_data: bool,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let version = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        if !bytes.starts_with(b"QFI\xfb") || !(2..=3).contains(&version) {
            return None;
        }
        let incompatible = if version == 3 { number(72)? } else { 0 };
        Some(Self { size: Bytes(number(24)?), backing: number(8)? != 0, external_data: incompatible & 4 != 0 })
    }
}

/// The size that the guest's disk of this incarnation has now; `None` if there is none yet.
pub(crate) fn current_size(folder: &Folder, incarnation: u64) -> io::Result<Option<Bytes>> {
    let Some(file) = folder.open_in_run(&disk_file(incarnation), false)? else { return Ok(None) };
    let mut header = vec![];
    file.take(104).read_to_end(&mut header)?;
    Ok(Header::parse(&header).map(|header| header.size))
}

/// Opens the image that a disk is made from.
pub(crate) fn open_base(image: Option<&(PathBuf, DiskFormat)>) -> Result<Option<(File, DiskFormat)>, Error> {
    let Some((path, format)) = image else { return Ok(None) };
    let file = File::open(path).map_err(|error| {
        Error::new(ErrorKind::Internal, "base_image_unreadable", "The base image cannot be read")
            .detail(format!("{}: {error}", path.display()))
    })?;
    Ok(Some((file, *format)))
}

/// The size that the guest's disk should have.
pub(crate) fn wanted_size(disk: &Disk) -> Result<Bytes, Error> {
    let Some((path, format)) = &disk.base else { return Ok(disk.size) };
    let base = base_size(path, *format)?;
    if *format == DiskFormat::Iso {
        // The image is a CD beside the disk, which begins empty.
        return Ok(if disk.size.0 == 0 { Bytes::mib(1) } else { disk.size });
    }
    if disk.size.0 == 0 {
        return Ok(base);
    }
    if disk.size < base {
        return Err(Error::invalid("disk_too_small", "The disk is smaller than the image on it")
            .detail(format!("the image needs {base}, the disk has {}", disk.size)));
    }
    Ok(disk.size)
}

/// Makes a disk of the guest, in the place of one of the same name.
pub(crate) async fn create(
    qemu_img: &Path,
    run: BorrowedFd<'_>,
    rights: &Rights,
    name: &str,
    base: Option<&(PathBuf, DiskFormat)>,
    size: Bytes,
) -> Result<(), Error> {
    let mut arguments: Vec<String> = ["create", "-q", "-f", "qcow2"].map(str::to_owned).into();
    match base {
        Some((path, format @ (DiskFormat::Qcow2 | DiskFormat::Raw))) => {
            let format = if *format == DiskFormat::Qcow2 { "qcow2" } else { "raw" };
            // The name is for people who look at the file; starts state the base by descriptor. With `-u` it is not
            // opened here.
            let path = path.to_string_lossy();
            arguments.extend(["-u", "-F", format, "-b", &path].map(str::to_owned));
        }
        Some((_, DiskFormat::Iso | DiskFormat::Tar | DiskFormat::Oci)) | None => {}
    }
    // Made under another name and renamed when complete, so that a disk is never half made.
    arguments.extend([DISK_BEING_MADE.to_owned(), size.0.to_string()]);
    run_helper(qemu_img, &arguments, run, rights).await?;
    rustix::fs::renameat(run, DISK_BEING_MADE, run, name)
        .map_err(|error| Error::internal("The disk could not be put in place", io::Error::from(error)))
}

const DISK_BEING_MADE: &str = "disk.qcow2.new";

/// Runs a helper program, bounded in time and resources, and with the guest's rights only.
async fn run_helper(
    program: &Path,
    arguments: &[String],
    folder: BorrowedFd<'_>,
    rights: &Rights,
) -> Result<(), Error> {
    let failed =
        |why: String| Error::new(ErrorKind::Internal, "disk_failed", "The server's disk could not be made").detail(why);
    let (errors, their_errors) = io::pipe().map_err(|error| failed(error.to_string()))?;
    let launch = Launch {
        program,
        arguments,
        folder: folder.as_fd(),
        rights,
        inherited: &[],
        output: Stdio::null(),
        errors: their_errors.into(),
        limits: Some(LIMITS),
    };
    let child = launch.spawn().map_err(|error| failed(format!("{}: {error}", program.display())))?;
    let process = Process::of_child(child).map_err(|error| failed(error.to_string()))?;
    let outcome = match timeout(TIME_LIMIT, process.ended()).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let _ = process.kill();
            process.ended().await;
            return Err(failed(format!("{} did not end within {TIME_LIMIT:?}", program.display())));
        }
    };
    if outcome.as_deref() == Some("exit code 0") {
        return Ok(());
    }
    // The program has ended, so reading ends too.
    let mut message = vec![];
    let _ = errors.take(4096).read_to_end(&mut message);
    Err(failed(String::from_utf8_lossy(&message).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn header(version: u32, size: u64, backing: u64, incompatible: u64) -> Vec<u8> {
        let mut bytes = b"QFI\xfb".to_vec();
        bytes.extend(version.to_be_bytes());
        bytes.extend(backing.to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend(size.to_be_bytes());
        bytes.resize(72, 0);
        bytes.extend(incompatible.to_be_bytes());
        bytes.resize(104, 0);
        bytes
    }

    fn size_of(content: &[u8], format: DiskFormat) -> Result<Bytes, Error> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        base_size(file.path(), format)
    }

    #[test]
    fn sizes_come_from_headers() {
        assert_eq!(size_of(&header(2, 5 << 20, 0, 0), DiskFormat::Qcow2).unwrap(), Bytes::mib(5));
        assert_eq!(size_of(&header(3, 5 << 20, 0, 0), DiskFormat::Qcow2).unwrap(), Bytes::mib(5));
        assert_eq!(size_of(&[0; 700], DiskFormat::Raw).unwrap(), Bytes(1024));
        for (bytes, why) in [
            (header(3, 1, 4096, 0), "backing file"),
            (header(3, 1, 0, 4), "another file"),
            (header(4, 1, 0, 0), "no qcow2 header"),
            (vec![], "no qcow2 header"),
        ] {
            let error = size_of(&bytes, DiskFormat::Qcow2).unwrap_err();
            assert!(error.code == "base_image_unusable" && error.detail.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Header::parse(&bytes);
            let mut bytes = bytes;
            bytes.splice(..0, *b"QFI\xfb\0\0\0\x03");
            let _ = Header::parse(&bytes);
        }
    }
}
