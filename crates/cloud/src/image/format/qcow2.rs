//! The header of a qcow2 file (QEMU: docs/interop/qcow2.txt), checked as strictly as a stranger's file has to be.

use nephos_types::Result;

use super::{
    MAX_VIRTUAL_SIZE, broken, refused,
    source::{Fields, cut_off},
    too_large, unsupported,
};

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
/// Header extensions: the end of them, the name of a file with the data, the header of an encrypted disk.
const END_OF_EXTENSIONS: u32 = 0;
const DATA_FILE_NAME: u32 = 0x4441_5441;
const FULL_DISK_ENCRYPTION: u32 = 0x0537_be77;

/// The size of the disk, if the header is one that can be trusted. `head` begins with [`MAGIC`].
pub(super) fn virtual_size(head: &[u8], length: Option<u64>) -> Result<u64> {
    let header = Fields(head);
    let version = header.be32(4)?;
    if !(2..=3).contains(&version) {
        return Err(unsupported(format!("it is a qcow{version}; only versions 2 and 3 are known")));
    }
    if header.be64(8)? != 0 || header.be32(16)? != 0 {
        return Err(refused("it names a backing file")
            .next("make it stand alone first: qemu-img convert -O qcow2 FILE FILE.qcow2", None));
    }
    if header.be32(32)? != 0 {
        return Err(refused("it is encrypted").next("decrypt it first: qemu-img convert -O qcow2", None));
    }
    let mut l2_entry = 8;
    if version == 3 {
        let features = header.be64(72)?;
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
    let cluster_bits = header.be32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(broken(format!("clusters of 2^{cluster_bits} bytes; 2^9 to 2^21 are possible")));
    }
    let cluster = 1_u64 << cluster_bits;
    let size = header.be64(24)?;
    if size > MAX_VIRTUAL_SIZE {
        return Err(too_large(size));
    }
    let file = File { cluster, length };

    let l1_entries = u64::from(header.be32(36)?);
    let needed = size.div_ceil(cluster * (cluster / l2_entry));
    if l1_entries < needed {
        return Err(broken(format!("its L1 table has {l1_entries} entries; its disk needs {needed}")));
    }
    file.check_table("L1 table", header.be64(40)?, l1_entries * 8, MAX_L1_BYTES)?;
    let refcount_table = u64::from(header.be32(56)?).saturating_mul(cluster);
    if refcount_table == 0 {
        return Err(broken("it has no refcount table"));
    }
    file.check_table("refcount table", header.be64(48)?, refcount_table, MAX_REFCOUNT_TABLE_BYTES)?;
    // Each has tables of its own, and a guest has no use for somebody else's past.
    if header.be32(60)? != 0 {
        return Err(refused("it has snapshots inside")
            .next("make it stand alone first: qemu-img convert -O qcow2 FILE FILE.qcow2", None));
    }
    check_extensions(&header, if version == 3 { header.be32(100)? } else { LENGTH_V2 }, cluster)?;
    Ok(size)
}

/// Version 3: the header says how long it is, which must cover the fields whose features are on.
fn check_header_length(header: &Fields<'_>, features: u64) -> Result<()> {
    let refcount_order = header.be32(96)?;
    if refcount_order > 6 {
        return Err(broken(format!("refcounts of 2^{refcount_order} bits; at most 2^6 are possible")));
    }
    let length = header.be32(100)?;
    if length < LENGTH_V3 || !length.is_multiple_of(8) || u64::from(length) > 1 << header.be32(20)?.min(21) {
        return Err(broken(format!("a header of {length} bytes")));
    }
    let compression = if length > LENGTH_V3 { *header.0.get(104).ok_or_else(cut_off)? } else { 0 };
    if (compression != 0) != (features & COMPRESSION_TYPE != 0) || compression > 1 {
        return Err(unsupported(format!("it uses compression type {compression}; zlib (0) and zstd (1) are known")));
    }
    Ok(())
}

/// The extensions after the header must not name a file, nor describe an encryption that the header denies. They end
/// with the first cluster.
fn check_extensions(header: &Fields<'_>, length: u32, cluster: u64) -> Result<()> {
    let mut at = u64::from(length);
    while at + 8 <= cluster {
        let field = |at: u64| header.be32(usize::try_from(at).unwrap_or(usize::MAX));
        match field(at)? {
            END_OF_EXTENSIONS => break,
            DATA_FILE_NAME => return Err(refused("it names a file with its data")),
            FULL_DISK_ENCRYPTION => return Err(refused("it is encrypted")),
            _ => {}
        }
        let content = u64::from(field(at + 4)?);
        if content > cluster - at - 8 {
            return Err(broken("an extension of its header is too long"));
        }
        at += 8 + content.next_multiple_of(8);
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
