//! Hyper-V's older disks, vhd (Microsoft: Virtual Hard Disk Image Format Specification 1.0). QEMU's name is vpc.
//!
//! Its description is in the last 512 bytes; the kinds that grow have a copy of it at the beginning.

use nephos_types::Result;

use super::{
    MAX_VIRTUAL_SIZE, broken, refused,
    source::{Fields, Part, cut_off},
    too_large, unsupported,
};

pub(super) const MAGIC: &[u8] = b"conectix";
const FOOTER: u64 = 512;
const HEADER: usize = 1024;

/// Whether the part ends as one.
pub(super) fn is_one(part: &mut Part<'_>) -> Result<bool> {
    match part.length().checked_sub(FOOTER) {
        Some(at) => Ok(part.bytes(at, MAGIC.len())? == MAGIC),
        None => Ok(false),
    }
}

/// The size of the disk.
pub(super) fn check(part: &mut Part<'_>) -> Result<u64> {
    let at = part.length().checked_sub(FOOTER).ok_or_else(cut_off)?;
    let footer = part.bytes(at, FOOTER as usize)?;
    if !footer.starts_with(MAGIC) {
        return Err(cut_off());
    }
    let fields = Fields(&footer);
    if fields.be32(64)? != sum(&footer, 64) {
        return Err(broken("the checksum of its footer is wrong"));
    }
    if fields.be32(12)? >> 16 != 1 {
        return Err(unsupported("it is a vhd of an unknown version"));
    }
    let size = fields.be64(48)?;
    if size > MAX_VIRTUAL_SIZE {
        return Err(too_large(size));
    }
    match fields.be32(60)? {
        2 if size > at => Err(cut_off()),
        2 => Ok(size),
        3 => {
            // QEMU reads this copy, so it has to say the same.
            if part.bytes(0, FOOTER as usize)? != footer {
                return Err(refused("its beginning contradicts its end"));
            }
            dynamic(part, fields.be64(16)?, size)?;
            Ok(size)
        }
        4 => Err(refused("it holds the differences to a parent only")
            .next("merge it with its parent first: Merge-VHD, or qemu-img convert", None)),
        kind => Err(unsupported(format!("it is a vhd of type {kind}"))),
    }
}

fn dynamic(part: &mut Part<'_>, at: u64, size: u64) -> Result<()> {
    if at < FOOTER {
        return Err(broken("its second header is within the first"));
    }
    let header = part.bytes(at, HEADER)?;
    let fields = Fields(&header);
    if !header.starts_with(b"cxsparse") || fields.be32(36)? != sum(&header, 36) {
        return Err(broken("its second header is not sound"));
    }
    if header.get(40..56).is_none_or(|id| id.iter().any(|byte| *byte != 0))
        || header.get(64..768).is_none_or(|names| names.iter().any(|byte| *byte != 0))
    {
        return Err(refused("it names a parent"));
    }
    let (entries, block) = (u64::from(fields.be32(28)?), u64::from(fields.be32(32)?));
    if !block.is_power_of_two() || !(512..=1 << 28).contains(&block) || entries < size.div_ceil(block) {
        return Err(broken(format!("{entries} blocks of {block} bytes, for a disk of {size} bytes")));
    }
    let end = fields.be64(16)?.checked_add(entries * 4);
    if end.is_none_or(|end| end > part.length()) {
        return Err(cut_off());
    }
    Ok(())
}

/// The checksum of a header: what its bytes add up to, inverted, without the checksum's own four.
fn sum(header: &[u8], own: usize) -> u32 {
    let counted = header.iter().enumerate().filter(|(at, _)| !(own..own + 4).contains(at));
    !counted.fold(0_u32, |sum, (_, byte)| sum.wrapping_add(u32::from(*byte)))
}
