//! The header of a qcow2 file (QEMU: docs/interop/qcow2.txt), checked as strictly as a stranger's file has to be.

use nephos_types::{Error, ErrorKind, Result};

use super::{MAX_VIRTUAL_SIZE, too_large, unsupported};

/// What a qcow2 begins with.
pub(super) const MAGIC: &[u8] = b"QFI\xfb";

/// Incompatible features (bits of the field at 72): not closed cleanly; known to be broken; data in another file;
/// compression named in the header; large L2 entries.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION_TYPE | EXTENDED_L2;

/// Header lengths: version 2, and the least of version 3.
const LENGTH_V2: u32 = 72;
const LENGTH_V3: u32 = 104;
/// Limits that QEMU itself sets (block/qcow2.h).
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65_536;

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn u32(&self, at: usize) -> Result<u32> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut_off)?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> Result<u64> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut_off)?;
        Ok(u64::from_be_bytes(*bytes))
    }
}

/// The size of the disk, if the header is one that can be trusted. `head` begins with [`MAGIC`].
pub(super) fn virtual_size(head: &[u8], length: Option<u64>) -> Result<u64> {
    let header = Header(head);
    let version = header.u32(4)?;
    if !(2..=3).contains(&version) {
        return Err(unsupported(format!("it is a qcow{version}; only versions 2 and 3 are known")));
    }
    if header.u64(8)? != 0 || header.u32(16)? != 0 {
        return Err(refused("it names a backing file")
            .next("make it stand alone first: qemu-img convert -O qcow2 FILE FILE.qcow2", None));
    }
    if header.u32(32)? != 0 {
        return Err(refused("it is encrypted").next("decrypt it first: qemu-img convert -O qcow2", None));
    }
    let mut l2_entry = 8;
    if version == 3 {
        let features = header.u64(72)?;
        if features & DATA_FILE != 0 {
            return Err(refused("its data is in another file")
                .next("make it stand alone first: qemu-img convert -O qcow2 FILE FILE.qcow2", None));
        }
        if features & CORRUPT != 0 {
            return Err(refused("it is marked as corrupt").next("repair it first: qemu-img check -r all FILE", None));
        }
        if features & !KNOWN != 0 {
            return Err(unsupported(format!("it uses features of qcow2 that are not known here ({features:#x})")));
        }
        check_header_length(&header, features)?;
        if features & EXTENDED_L2 != 0 {
            l2_entry = 16;
        }
    }
    let cluster_bits = header.u32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(broken(format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are possible")));
    }
    let cluster = 1_u64 << cluster_bits;
    let size = header.u64(24)?;
    if size > MAX_VIRTUAL_SIZE {
        return Err(too_large(size));
    }
    let file = File { cluster, length };

    let l1_entries = u64::from(header.u32(36)?);
    let needed = size.div_ceil(cluster * (cluster / l2_entry));
    if l1_entries < needed {
        return Err(broken(format!("its L1 table has {l1_entries} entries; its disk needs {needed}")));
    }
    file.check_table("L1 table", header.u64(40)?, l1_entries * 8, MAX_L1_BYTES)?;
    let refcount_table = u64::from(header.u32(56)?).saturating_mul(cluster);
    if refcount_table == 0 {
        return Err(broken("it has no refcount table"));
    }
    file.check_table("refcount table", header.u64(48)?, refcount_table, MAX_REFCOUNT_TABLE_BYTES)?;
    let snapshots = header.u32(60)?;
    if snapshots > MAX_SNAPSHOTS {
        return Err(broken(format!("{snapshots} snapshots; at most {MAX_SNAPSHOTS} are possible")));
    }
    if snapshots > 0 {
        // 40 bytes and at least an id and a name for each.
        file.check_table("snapshot table", header.u64(64)?, u64::from(snapshots) * 40, MAX_L1_BYTES)?;
    }
    Ok(size)
}

/// Version 3: the header says how long it is, which must cover the fields whose features are on.
fn check_header_length(header: &Header<'_>, features: u64) -> Result<()> {
    let refcount_order = header.u32(96)?;
    if refcount_order > 6 {
        return Err(broken(format!("refcounts of 2^{refcount_order} bits; at most 2^6 are possible")));
    }
    let length = header.u32(100)?;
    if length < LENGTH_V3 || !length.is_multiple_of(8) || u64::from(length) > 1 << header.u32(20)?.min(21) {
        return Err(broken(format!("a header of {length} bytes")));
    }
    let compression = if length > LENGTH_V3 { *header.0.get(104).ok_or_else(cut_off)? } else { 0 };
    if (compression != 0) != (features & COMPRESSION_TYPE != 0) || compression > 1 {
        return Err(unsupported(format!("it uses compression type {compression}; zlib (0) and zstd (1) are known")));
    }
    Ok(())
}

/// What is known of the file around the header.
struct File {
    cluster: u64,
    length: Option<u64>,
}

impl File {
    /// A table must begin at a cluster after the header and lie within the file.
    fn check_table(&self, what: &str, at: u64, bytes: u64, most: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        if bytes > most {
            return Err(broken(format!("its {what} has {bytes} bytes; at most {most} are possible")));
        }
        if !at.is_multiple_of(self.cluster) || at < u64::from(LENGTH_V2) {
            return Err(broken(format!("its {what} is at {at}, which is not the beginning of a cluster")));
        }
        let end = at.checked_add(bytes).ok_or_else(|| broken(format!("its {what} is at {at}")))?;
        // The last cluster of a file may be written in part only.
        let outside = self.length.is_some_and(|length| end > length.next_multiple_of(self.cluster) || at >= length);
        if outside {
            return Err(broken(format!("its {what} ends at {end}, after the end of the file"))
                .next("upload the whole file; this one seems to be cut off", None));
        }
        Ok(())
    }
}

fn cut_off() -> Error {
    broken("the header is cut off").next("upload the whole file; this one seems to be cut off", None)
}

fn broken(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "image_broken", "The qcow2 image is not sound").detail(detail)
}

fn refused(detail: &str) -> Error {
    Error::new(ErrorKind::Invalid, "image_refused", "The qcow2 image cannot be accepted").detail(detail)
}
