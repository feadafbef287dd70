//! Makes the disk bootable by a BIOS: GRUB, without a partition table, put in place by writing two places of the image.
//!
//! The usual installers want the file system mounted, thus root. What they do is small: sector 0 gets `boot.img`,
//! which loads the one sector whose number stands at [`KERNEL_SECTOR`]; that is the first of `core.img`, and at its end
//! stands the list of the runs of sectors that hold the rest. `core.img` lies in the place of an ordinary file of the file
//! system, which must not move afterwards.
//!
//! Kernel and initramfs are read by the places of their sectors, too, so that no driver for the file system is needed.
//! They are booted by `linux16`: the command `linux` moves all the memory that the kernel will take (52 MiB) byte by
//! byte, which takes 3 s under emulation. (GRUB: `include/grub/i386/pc/boot.h`,
//! `grub-core/boot/i386/pc/diskboot.S`.)

use std::{
    fs,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use nephos_types::{Error, Result};

use crate::{
    command::{io_error, run},
    toolbox::Toolbox,
};

/// Bytes in a sector.
pub(crate) const SECTOR: u64 = 512;
const SECTOR_BYTES: usize = SECTOR as usize;
/// Offset in `boot.img` of the sector number of `core.img`, 8 bytes.
const KERNEL_SECTOR: usize = 0x5c;
/// Offset in `boot.img` of a jump that is replaced by two `nop`s for BIOSes that name the wrong drive.
const DRIVE_CHECK: usize = 0x66;
/// Where `boot.img` keeps code for floppy disks; on a hard disk a kernel would take it for a partition table.
const PARTITION_TABLE: std::ops::Range<usize> = 0x1be..0x1fe;
/// The first run in `core.img`'s first sector: start (8 bytes), length (2), segment to load to (2). Further ones go
/// downwards; a length of zero ends the list.
const FIRST_RUN: usize = SECTOR_BYTES - 12;
/// Segment that `core.img`'s second sector is loaded to.
const LOAD_SEGMENT: u16 = 0x820;
/// Modules for reading a kernel from a disk.
const MODULES: &[&str] = &["biosdisk", "linux16"];

/// Modules for reading a kernel from an ext4 file system.
const MODULES_BY_NAME: &[&str] = &["biosdisk", "ext2", "linux"];

/// A run of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

/// GRUB's own modules in the unpacked packages.
fn modules(tools: &Toolbox) -> PathBuf {
    tools.path("usr/lib/grub/i386-pc")
}

/// Where the files lie that are booted.
pub(crate) struct BootFiles {
    pub(crate) kernel: Vec<Run>,
    pub(crate) initrd: Vec<Run>,
}

/// Makes `core.img`, which boots these files without showing a menu.
pub(crate) fn make_core(tools: &Toolbox, files: &BootFiles, arguments: &str, scratch: &Path) -> Result<Vec<u8>> {
    let script = format!("linux16 {} {arguments}\ninitrd16 {}\nboot\n", list(&files.kernel), list(&files.initrd));
    core(tools, &script, MODULES, scratch)
}

/// Makes `core.img`, which boots what the links `/vmlinuz` and `/initrd.img` name then: a Debian keeps them on its newest
/// kernel.
pub(crate) fn make_core_by_name(tools: &Toolbox, arguments: &str, scratch: &Path) -> Result<Vec<u8>> {
    let script = format!("set root=(hd0)\nlinux /vmlinuz {arguments}\ninitrd /initrd.img\nboot\n");
    core(tools, &script, MODULES_BY_NAME, scratch)
}

fn core(tools: &Toolbox, content: &str, modules_in: &[&str], scratch: &Path) -> Result<Vec<u8>> {
    let script = scratch.join("grub-boot");
    fs::write(&script, content).map_err(|error| io_error("writing", &script, error))?;
    let core = scratch.join("core.img");
    // The prefix names no device: GRUB then takes the disk that it was loaded from.
    run(tools
        .command("grub-mkimage")?
        .args(["-O", "i386-pc", "-p", "/boot/grub", "-d"])
        .arg(modules(tools))
        .arg("-c")
        .arg(&script)
        .arg("-o")
        .arg(&core)
        .args(modules_in))?;
    fs::read(&core).map_err(|error| io_error("reading", &core, error))
}

/// A file by its sectors, as GRUB reads it.
fn list(runs: &[Run]) -> String {
    let parts: Vec<_> = runs.iter().map(|run| format!("{}+{}", run.start, run.length)).collect();
    parts.join(",")
}

/// Makes the disk boot `core`, which is put into these runs of its sectors.
pub(crate) fn install(tools: &Toolbox, disk: &Path, core: &[u8], runs: &[Run]) -> Result<()> {
    let image = modules(tools).join("boot.img");
    let image = fs::read(&image).map_err(|error| io_error("reading", &image, error))?;
    let boot = boot_sector(&image, runs)?;
    let mut core = core.to_vec();
    let first = first_sector(&core, runs)?;
    if let Some(place) = core.first_chunk_mut() {
        *place = first;
    }
    let write = || {
        let mut file = fs::OpenOptions::new().write(true).open(disk)?;
        file.write_all(&boot)?;
        let mut rest = core.as_slice();
        for run in runs {
            let (part, after) =
                rest.split_at(rest.len().min(usize::try_from(run.length * SECTOR).unwrap_or(usize::MAX)));
            file.seek(SeekFrom::Start(run.start * SECTOR))?;
            file.write_all(part)?;
            rest = after;
        }
        Ok(())
    };
    write().map_err(|error| io_error("writing", disk, error))
}

fn misfit(what: &str) -> Error {
    Error::bug(format!("this GRUB does not look as expected: {what}"))
}

/// `boot.img` for a `core.img` in these runs.
fn boot_sector(image: &[u8], runs: &[Run]) -> Result<[u8; SECTOR_BYTES]> {
    let mut sector: [u8; SECTOR_BYTES] = image.try_into().map_err(|_| misfit("boot.img has not 512 bytes"))?;
    let first = runs.first().ok_or_else(|| misfit("core.img is empty"))?;
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.start.to_le_bytes());
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    sector[PARTITION_TABLE].fill(0);
    Ok(sector)
}

