//! What an image's bytes are, seen from their beginning. Pure functions: no file, no tool, no trust in any claim.
//!
//! This is the gate before any tool opens a file that a stranger wrote. Such tools follow what a file says, and a file
//! can name others of the machine (a backing file, a data file), or sizes that exhaust it; see the OpenStack advisory
//! OSSA-2024-001. So what is not understood entirely is refused.

mod qcow2;

use nephos_ops::image::ImageFormat;
use nephos_types::{Error, ErrorKind, Result};

/// How much of an image's beginning decides what it is. ISO 9660 says so last, after 32 KiB; a qcow2 header ends well
/// before.
pub const HEAD: usize = 64 << 10;

/// The largest disk that a server may be given: 64 TiB, as the largest flavor.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// What was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The format.
    pub format: ImageFormat,
    /// Size of the disk that a server sees, in bytes.
    pub virtual_size: u64,
}

/// ISO 9660: where its descriptors begin, after the type byte.
const ISO_MAGIC_AT: usize = 32_769;

/// Beginnings of what people upload by mistake, and what to do about it.
const FOREIGN: &[(&[u8], &str, &str)] = &[
    (b"KDMV", "a VMware disk (vmdk)", CONVERT),
    (b"COWD", "a VMware disk (vmdk)", CONVERT),
    (b"# Disk DescriptorFile", "the description of a VMware disk (vmdk)", CONVERT),
    (b"conectix", "a Hyper-V disk (vhd)", CONVERT),
    (b"vhdxfile", "a Hyper-V disk (vhdx)", CONVERT),
    (b"<<< ", "a VirtualBox disk (vdi)", CONVERT),
    (b"QED\0", "a QED disk", CONVERT),
    (b"WithoutFreeSpace", "a Parallels disk", CONVERT),
    (b"WithouFreSpacExt", "a Parallels disk", CONVERT),
    (b"\x1f\x8b", "compressed by gzip", UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    (b"BZh", "compressed by bzip2", UNPACK),
    (b"PK\x03\x04", "a zip archive", UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    (b"<!DOCTYPE", "a web page", FETCH),
    (b"<!doctype", "a web page", FETCH),
    (b"<html", "a web page", FETCH),
];
const CONVERT: &str = "convert it first: qemu-img convert -O qcow2 FILE FILE.qcow2";
const UNPACK: &str = "unpack it first";
const FETCH: &str = "fetch the image again; the server answered with a page instead";

/// Says what an image is, from its first [`HEAD`] bytes (all of them if it is shorter), and refuses what cannot be used.
///
/// `length` is the length of the whole, or `None` while the rest is still on its way: the answer then stands under the
/// reservation of a second call.
pub fn recognise(head: &[u8], length: Option<u64>, claim: Option<ImageFormat>) -> Result<Recognised> {
    if length == Some(0) {
        return Err(
            Error::invalid("image_empty", "The upload is empty").next("send the image as the request's body", None)
        );
    }
    if let Some((_, what, next)) = FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Err(unsupported(format!("it is {what}")).next(*next, None));
    }
    let found = if head.starts_with(qcow2::MAGIC) {
        let virtual_size = qcow2::virtual_size(head, length)?;
        Recognised { format: ImageFormat::Qcow2, virtual_size }
    } else if head.get(ISO_MAGIC_AT..ISO_MAGIC_AT + 5) == Some(b"CD001") {
        // Many are also disks, to be written to a stick as they are; who says so means that.
        let format =
            if claim == Some(ImageFormat::Raw) && is_boot_sector(head) { ImageFormat::Raw } else { ImageFormat::Iso };
        Recognised { format, virtual_size: length.unwrap_or(0) }
    } else {
        Recognised { format: ImageFormat::Raw, virtual_size: length.unwrap_or(0) }
    };
    if found.virtual_size > MAX_VIRTUAL_SIZE {
        return Err(too_large(found.virtual_size));
    }
    match claim {
        Some(claim) if claim != found.format => Err(Error::new(
            ErrorKind::UnsupportedMedia,
            "image_format_mismatch",
            "The content is not of the image's format",
        )
        .detail(format!("the image is said to be {}, the content is {}", claim.name(), found.format.name()))
        .next("create the image with the right format, or with none", None)),
        _ => Ok(found),
    }
}

/// The signature of a boot sector, which every partitioned or bootable disk has.
fn is_boot_sector(head: &[u8]) -> bool {
    head.get(510..512) == Some(&[0x55, 0xaa])
}

fn unsupported(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::UnsupportedMedia, "image_unsupported", "The content cannot be used as an image")
        .detail(detail)
}

fn too_large(virtual_size: u64) -> Error {
    Error::new(ErrorKind::TooLarge, "image_disk_too_large", "The image's disk is too large").detail(format!(
        "it is {} for a server; at most {} are accepted",
        nephos_types::Bytes(virtual_size),
        nephos_types::Bytes(MAX_VIRTUAL_SIZE)
    ))
}

#[cfg(test)]
mod tests;
