//! What is on a simulated disk: a few files, and the form in which a snapshot keeps them.

use std::{collections::BTreeMap, fs, io, path::Path};

use nephos_types::Bytes;
use serde::{Deserialize, Serialize};

/// The most that one disk holds.
const MOST: usize = 16 << 20;
/// How a snapshot's file begins.
const MAGIC: &[u8] = b"{\"simulated_disk\":";

/// Files by path.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(BTreeMap<String, Vec<u8>>);

#[derive(Serialize, Deserialize)]
struct Stored {
    simulated_disk: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// What is on a disk that is made from this image. Only snapshots of simulated guests mean anything to them.
    pub(super) fn of_image(image: &Path) -> Self {
        let stored = fs::read(image).ok().filter(|bytes| bytes.starts_with(MAGIC));
        let stored = stored.and_then(|bytes| serde_json::from_slice::<Stored>(&bytes).ok());
        Self(stored.map(|stored| stored.simulated_disk).unwrap_or_default())
    }

    pub(super) fn read(&self, path: &str) -> Option<&[u8]> {
        self.0.get(path).map(Vec::as_slice)
    }

    /// Nothing happens, and `false` is said, if there is no room.
    pub(super) fn write(&mut self, path: &str, content: Vec<u8>) -> bool {
        let others = self.0.iter().filter(|(other, _)| *other != path);
        let size: usize = others.map(|(path, content)| path.len() + content.len()).sum();
        let fits = size + path.len() + content.len() <= MOST;
        if fits {
            self.0.insert(path.to_owned(), content);
        }
        fits
    }

    pub(super) fn size(&self) -> Bytes {
        Bytes(self.0.values().map(|content| content.len() as u64).sum())
    }

    /// Writes the file of a snapshot, whole or not at all.
    pub(super) fn save(&self, file: &Path) -> io::Result<()> {
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec(&Stored { simulated_disk: self.0.clone() })?)?;
        fs::rename(&fresh, file)
    }
}
