//! Tar archives (POSIX.1-1988 ustar with GNU's and pax's additions): root file systems, OCI layouts, and what `ova` is
//! packed in. Only headers are read, and few of them.

use std::io::Read;

use nephos_types::Result;

use super::{
    HEAD, broken, refused,
    source::{Fields, Part},
    unsupported,
};

pub(super) const BLOCK: usize = 512;
/// The most entries that are looked at.
const MAX_ENTRIES: usize = 4096;
/// The most bytes of a long name or of pax attributes.
const MAX_ATTRIBUTES: u64 = 64 << 10;
/// The most bytes of the files that say what an OCI layout holds.
const MAX_INDEX: u64 = 1 << 20;
/// Window sizes of zstd above this are refused rather than allocated.
const MAX_WINDOW: u64 = 128 << 20;

/// One entry.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// The type flag; files have `0`.
    pub(super) kind: u8,
    /// Where its content is.
    pub(super) at: u64,
    pub(super) size: u64,
}

impl Entry {
    /// Whether it is a plain file.
    pub(super) fn is_file(&self) -> bool {
        matches!(self.kind, b'0' | 0)
    }
}

/// A header that is one: right magic, right checksum.
pub(super) fn is_header(block: &[u8]) -> bool {
    let Some(block) = block.first_chunk::<BLOCK>() else { return false };
    let sum = block.iter().enumerate().map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) });
    block[257..262] == *b"ustar" && number(&block[148..156]).is_some_and(|stated| stated == sum.sum::<u64>())
}

/// A number as octal digits, or (GNU) as a big-endian integer whose first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if let [first, rest @ ..] = field
        && first & 0x80 != 0
    {
        let start = u64::from(first & 0x7f);
        return rest.iter().try_fold(start, |value, byte| value.checked_mul(256)?.checked_add(u64::from(*byte)));
    }
    let text = str::from_utf8(field).ok()?.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn text(field: &[u8]) -> Result<String> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let field = field.get(..end).unwrap_or_default();
    Ok(str::from_utf8(field).map_err(|_| broken("a file in it has a name that is not text"))?.to_owned())
}

/// The archive's first entries, at most [`MAX_ENTRIES`], and whether these are all.
pub(super) fn entries(part: &mut Part<'_>) -> Result<(Vec<Entry>, bool)> {
    let mut found: Vec<Entry> = vec![];
    let (mut at, mut next) = (0, Attributes::default());
    while found.len() < MAX_ENTRIES {
        if at == part.length() && !found.is_empty() {
            // Some writers leave out the blocks of zeros at the end.
            return Ok((found, true));
        }
        let header = part.bytes(at, BLOCK)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok((found, true));
        }
        if !is_header(&header) {
            return Err(broken("it is not a sound archive"));
        }
        let fields = Fields(&header);
        let kind = *header.get(156).unwrap_or(&0);
        let stated = number(fields.slice(124, 12)?).ok_or_else(|| broken("it is not a sound archive"))?;
        let size = if matches!(kind, b'L' | b'K' | b'x' | b'g') { stated } else { next.size.take().unwrap_or(stated) };
        let content = at + BLOCK as u64;
        let end = size.checked_next_multiple_of(BLOCK as u64).and_then(|size| content.checked_add(size));
        let end = end.filter(|_| size <= part.length() - content).ok_or_else(super::source::cut_off)?;
        match kind {
            b'L' | b'x' if size > MAX_ATTRIBUTES => return Err(broken("a file in it has too long a name")),
            b'L' => next.path = Some(text(&part.bytes(content, usize::try_from(size).unwrap_or(usize::MAX))?)?),
            b'x' => next = attributes(&part.bytes(content, usize::try_from(size).unwrap_or(usize::MAX))?)?,
            // A long target of a link, attributes of all entries.
            b'K' | b'g' => {}
            _ => {
                let name = match next.path.take() {
                    Some(name) => name,
                    None => {
                        let prefix = text(fields.slice(345, 155)?)?;
                        let name = text(fields.slice(0, 100)?)?;
                        // GNU's own form has times where POSIX has the prefix.
                        let posix = fields.slice(257, 6)? == b"ustar\0";
                        if posix && !prefix.is_empty() { format!("{prefix}/{name}") } else { name }
                    }
                };
                if name.split('/').any(|folder| folder == "..") {
                    return Err(refused("a file in it has a path that leads out of it"));
                }
                found.push(Entry { name: name.trim_start_matches("./").to_owned(), kind, at: content, size });
            }
        }
        if end > part.length() {
            return Err(super::source::cut_off());
        }
        at = end;
    }
    Ok((found, false))
}

