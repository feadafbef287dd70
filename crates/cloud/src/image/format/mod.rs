//! What an image's bytes are, by themselves. No tool, no trust in any claim; a file is read at few, bounded places and
//! no other file is ever opened.
//!
//! This is the gate before any tool opens a file that a stranger wrote. Such tools follow what a file says, and a file
//! can name others of the machine (a backing file, a data file, an extent, a parent), or sizes that exhaust it; see the
//! OpenStack advisories OSSA-2024-001 and OSSA-2024-002. So what is not understood entirely is refused.

mod boot;
pub mod ova;
mod qcow2;
mod source;
mod tar;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;

use nephos_ops::image::ImageFormat;
use nephos_types::{Error, ErrorKind, Result};

use self::source::Part;
pub use self::source::Source;

/// How much of an image's beginning says what it may be. ISO 9660 says so last, after 32 KiB; a qcow2 header ends well
/// before.
pub const HEAD: usize = 64 << 10;

/// The largest disk that a server may be given: 64 TiB, as the largest flavor.
pub const MAX_VIRTUAL_SIZE: u64 = 64 << 40;

/// What was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recognised {
    /// The format.
    pub format: ImageFormat,
    /// Size of the disk that a server sees, in bytes; of what is no disk, the size of the file.
    pub virtual_size: u64,
}

/// ISO 9660: where its descriptors begin, after the type byte.
const ISO_MAGIC_AT: usize = 32_769;

/// Beginnings of what people upload by mistake, and what to do about it.
const FOREIGN: &[(&[u8], &str, &str)] = &[
    (b"COWD", "a VMware disk of the old ESX kind", CONVERT),
    (b"# Disk DescriptorFile", "the description of a VMware disk without its data", CONVERT),
    (b"# Disk Descriptorfile", "the description of a VMware disk without its data", CONVERT),
    (b"QED\0", "a QED disk", CONVERT),
    (b"WithoutFreeSpace", "a Parallels disk", CONVERT),
    (b"WithouFreSpacExt", "a Parallels disk", CONVERT),
    (b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "a compressed loop device", CONVERT),
    (b"LUKS\xba\xbe", "an encrypted disk (LUKS)", "decrypt it first: cryptsetup open, then copy what is inside"),
    (b"\xfd7zXZ\0", "compressed by xz", UNPACK),
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

/// What a beginning promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    Qcow2,
    Vmdk,
    Vdi,
    /// A vhd that grows; a fixed one shows at its end only.
    Vhd,
    Vhdx,
    Iso,
    Tar,
    Packed,
    Kernel,
    RamDisk,
    /// Bytes.
    Plain,
}

fn guess(head: &[u8], claim: Option<ImageFormat>) -> Result<Guess> {
    // An initial RAM disk may be compressed by anything.
    if claim == Some(ImageFormat::Ari) && boot::is_ram_disk(head) {
        return Ok(Guess::RamDisk);
    }
    if let Some((_, what, next)) = FOREIGN.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return Err(unsupported(format!("it is {what}")).next(*next, None));
    }
    let unpacked = |compression| {
        let first = tar::unpacked(head, compression);
        if tar::is_header(&first) {
            return Ok(Guess::Packed);
        }
        if first.starts_with(b"070701") || first.starts_with(b"070702") {
            return Ok(Guess::RamDisk);
        }
        Err(unsupported("it is compressed, and no archive of a root file system").next(UNPACK, None))
    };
    Ok(match head {
        _ if head.starts_with(qcow2::MAGIC) => Guess::Qcow2,
        _ if head.starts_with(vmdk::MAGIC) => Guess::Vmdk,
        _ if head.starts_with(vhdx::MAGIC) => Guess::Vhdx,
        _ if head.starts_with(vhd::MAGIC) => Guess::Vhd,
        _ if vdi::is_one(head) => Guess::Vdi,
        _ if head.starts_with(b"\x1f\x8b") => unpacked(tar::Compression::Gzip)?,
        _ if head.starts_with(b"\x28\xb5\x2f\xfd") => {
            tar::check_window(head)?;
            unpacked(tar::Compression::Zstd)?
        }
        _ if head.get(..tar::BLOCK).is_some_and(tar::is_header) => Guess::Tar,
        _ if head.get(ISO_MAGIC_AT..ISO_MAGIC_AT + 5) == Some(b"CD001") => Guess::Iso,
        _ if boot::is_kernel(head) => Guess::Kernel,
        _ if boot::is_ram_disk(head) => Guess::RamDisk,
        _ => Guess::Plain,
    })
}