/// The first sector of `core.img`, with the list of where the others are.
fn first_sector(core: &[u8], runs: &[Run]) -> Result<[u8; SECTOR_BYTES]> {
    let mut sector: [u8; SECTOR_BYTES] =
        *core.first_chunk().ok_or_else(|| misfit("core.img is shorter than a sector"))?;
    let mut left = (core.len().div_ceil(SECTOR_BYTES) - 1) as u64;
    let mut segment = LOAD_SEGMENT;
    let mut at = FIRST_RUN;
    for (number, run) in runs.iter().enumerate() {
        // The first sector is loaded by boot.img.
        let skip = u64::from(number == 0);
        let length = (run.length - skip.min(run.length)).min(left);
        if length == 0 {
            continue;
        }
        let count = u16::try_from(length).map_err(|_| misfit("core.img is too large"))?;
        let entry = sector.get_mut(at..at + 12).ok_or_else(|| misfit("core.img lies in too many pieces"))?;
        entry[..8].copy_from_slice(&(run.start + skip).to_le_bytes());
        entry[8..10].copy_from_slice(&count.to_le_bytes());
        entry[10..].copy_from_slice(&segment.to_le_bytes());
        left -= length;
        segment = segment.wrapping_add(count.wrapping_mul((SECTOR_BYTES / 16) as u16));
        at = at.checked_sub(12).ok_or_else(|| misfit("core.img lies in too many pieces"))?;
    }
    if left > 0 {
        return Err(misfit("core.img is longer than the place it lies in"));
    }
    let end = sector.get(at..at + 12).ok_or_else(|| misfit("core.img lies in too many pieces"))?;
    if end.iter().any(|byte| *byte != 0) {
        return Err(misfit("there is no room for the list of core.img's pieces"));
    }
    Ok(sector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_runs_leaves_out_the_first_sector() {
        let core = vec![0; 5 * SECTOR_BYTES + 1];
        let sector = first_sector(&core, &[Run { start: 100, length: 3 }, Run { start: 200, length: 8 }]).unwrap();
        assert_eq!(sector[FIRST_RUN..][..8], 101_u64.to_le_bytes());
        assert_eq!(sector[FIRST_RUN + 8..][..4], [2, 0, 0x20, 0x08]);
        assert_eq!(sector[FIRST_RUN - 12..][..8], 200_u64.to_le_bytes());
        // Three sectors are left, loaded 2 * 512 bytes after the first two.
        assert_eq!(sector[FIRST_RUN - 4..][..4], [3, 0, 0x60, 0x08]);
        assert_eq!(sector[FIRST_RUN - 24..][..12], [0; 12]);
    }

    #[test]
    fn files_are_listed_as_grub_reads_them() {
        assert_eq!(list(&[Run { start: 8, length: 16 }, Run { start: 64, length: 8 }]), "8+16,64+8");
    }

    #[test]
    fn a_core_that_does_not_fit_is_refused() {
        assert!(first_sector(&vec![0; 5 * SECTOR_BYTES], &[Run { start: 1, length: 4 }]).is_err());
        assert!(first_sector(&[0; 5], &[Run { start: 1, length: 4 }]).is_err());
        assert!(boot_sector(&[0; SECTOR_BYTES], &[]).is_err());
        assert!(first_sector(&vec![1; 5 * SECTOR_BYTES], &[Run { start: 1, length: 9 }]).is_err());
    }
}
