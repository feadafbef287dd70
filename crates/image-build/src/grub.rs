//! Makes the disk bootable by a BIOS: GRUB, without a partition table, put in place by writing two places of the image.
//!
//! The usual installers want the file system mounted, thus root. What they do is small: sector 0 gets `boot.img`,
//! which loads the one sector whose number stands at [`KERNEL_SECTOR`]; that is the first of `core.img`, and at its end
//! stands the list of the runs of sectors that hold the rest. `core.img` is an ordinary file of the file system, so only
//! its place has to be found out, which must not change afterwards. (GRUB: `include/grub/i386/pc/boot.h`,
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

const SECTOR: usize = 512;
/// Offset in `boot.img` of the sector number of `core.img`, 8 bytes.
const KERNEL_SECTOR: usize = 0x5c;
/// Offset in `boot.img` of a jump that is replaced by two `nop`s for BIOSes that name the wrong drive.
const DRIVE_CHECK: usize = 0x66;
/// Where `boot.img` keeps code for floppy disks; on a hard disk a kernel would take it for a partition table.
const PARTITION_TABLE: std::ops::Range<usize> = 0x1be..0x1fe;
/// The first run in `core.img`'s first sector: start (8 bytes), length (2), segment to load to (2). Further ones go
/// downwards; a length of zero ends the list.
const FIRST_RUN: usize = SECTOR - 12;
/// Segment that `core.img`'s second sector is loaded to.
const LOAD_SEGMENT: u16 = 0x820;
/// Modules for reading the kernel from an ext4 disk.
const MODULES: &[&str] = &["biosdisk", "ext2", "linux"];

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

/// Makes `core.img`, which runs `script` without showing a menu.
pub(crate) fn make_core(tools: &Toolbox, script: &Path, core: &Path) -> Result<()> {
    // The prefix names no device: GRUB then takes the disk that it was loaded from.
    run(tools
        .command("grub-mkimage")?
        .args(["-O", "i386-pc", "-p", "/boot/grub", "-d"])
        .arg(modules(tools))
        .arg("-c")
        .arg(script)
        .arg("-o")
        .arg(core)
        .args(MODULES))
    .map(drop)
}

/// Makes the disk boot `core.img`, which lies in these runs of sectors of the disk.
pub(crate) fn install(tools: &Toolbox, disk: &Path, core: &Path, runs: &[Run]) -> Result<()> {
    let read = |path: &Path| fs::read(path).map_err(|error| io_error("reading", path, error));
    let boot = boot_sector(&read(&modules(tools).join("boot.img"))?, runs)?;
    let first = first_sector(&read(core)?, runs)?;
    let start = runs.first().map_or(0, |run| run.start * SECTOR as u64);
    let mut file = fs::OpenOptions::new().write(true).open(disk).map_err(|error| io_error("opening", disk, error))?;
    [(0, boot), (start, first)]
        .into_iter()
        .try_for_each(|(at, sector)| {
            file.seek(SeekFrom::Start(at))?;
            file.write_all(&sector)
        })
        .map_err(|error| io_error("writing", disk, error))
}

fn misfit(what: &str) -> Error {
    Error::bug(format!("this GRUB does not look as expected: {what}"))
}

/// `boot.img` for a `core.img` in these runs.
fn boot_sector(image: &[u8], runs: &[Run]) -> Result<[u8; SECTOR]> {
    let mut sector: [u8; SECTOR] = image.try_into().map_err(|_| misfit("boot.img has not 512 bytes"))?;
    let first = runs.first().ok_or_else(|| misfit("core.img is empty"))?;
    sector[KERNEL_SECTOR..KERNEL_SECTOR + 8].copy_from_slice(&first.start.to_le_bytes());
    sector[DRIVE_CHECK..DRIVE_CHECK + 2].fill(0x90);
    sector[PARTITION_TABLE].fill(0);
    Ok(sector)
}

/// The first sector of `core.img`, with the list of where the others are.
fn first_sector(core: &[u8], runs: &[Run]) -> Result<[u8; SECTOR]> {
    let mut sector: [u8; SECTOR] = *core.first_chunk().ok_or_else(|| misfit("core.img is shorter than a sector"))?;
    let mut left = (core.len().div_ceil(SECTOR) - 1) as u64;
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
        segment = segment.wrapping_add(count.wrapping_mul((SECTOR / 16) as u16));
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
        let core = vec![0; 5 * SECTOR + 1];
        let sector = first_sector(&core, &[Run { start: 100, length: 3 }, Run { start: 200, length: 8 }]).unwrap();
        assert_eq!(sector[FIRST_RUN..][..8], 101_u64.to_le_bytes());
        assert_eq!(sector[FIRST_RUN + 8..][..4], [2, 0, 0x20, 0x08]);
        assert_eq!(sector[FIRST_RUN - 12..][..8], 200_u64.to_le_bytes());
        // Three sectors are left, loaded 2 * 512 bytes after the first two.
        assert_eq!(sector[FIRST_RUN - 4..][..4], [3, 0, 0x60, 0x08]);
        assert_eq!(sector[FIRST_RUN - 24..][..12], [0; 12]);
    }

    #[test]
    fn a_core_that_does_not_fit_is_refused() {
        assert!(first_sector(&vec![0; 5 * SECTOR], &[Run { start: 1, length: 4 }]).is_err());
        assert!(first_sector(&[0; 5], &[Run { start: 1, length: 4 }]).is_err());
        assert!(boot_sector(&[0; SECTOR], &[]).is_err());
        assert!(first_sector(&vec![1; 5 * SECTOR], &[Run { start: 1, length: 9 }]).is_err());
    }
}