/// What pax attributes (lines of `LENGTH KEY=VALUE`) say of the next entry.
#[derive(Default)]
struct Attributes {
    path: Option<String>,
    size: Option<u64>,
}

fn attributes(lines: &[u8]) -> Result<Attributes> {
    let unsound = || broken("it is not a sound archive");
    let (mut rest, mut found) = (lines, Attributes::default());
    while !rest.is_empty() {
        let space = rest.iter().take(20).position(|byte| *byte == b' ').ok_or_else(unsound)?;
        let length = rest.get(..space).and_then(|digits| str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let record = length.and_then(|length| rest.get(space + 1..length)).ok_or_else(unsound)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            found.path = Some(text(value.strip_suffix(b"\n").unwrap_or(value))?);
        } else if let Some(value) = record.strip_prefix(b"size=") {
            let value = text(value.strip_suffix(b"\n").unwrap_or(value))?;
            found.size = Some(value.parse().map_err(|_| unsound())?);
        }
        rest = length.and_then(|length| rest.get(length..)).unwrap_or_default();
    }
    Ok(found)
}

/// Whether an archive's entries say that it is an OCI layout; an error if it is a broken one.
pub(super) fn is_oci(part: &mut Part<'_>, entries: &[Entry]) -> Result<bool> {
    let file = |name: &str| entries.iter().find(|entry| entry.is_file() && entry.name == name);
    let (Some(layout), index) = (file("oci-layout"), file("index.json")) else { return Ok(false) };
    let index = index.ok_or_else(|| broken("it is an OCI layout without index.json"))?;
    let mut json = |entry: &Entry| -> Result<serde_json::Value> {
        if entry.size > MAX_INDEX {
            return Err(broken(format!("its {} is too large", entry.name)));
        }
        let bytes = part.bytes(entry.at, usize::try_from(entry.size).unwrap_or(usize::MAX))?;
        serde_json::from_slice(&bytes).map_err(|error| broken(format!("its {} is not JSON: {error}", entry.name)))
    };
    let version = json(layout)?;
    if !version["imageLayoutVersion"].as_str().is_some_and(|version| version.starts_with("1.")) {
        return Err(unsupported("it is an OCI layout of an unknown version"));
    }
    if json(index)?["manifests"].as_array().is_none_or(Vec::is_empty) {
        return Err(broken("it is an OCI layout without an image"));
    }
    Ok(true)
}

/// How an archive is compressed.
#[derive(Clone, Copy)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

/// The first bytes of what is compressed in these, at most [`BLOCK`]; none if that cannot be found out.
pub(super) fn unpacked(head: &[u8], compression: Compression) -> Vec<u8> {
    let head = head.get(..HEAD).unwrap_or(head);
    let mut bytes = vec![];
    // The head ends in the middle of the stream, which is no failure here.
    let _ = match compression {
        Compression::Gzip => flate2::read::MultiGzDecoder::new(head).take(BLOCK as u64).read_to_end(&mut bytes),
        Compression::Zstd => match ruzstd::decoding::StreamingDecoder::new(head) {
            Ok(decoder) => decoder.take(BLOCK as u64).read_to_end(&mut bytes),
            Err(_) => Ok(0),
        },
    };
    bytes
}

/// The window that a zstd frame asks a reader to hold (RFC 8878, 3.1.1.1), if it is too large.
pub(super) fn check_window(head: &[u8]) -> Result<()> {
    let descriptor = *head.get(4).ok_or_else(super::source::cut_off)?;
    let single_segment = descriptor & 0x20 != 0;
    let window = if single_segment {
        let size = match descriptor >> 6 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let after = 5 + [0, 1, 2, 4][usize::from(descriptor & 3)];
        let bytes = head.get(after..after + size).ok_or_else(super::source::cut_off)?;
        bytes.iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    } else {
        let byte = *head.get(5).ok_or_else(super::source::cut_off)?;
        let base = 1_u64 << (10 + (byte >> 3));
        base + base / 8 * u64::from(byte & 7)
    };
    if window > MAX_WINDOW {
        return Err(unsupported("it is compressed in a way that takes too much memory to unpack")
            .next("compress it with zstd -19 or less, without --long", None));
    }
    Ok(())
}
