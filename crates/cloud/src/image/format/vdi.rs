//! VirtualBox disks (VirtualBox: VDICore.h; QEMU: block/vdi.c).

use nephos_types::Result;

use super::{
    MAX_VIRTUAL_SIZE, broken, refused,
    source::{Fields, Part},
    too_large, unsupported,
};

/// What the file says it is, after 64 bytes of text.
const SIGNATURE: u32 = 0xbeda_107f;
const HEADER: usize = 512;
/// The only size of blocks that QEMU knows.
const BLOCK: u64 = 1 << 20;

pub(super) fn is_one(head: &[u8]) -> bool {
    Fields(head).le32(64).is_ok_and(|signature| signature == SIGNATURE)
}

/// The size of the disk.
pub(super) fn check(part: &mut Part<'_>) -> Result<u64> {
    let header = part.bytes(0, HEADER)?;
    let fields = Fields(&header);
    let version = fields.le32(0x44)?;
    if version != 0x0001_0001 {
        return Err(unsupported(format!("it is a vdi of version {version:#x}; 1.1 is known")));
    }
    match fields.le32(0x4c)? {
        1 | 2 => {}
        3 | 4 => {
            return Err(refused("it holds the differences to a parent only")
                .next("make it stand alone first: VBoxManage clonemedium", None));
        }
        kind => return Err(unsupported(format!("it is a vdi of type {kind}"))),
    }
    let nil = [0; 16];
    if fields.slice(0x1a8, 16)? != nil || fields.slice(0x1b8, 16)? != nil {
        return Err(refused("it names a parent"));
    }
    let (map, data) = (u64::from(fields.le32(0x154)?), u64::from(fields.le32(0x158)?));
    let size = fields.le64(0x170)?;
    if size > MAX_VIRTUAL_SIZE {
        return Err(too_large(size));
    }
    if fields.le32(0x168)? != 512 || u64::from(fields.le32(0x178)?) != BLOCK || fields.le32(0x17c)? != 0 {
        return Err(unsupported("it has sectors or blocks of an unusual size"));
    }
    let (blocks, allocated) = (u64::from(fields.le32(0x180)?), u64::from(fields.le32(0x184)?));
    if blocks != size.div_ceil(BLOCK) || allocated > blocks {
        return Err(broken(format!("{allocated} of {blocks} blocks, for a disk of {size} bytes")));
    }
    if !map.is_multiple_of(512) || !data.is_multiple_of(512) || map < HEADER as u64 || data < map + blocks * 4 {
        return Err(broken(format!("its map is at {map}, its data at {data}")));
    }
    if data + allocated * BLOCK > part.length().next_multiple_of(BLOCK) || data > part.length() {
        return Err(super::source::cut_off());
    }
    Ok(size)
}