/// Refuses what an image's first [`HEAD`] bytes rule out already, before the rest has come.
pub fn check_beginning(head: &[u8], claim: Option<ImageFormat>) -> Result<()> {
    let possible: &[ImageFormat] = match guess(head, claim)? {
        Guess::Qcow2 => {
            qcow2::virtual_size(head, None)?;
            &[ImageFormat::Qcow2]
        }
        Guess::Vmdk => &[ImageFormat::Vmdk],
        Guess::Vdi => &[ImageFormat::Vdi],
        Guess::Vhd => &[ImageFormat::Vhd],
        Guess::Vhdx => &[ImageFormat::Vhdx],
        Guess::Iso => &[ImageFormat::Iso, ImageFormat::Raw, ImageFormat::Ami],
        Guess::Tar => &[ImageFormat::Tar, ImageFormat::Oci, ImageFormat::Ova],
        Guess::Packed => &[ImageFormat::Tar],
        Guess::Kernel => &[ImageFormat::Aki],
        Guess::RamDisk => &[ImageFormat::Ari],
        Guess::Plain => &[ImageFormat::Raw, ImageFormat::Ami, ImageFormat::Vhd],
    };
    match (claim, possible.first()) {
        (Some(claim), Some(found)) if !possible.contains(&claim) => Err(mismatch(claim, *found)),
        _ => Ok(()),
    }
}

/// Says what an image is, and refuses what cannot be used.
pub fn recognise(source: &dyn Source, claim: Option<ImageFormat>) -> Result<Recognised> {
    let mut part = Part::whole(source)?;
    if part.length() == 0 {
        return Err(
            Error::invalid("image_empty", "The upload is empty").next("send the image as the request's body", None)
        );
    }
    let head = part.up_to(0, HEAD)?;
    let length = part.length();
    let found = |format, virtual_size| Recognised { format, virtual_size };
    // Who says that a disk is Amazon's means that.
    let raw = if claim == Some(ImageFormat::Ami) { ImageFormat::Ami } else { ImageFormat::Raw };
    let found = match guess(&head, claim)? {
        Guess::Qcow2 => found(ImageFormat::Qcow2, qcow2::virtual_size(&head, Some(length))?),
        Guess::Vmdk => found(ImageFormat::Vmdk, vmdk::check(&mut part)?),
        Guess::Vdi => found(ImageFormat::Vdi, vdi::check(&mut part)?),
        Guess::Vhdx => found(ImageFormat::Vhdx, vhdx::check(&mut part)?),
        Guess::Vhd => found(ImageFormat::Vhd, vhd::check(&mut part)?),
        // Many are also disks, to be written to a stick as they are; who says so means that.
        Guess::Iso if matches!(claim, Some(ImageFormat::Raw | ImageFormat::Ami)) && is_boot_sector(&head) => {
            found(raw, length)
        }
        Guess::Iso => found(ImageFormat::Iso, length),
        Guess::Tar => archive(&mut part)?,
        Guess::Packed => found(ImageFormat::Tar, length),
        Guess::Kernel => found(ImageFormat::Aki, length),
        Guess::RamDisk => found(ImageFormat::Ari, length),
        Guess::Plain if vhd::is_one(&mut part)? => found(ImageFormat::Vhd, vhd::check(&mut part)?),
        Guess::Plain => found(raw, length),
    };
    if found.virtual_size > MAX_VIRTUAL_SIZE {
        return Err(too_large(found.virtual_size));
    }
    match claim {
        Some(claim) if claim != found.format => Err(mismatch(claim, found.format)),
        _ => Ok(found),
    }
}

/// What an archive is: an appliance, an OCI layout, or the files of a root file system.
fn archive(part: &mut Part<'_>) -> Result<Recognised> {
    let (entries, complete) = tar::entries(part)?;
    if ova::is_one(&entries) {
        let virtual_size = ova::check(part, &entries, complete)?.virtual_size;
        return Ok(Recognised { format: ImageFormat::Ova, virtual_size });
    }
    let format = if tar::is_oci(part, &entries)? { ImageFormat::Oci } else { ImageFormat::Tar };
    Ok(Recognised { format, virtual_size: part.length() })
}

/// What an appliance that was recognised holds.
pub fn appliance(source: &dyn Source) -> Result<ova::Appliance> {
    let mut part = Part::whole(source)?;
    let (entries, complete) = tar::entries(&mut part)?;
    ova::check(&mut part, &entries, complete)
}

/// The signature of a boot sector, which every partitioned or bootable disk has.
fn is_boot_sector(head: &[u8]) -> bool {
    head.get(510..512) == Some(&[0x55, 0xaa])
}

fn mismatch(claim: ImageFormat, found: ImageFormat) -> Error {
    Error::new(ErrorKind::UnsupportedMedia, "image_format_mismatch", "The content is not of the image's format")
        .detail(format!("the image is said to be {}, the content is {}", claim.name(), found.name()))
        .next("create the image with the right format, or with none", None)
}

fn unsupported(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::UnsupportedMedia, "image_unsupported", "The content cannot be used as an image")
        .detail(detail)
}

fn broken(detail: impl Into<String>) -> Error {
    Error::invalid("image_broken", "The image is not sound").detail(detail)
}

fn refused(detail: impl Into<String>) -> Error {
    Error::invalid("image_refused", "The image cannot be accepted").detail(detail)
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
