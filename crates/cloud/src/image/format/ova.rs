//! Virtual appliances in one file (DMTF DSP0243, Open Virtualization Format): a tar archive of a description (`.ovf`),
//! optionally the checksums of what is in it (`.mf`) and their signature, and disks. Taken are those with one disk, in
//! vmdk, and nothing outside of the archive.

use std::collections::BTreeSet;

use nephos_types::Result;
use quick_xml::{Reader, events::Event};

use super::{broken, refused, source::Part, tar::Entry, unsupported, vmdk};

/// The longest description and manifest.
const MAX_DESCRIPTION: u64 = 4 << 20;
/// The most files of an appliance.
const MAX_FILES: usize = 64;
/// Ends of the names of disks.
const DISKS: &[&str] = &[".vmdk", ".vhd", ".vhdx", ".vdi", ".img", ".raw", ".qcow2", ".iso", ".gz"];

/// What an appliance holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// Where its disk begins in the archive.
    pub disk_at: u64,
    /// How long it is.
    pub disk_size: u64,
    /// The size of the disk that a server sees.
    pub virtual_size: u64,
    /// Checksums that its manifest states, for whoever reads all of it.
    pub checksums: Vec<Checksum>,
}

/// What the manifest says of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The file's name, for messages.
    pub name: String,
    /// Where it begins in the archive.
    pub at: u64,
    /// How long it is.
    pub size: u64,
    /// How it is computed.
    pub algorithm: &'static ring::digest::Algorithm,
    /// The sum, in lower-case hexadecimal.
    pub sum: String,
}

/// Whether an archive's first entry says that it is one.
pub(super) fn is_one(entries: &[Entry]) -> bool {
    entries.first().is_some_and(|entry| has_end(&entry.name, ".ovf"))
}

fn has_end(name: &str, end: &str) -> bool {
    name.len() >= end.len() && name.get(name.len() - end.len()..).is_some_and(|last| last.eq_ignore_ascii_case(end))
}

/// Checks an archive whose entries these are.
pub(super) fn check(part: &mut Part<'_>, entries: &[Entry], complete: bool) -> Result<Appliance> {
    if !complete || entries.len() > MAX_FILES {
        return Err(refused(format!("it has more than {MAX_FILES} files")));
    }
    let mut names = BTreeSet::new();
    for entry in entries {
        if !entry.is_file() || entry.name.is_empty() || entry.name.contains(['/', '\\']) || entry.name.starts_with('.')
        {
            return Err(refused("it has something else in it than plain files beside each other"));
        }
        if !names.insert(&*entry.name) {
            return Err(refused("it has two files of one name"));
        }
    }
    let disks: Vec<&Entry> = entries.iter().filter(|entry| DISKS.iter().any(|end| has_end(&entry.name, end))).collect();
    let [disk] = disks[..] else {
        return Err(unsupported(format!("it has {} disks; appliances with one are accepted", disks.len()))
            .next("unpack it (tar -xf FILE), and upload its disks one by one", None));
    };
    let description = entries.first().ok_or_else(|| broken("it is empty"))?;
    if entries.iter().filter(|entry| has_end(&entry.name, ".ovf")).count() > 1 {
        return Err(refused("it has two descriptions"));
    }
    let text = read(part, description)?;
    for file in references(&text)? {
        if !names.contains(&*file) {
            return Err(refused("its description names a file that is not in it"));
        }
    }
    let mut inner = part.part(disk.at, disk.size).ok_or_else(super::source::cut_off)?;
    let beginning = inner.up_to(0, vmdk::MAGIC.len())?;
    if beginning != vmdk::MAGIC {
        return Err(refused("its disk is not a vmdk with its description inside"));
    }
    let virtual_size = vmdk::check(&mut inner)?;
    let mut checksums = vec![];
    for manifest in entries.iter().filter(|entry| has_end(&entry.name, ".mf")) {
        checksums.extend(sums(&read(part, manifest)?, entries)?);
    }
    Ok(Appliance { disk_at: disk.at, disk_size: disk.size, virtual_size, checksums })
}

fn read(part: &mut Part<'_>, entry: &Entry) -> Result<String> {
    if entry.size > MAX_DESCRIPTION {
        return Err(broken(format!("its {} is too large", entry.name)));
    }
    let bytes = part.bytes(entry.at, usize::try_from(entry.size).unwrap_or(usize::MAX))?;
    String::from_utf8(bytes).map_err(|_| broken(format!("its {} is not text", entry.name)))
}

/// The files that a description refers to: `<References><File ovf:href="…"/></References>`.
fn references(description: &str) -> Result<Vec<String>> {
    let unsound = |error: &dyn std::fmt::Display| broken(format!("its description is not sound: {error}"));
    let mut reader = Reader::from_str(description);
    let mut files = vec![];
    loop {
        match reader.read_event().map_err(|error| unsound(&error))? {
            Event::Start(element) | Event::Empty(element) if element.local_name().as_ref() == "File" => {
                for attribute in element.attributes() {
                    let attribute = attribute.map_err(|error| unsound(&error))?;
                    if attribute.key.local_name().as_ref() == "href" {
                        files.push(attribute.value.into_owned());
                    }
                }
            }
            Event::DocType(_) => return Err(refused("its description defines entities")),
            Event::Eof => return Ok(files),
            _ => {}
        }
    }
}

/// The lines of a manifest: `SHA256(disk.vmdk)= 0123…`.
fn sums(manifest: &str, entries: &[Entry]) -> Result<Vec<Checksum>> {
    let mut found = vec![];
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let parts = line.split_once('(').and_then(|(algorithm, rest)| {
            let (name, sum) = rest.rsplit_once(')')?;
            Some((algorithm.trim(), name.trim(), sum.trim().strip_prefix('=')?.trim()))
        });
        let (algorithm, name, sum) = parts.ok_or_else(|| broken("its manifest is not understood"))?;
        let algorithm = match algorithm.to_ascii_uppercase().as_str() {
            "SHA1" => &ring::digest::SHA1_FOR_LEGACY_USE_ONLY,
            "SHA256" => &ring::digest::SHA256,
            "SHA384" => &ring::digest::SHA384,
            "SHA512" => &ring::digest::SHA512,
            _ => return Err(unsupported("its manifest has checksums of an unknown kind")),
        };
        let entry = entries.iter().find(|entry| entry.name == name);
        let entry = entry.ok_or_else(|| refused("its manifest names a file that is not in it"))?;
        found.push(Checksum {
            name: entry.name.clone(),
            at: entry.at,
            size: entry.size,
            algorithm,
            sum: sum.to_ascii_lowercase(),
        });
        if found.len() > MAX_FILES {
            return Err(broken("its manifest is too long"));
        }
    }
    Ok(found)
}
