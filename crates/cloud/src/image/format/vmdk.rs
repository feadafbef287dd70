//! VMware disks (VMware: Virtual Disk Format 5.0), of which only those in one file are taken.
//!
//! A vmdk's descriptor names the files that its data is in, and tools open those. Taken are files that begin with a
//! sparse extent's header and whose embedded descriptor names nothing but one sparse extent: themselves. A capacity of
//! zero in the header makes QEMU read the descriptor as if it stood alone, so that is refused as well.

use nephos_types::Result;

use super::{
    MAX_VIRTUAL_SIZE, broken, refused,
    source::{Fields, Part},
    too_large, unsupported,
};

pub(super) const MAGIC: &[u8] = b"KDMV";

const SECTOR: u64 = 512;
/// The longest descriptor, in sectors.
const MAX_DESCRIPTOR: u64 = 128;
/// "The grain directory is described by the footer."
const AT_END: u64 = u64::MAX;
/// QEMU's limit of a grain directory, in entries (block/vmdk.c).
const MAX_L1_ENTRIES: u64 = 512 << 20 >> 2;

/// The size of the disk.
pub(super) fn check(part: &mut Part<'_>) -> Result<u64> {
    let first = part.bytes(0, SECTOR as usize)?;
    let (capacity, descriptor) = header(part, &first)?;
    let gd_offset = Fields(&first).le64(56)?;
    if gd_offset == AT_END {
        // Marker, footer, end-of-stream marker: the last three sectors.
        let at = part.length().checked_sub(2 * SECTOR).ok_or_else(super::source::cut_off)?;
        let footer = part.bytes(at, SECTOR as usize)?;
        if !footer.starts_with(MAGIC) {
            return Err(super::source::cut_off());
        }
        if header(part, &footer)? != (capacity, descriptor) {
            return Err(refused("its footer contradicts its header"));
        }
        directory(part, &footer)?;
    } else {
        directory(part, &first)?;
    }
    let (offset, size) = descriptor;
    let bytes = part.bytes(offset * SECTOR, usize::try_from(size * SECTOR).unwrap_or(usize::MAX))?;
    describe(&bytes, capacity)?;
    Ok(capacity * SECTOR)
}

/// Checks a header (or footer): the capacity, and where the descriptor is, in sectors.
fn header(part: &Part<'_>, bytes: &[u8]) -> Result<(u64, (u64, u64))> {
    let fields = Fields(bytes);
    let version = fields.le32(4)?;
    if !(1..=3).contains(&version) {
        return Err(unsupported(format!("it is a vmdk of version {version}; 1 to 3 are known")));
    }
    let capacity = fields.le64(12)?;
    if capacity == 0 {
        return Err(refused("its header gives it no size of its own, so its descriptor would decide what is read"));
    }
    if capacity > MAX_VIRTUAL_SIZE / SECTOR {
        return Err(too_large(capacity.saturating_mul(SECTOR)));
    }
    let grain = fields.le64(20)?;
    if !grain.is_power_of_two() || !(8..=0x20_0000).contains(&grain) {
        return Err(broken(format!("grains of {grain} sectors")));
    }
    let (offset, size) = (fields.le64(28)?, fields.le64(36)?);
    if offset == 0 || size == 0 {
        return Err(refused("it has no embedded descriptor"));
    }
    let inside = offset.checked_add(size).is_some_and(|end| end <= part.length() / SECTOR);
    if size > MAX_DESCRIPTOR || !inside {
        return Err(broken(format!("its descriptor is at sector {offset}, {size} sectors long")));
    }
    if fields.le32(44)? != 512 {
        return Err(broken("grain tables have 512 entries"));
    }
    // What line-end conversion of a file transfer would have changed.
    if fields.slice(73, 4)? != b"\n \r\n" {
        return Err(broken("its line ends were converted on the way").next("transfer it as a binary file", None));
    }
    if fields.le16(77)? > 1 {
        return Err(unsupported("it uses a compression that is not known here"));
    }
    Ok((capacity, (offset, size)))
}

