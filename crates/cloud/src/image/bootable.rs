//! What an image is to a server that boots it: its content, what it needs, and what its properties say of how it boots.
//!
//! The properties are those of the field (Glance's useful image properties), and one of our own:
//!
//! | property | values |
//! | --- | --- |
//! | `hw_firmware_type` | `bios` (the default), `uefi` |
//! | `kernel_id`, `ramdisk_id` | images of format `aki` and `ari`, which are loaded directly |
//! | `os_command_line` | the command line of that kernel |
//! | `config_drive_format` | `nocloud` (the default), `openstack` |
//!
//! They are read when a server is made or rebuilt, not when they are written: properties are free, and what a kernel is
//! may change.

use std::sync::Arc;

use nephos_driver::{DiskFormat, Firmware};
use nephos_node_api::{BootSource, ImageSource};
use nephos_ops::image::ImageFormat;
use nephos_store::Record;
use nephos_types::{Bytes, Error, Reference, Result};

use super::{Image, Images, content, deactivated, disk_format};
use crate::session::Session;

pub(crate) const FIRMWARE: &str = "hw_firmware_type";
pub(crate) const KERNEL: &str = "kernel_id";
pub(crate) const RAM_DISK: &str = "ramdisk_id";
pub(crate) const COMMAND_LINE: &str = "os_command_line";
pub(crate) const DRIVE_FORMAT: &str = "config_drive_format";

/// What a kernel is told that is told nothing else.
const DEFAULT_COMMAND_LINE: &str = "root=/dev/vda console=tty0 console=ttyS0,115200";
/// What Linux reads of its command line.
const MAX_COMMAND_LINE: usize = 2047;

/// An image as the creation of a server needs it.
#[derive(Clone, Debug)]
pub struct Bootable {
    /// The records that all of this is taken from: its own, its kernel's, its initial RAM disk's.
    pub records: Vec<Arc<Record<Image>>>,
    /// What the node is told.
    pub source: ImageSource,
    /// Least root disk, in GiB.
    pub min_disk_gib: u64,
    /// The image's own disk, in GiB, rounded up.
    pub virtual_size_gib: u64,
    /// Least memory, in MiB.
    pub min_memory_mib: u64,
    /// Firmware.
    pub firmware: Firmware,
    /// What the firmware starts.
    pub boot: BootSource,
    /// Whether its first-boot software wants a configuration drive as OpenStack has it, instead of NoCloud's.
    pub open_stack_drive: bool,
}

impl Images {
    /// The image that a caller wants to boot; an error if it has no content yet.
    pub fn bootable(&self, session: &Session, reference: &Reference) -> Result<Bootable> {
        let record = usable(session, reference)?;
        let content = content(&record)?;
        let format = disk_format(content.format).ok_or_else(|| {
            Error::conflict("image_not_bootable", "The image is no root disk")
                .detail(format!("its format is {}", content.format.name()))
                .next("choose another image", Some("nephos image list".to_owned()))
        })?;
        let mut records = vec![Arc::clone(&record)];
        let boot = boot(session, &record, &mut records)?;
        let property = |name| record.body.properties.0.get(name).map(String::as_str);
        Ok(Bootable {
            source: source(&record, format)?,
            min_disk_gib: record.body.min_disk_gib,
            virtual_size_gib: content.disk_gib(),
            min_memory_mib: record.body.min_memory_mib,
            firmware: match property(FIRMWARE) {
                None | Some("bios") => Firmware::Bios,
                Some("uefi") => Firmware::Uefi,
                Some(other) => {
                    return Err(unusable(&record, FIRMWARE, format!("`{other}`; `bios` and `uefi` are possible")));
                }
            },
            open_stack_drive: match property(DRIVE_FORMAT) {
                None | Some("nocloud") => false,
                Some("openstack") => true,
                Some(other) => {
                    let detail = format!("`{other}`; `nocloud` and `openstack` are possible");
                    return Err(unusable(&record, DRIVE_FORMAT, detail));
                }
            },
            boot,
            records,
        })
    }
}

/// An image that may be used; an error if it has no content yet.
fn usable(session: &Session, reference: &Reference) -> Result<Arc<Record<Image>>> {
    let record = session.find::<Image>(reference)?;
    content(&record)?;
    if record.body.deactivated { Err(deactivated(&record)) } else { Ok(record) }
}

/// What nodes are told of an image.
fn source(record: &Record<Image>, format: DiskFormat) -> Result<ImageSource> {
    let content = content(record)?;
    Ok(ImageSource { id: record.meta.id, format, size: Bytes(content.size), sha256: content.sha256.clone() })
}

/// What the firmware starts, by the image's properties. Adds the records that this rests on.
fn boot(session: &Session, record: &Record<Image>, records: &mut Vec<Arc<Record<Image>>>) -> Result<BootSource> {
    let properties = &record.body.properties.0;
    let mut part = |property: &str, format: ImageFormat| -> Result<Option<ImageSource>> {
        let Some(value) = properties.get(property) else { return Ok(None) };
        let refused = |error: Error| unusable(record, property, error.to_string());
        let reference: Reference = value.parse().map_err(refused)?;
        let named = usable(session, &reference).map_err(refused)?;
        let found = content(&named)?.format;
        if found != format {
            let detail = format!("image `{value}` has the format {}, not {}", found.name(), format.name());
            return Err(unusable(record, property, detail));
        }
        // Its bytes are loaded as they are.
        let source = source(&named, DiskFormat::Raw)?;
        records.push(named);
        Ok(Some(source))
    };
    let (kernel, initrd) = (part(KERNEL, ImageFormat::Aki)?, part(RAM_DISK, ImageFormat::Ari)?);
    let command_line = properties.get(COMMAND_LINE);
    let Some(kernel) = kernel else {
        return match (initrd, command_line) {
            (None, None) => Ok(BootSource::Disk),
            (Some(_), _) => Err(unusable(record, RAM_DISK, format!("it needs a kernel: `{KERNEL}`"))),
            (None, Some(_)) => Err(unusable(record, COMMAND_LINE, format!("it needs a kernel: `{KERNEL}`"))),
        };
    };
    let command_line = command_line.map_or(DEFAULT_COMMAND_LINE, String::as_str);
    if command_line.len() > MAX_COMMAND_LINE || command_line.chars().any(char::is_control) {
        let detail = format!("at most {MAX_COMMAND_LINE} bytes without control characters");
        return Err(unusable(record, COMMAND_LINE, detail));
    }
    Ok(BootSource::Kernel { kernel, initrd, command_line: command_line.to_owned() })
}

fn unusable(record: &Record<Image>, property: &str, detail: String) -> Error {
    let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
    Error::conflict("invalid_image_property", format!("The image's property `{property}` cannot be used"))
        .detail(detail)
        .next("correct the properties", Some(format!("nephos image update {name} --properties …")))
}
