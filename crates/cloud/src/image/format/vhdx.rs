//! Hyper-V's disks (Microsoft: [MS-VHDX]).
//!
//! What the disk is stands in a metadata region that a region table locates. One that has a parent names it there.

use nephos_types::Result;

use super::{
    MAX_VIRTUAL_SIZE, broken, refused,
    source::{Fields, Part},
    too_large,
};

pub(super) const MAGIC: &[u8] = b"vhdxfile";

const REGIONS: [u64; 2] = [192 << 10, 256 << 10];
const REGION_TABLE: usize = 64 << 10;
const METADATA_TABLE: usize = 64 << 10;
/// The most entries of both tables.
const MAX_ENTRIES: u32 = 2047;

/// GUIDs as they stand in the file: the first three fields little-endian.
type Guid = [u8; 16];
const METADATA_REGION: Guid = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const BLOCK_TABLE_REGION: Guid = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const FILE_PARAMETERS: Guid = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const DISK_SIZE: Guid = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const PARENT_LOCATOR: Guid = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

const fn guid(first: u32, second: u16, third: u16, rest: u64) -> Guid {
    let (a, b, c, d) = (first.to_le_bytes(), second.to_le_bytes(), third.to_le_bytes(), rest.to_be_bytes());
    [a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7]]
}

/// The size of the disk.
pub(super) fn check(part: &mut Part<'_>) -> Result<u64> {
    let table = part.bytes(REGIONS[0], REGION_TABLE)?;
    // Readers differ in which of the two they follow.
    if part.bytes(REGIONS[1], REGION_TABLE)? != table {
        return Err(refused("its two region tables differ"));
    }
    let (mut metadata, mut blocks) = (None, None);
    let fields = Fields(&table);
    if !table.starts_with(b"regi") || fields.le32(8)? > MAX_ENTRIES {
        return Err(broken("it has no region table"));
    }
    for entry in 0..fields.le32(8)? as usize {
        let at = 16 + entry * 32;
        let (offset, length) = (fields.le64(at + 16)?, u64::from(fields.le32(at + 24)?));
        let region = match fields.slice(at, 16)? {
            id if id == METADATA_REGION => &mut metadata,
            id if id == BLOCK_TABLE_REGION => &mut blocks,
            _ if fields.le32(at + 28)? & 1 != 0 => return Err(refused("it needs a region that is not known here")),
            _ => continue,
        };
        if offset < 1 << 20 || offset.checked_add(length).is_none_or(|end| end > part.length()) {
            return Err(broken(format!("a region of {length} bytes at {offset}"))
                .next("upload the whole file; this one seems to be cut off", None));
        }
        if region.replace((offset, length)).is_some() {
            return Err(refused("it has a region twice"));
        }
    }
    let (Some((offset, length)), Some(_)) = (metadata, blocks) else {
        return Err(broken("it lacks its metadata or its block table"));
    };
    let mut region = part.part(offset, length).ok_or_else(|| broken("its metadata is not within it"))?;
    describe(&mut region)
}

fn describe(region: &mut Part<'_>) -> Result<u64> {
    let table = region.bytes(0, METADATA_TABLE)?;
    let fields = Fields(&table);
    let count = fields.le16(10)?;
    if !table.starts_with(b"metadata") || u32::from(count) > MAX_ENTRIES {
        return Err(broken("it has no metadata table"));
    }
    let (mut size, mut described) = (None, false);
    for entry in 0..usize::from(count) {
        let at = 32 + entry * 32;
        let offset = u64::from(fields.le32(at + 16)?);
        let id = fields.slice(at, 16)?;
        if id == PARENT_LOCATOR {
            return Err(differencing());
        } else if id == FILE_PARAMETERS {
            let item = region.bytes(offset, 8)?;
            if Fields(&item).le32(4)? & 2 != 0 {
                return Err(differencing());
            }
            let block = Fields(&item).le32(0)?;
            if !block.is_power_of_two() || !(1 << 20..=256 << 20).contains(&block) {
                return Err(broken(format!("blocks of {block} bytes")));
            }
            described = true;
        } else if id == DISK_SIZE {
            let item = region.bytes(offset, 8)?;
            if size.replace(Fields(&item).le64(0)?).is_some() {
                return Err(refused("it says twice how large it is"));
            }
        }
    }
    match size {
        Some(size) if size > MAX_VIRTUAL_SIZE => Err(too_large(size)),
        Some(size) if described && size > 0 => Ok(size),
        _ => Err(broken("its metadata does not describe a disk")),
    }
}

fn differencing() -> nephos_types::Error {
    refused("it holds the differences to a parent only")
        .next("merge it with its parent first: Merge-VHD, or qemu-img convert", None)
}