/// The grain directory must lie within the file.
fn directory(part: &Part<'_>, bytes: &[u8]) -> Result<()> {
    let fields = Fields(bytes);
    let entries = fields.le64(12)?.div_ceil(fields.le64(20)?.max(1).saturating_mul(512));
    if entries > MAX_L1_ENTRIES {
        return Err(broken(format!("its grain directory has {entries} entries")));
    }
    let at = fields.le64(56)?.checked_mul(SECTOR);
    if at.and_then(|at| at.checked_add(entries * 4)).is_none_or(|end| end > part.length()) {
        return Err(broken("its grain directory is after the end of the file")
            .next("upload the whole file; this one seems to be cut off", None));
    }
    Ok(())
}

/// The descriptor must describe this one file.
fn describe(bytes: &[u8], capacity: u64) -> Result<()> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = bytes.get(..end).and_then(|bytes| str::from_utf8(bytes).ok());
    let text = text.ok_or_else(|| broken("its descriptor is not text"))?;
    if !text.starts_with("# Disk DescriptorFile") {
        return Err(broken("its descriptor does not begin as one"));
    }
    let (mut kind, mut extents) = (None, 0);
    // QEMU and VMware differ in what ends a line, so both kinds do.
    for line in text.split(['\n', '\r']).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let access = line.split_ascii_whitespace().next().unwrap_or_default();
        if ["RW", "RDONLY", "NOACCESS"].iter().any(|word| access.eq_ignore_ascii_case(word)) {
            extent(line, capacity)?;
            extents += 1;
            continue;
        }
        let (key, value) = line.split_once('=').map_or((line, ""), |(key, value)| (key.trim(), value.trim()));
        let value = value.trim_matches('"');
        match key.to_ascii_lowercase().as_str() {
            "createtype" if kind.is_some() => return Err(refused("its descriptor says twice what it is")),
            "createtype" => kind = Some(value.to_owned()),
            "parentcid" if !value.eq_ignore_ascii_case("ffffffff") => return Err(refused("it has a parent")),
            "parentfilenamehint" => return Err(refused("it names a parent file")),
            "changetrackpath" => return Err(refused("it names another file, for tracking changes")),
            _ => {}
        }
    }
    match kind.as_deref() {
        Some("monolithicSparse" | "streamOptimized") => {}
        other => {
            let other = other.unwrap_or("without a type");
            return Err(refused(format!("it is {other}; monolithicSparse and streamOptimized are accepted"))
                .next("convert it first: qemu-img convert -O qcow2 FILE.vmdk FILE.qcow2", None));
        }
    }
    if extents == 1 {
        Ok(())
    } else {
        Err(refused(format!("its descriptor names {extents} files of data; one is accepted")))
    }
}

/// One line that names a file of data: `RW 2097152 SPARSE "disk.vmdk"`.
fn extent(line: &str, capacity: u64) -> Result<()> {
    let mut words = line.splitn(4, ' ');
    let (_, sectors, kind, name) = (words.next(), words.next(), words.next(), words.next());
    if kind != Some("SPARSE") {
        return Err(refused(format!("its data is {}; SPARSE is accepted", kind.unwrap_or("nowhere"))));
    }
    if sectors.and_then(|sectors| sectors.parse().ok()) != Some(capacity) {
        return Err(refused("its descriptor and its header differ in size"));
    }
    let name = name.and_then(|name| name.strip_prefix('"')).and_then(|name| name.strip_suffix('"'));
    let name = name.ok_or_else(|| refused("its descriptor is not understood"))?;
    if name.is_empty() || name.contains(['/', '\\', ':', '"']) || name.starts_with('.') {
        return Err(refused("its descriptor names a file outside of it"));
    }
    Ok(())
}
