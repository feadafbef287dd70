//! Where files are put together: those of uploads and imports, until they are complete, judged and published.
//!
//! A file of parts survives the process: what was acknowledged of it is on disk. Whatever no record names is swept away.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures_util::StreamExt;
use nephos_ops::ByteStream;
use nephos_types::{Error, ErrorKind, Result};
use tokio::sync::{mpsc, oneshot};

use super::{
    files::{FileName, failure, names_in},
    inspect::{Inspector, too_large},
    kind::Content,
};

/// Begins the names of files that one request writes.
const UNFINISHED: &str = ".upload-";
/// Chunks that may wait for the disk.
const CHUNKS_AHEAD: usize = 4;
/// Zeros in runs of this many bytes are not written.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What the writing thread is told.
enum Piece {
    Bytes(Bytes),
    /// The body is complete.
    End,
}

/// A folder of files that are not complete yet.
pub struct Spool {
    folder: PathBuf,
}

impl Spool {
    /// Opens (and makes) a folder that other processes may be writing to.
    pub fn join(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|error| failure("The folder of images cannot be used", &folder, error))?;
        Ok(Self { folder })
    }

    /// Opens (and makes) the folder, and removes what requests left there that a crash ended.
    pub fn open(folder: PathBuf) -> Result<Self> {
        let failed = |error| failure("The folder of images cannot be used", &folder, error);
        fs::create_dir_all(&folder).map_err(failed)?;
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(Self { folder })
    }

    /// Where a file is.
    #[must_use]
    pub fn path(&self, name: &FileName) -> PathBuf {
        self.folder.join(name.to_string())
    }

    /// All files.
    pub async fn list(&self) -> Result<Vec<FileName>> {
        names_in(&self.folder).await
    }

    /// Makes a file, empty, instead of one that may be there.
    pub fn create(&self, name: &FileName) -> Result<File> {
        let failed = |error| failure("The image cannot be written", &self.folder, error);
        let path = self.path(name);
        // A program that still writes into the old one does so where nobody reads.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
        File::open(&self.folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        Ok(file)
    }

    /// How long a file is; an error if it is not here.
    pub fn length(&self, name: &FileName) -> Result<u64> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(about) => Ok(about.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Error::conflict("upload_lost", "What was uploaded is not here any more")
                    .detail("another process of the control plane, with a folder of its own, has it, or it was removed")
                    .next("give it up, and upload again", Some(format!("nephos image upload-cancel {}", name.image()))))
            }
            Err(error) => Err(failure("An image's file cannot be read", &path, error)),
        }
    }

    /// Removes a file; nothing happens if there is none.
    pub async fn remove(&self, name: &FileName) -> Result<()> {
        let path = self.path(name);
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failure("An image's file cannot be removed", &path, error))
            }
            _ => Ok(()),
        }
    }

    /// Writes a file from a stream, as a whole. Dropping the future leaves nothing behind, or the whole file.
    pub async fn receive(&self, name: FileName, body: ByteStream, inspector: Inspector) -> Result<Content> {
        let folder = self.folder.clone();
        through(body, move |pieces| write_whole(&folder, name, inspector, pieces)).await
    }

    /// Writes the next part of a file, from `offset`, which must be where the file ends; the whole has at most `most`
    /// bytes. Answers where the file ends then. Of a part that breaks off, what came is kept.
    pub async fn append(&self, name: &FileName, offset: u64, body: ByteStream, most: u64) -> Result<u64> {
        let length = self.length(name)?;
        let path = self.path(name);
        through(body, move |pieces| write_part(&path, offset, length, most, pieces)).await
    }
}

/// Hands a body to a thread that writes it: hashing and writing block.
async fn through<T: Send + 'static>(
    mut body: ByteStream,
    write: impl FnOnce(mpsc::Receiver<Piece>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (pieces, waiting) = mpsc::channel(CHUNKS_AHEAD);
    let (answer, written) = oneshot::channel();
    tokio::task::spawn_blocking(move || {
        let _ = answer.send(write(waiting));
    });
    loop {
        let chunk = tokio::select! {
            biased;
            // The writer has given up; its answer says why. The rest of the body is not waited for.
            () = pieces.closed() => break,
            chunk = body.next() => chunk,
        };
        let Some(chunk) = chunk else { break };
        let _ = pieces.send(Piece::Bytes(chunk.map_err(broken_off)?)).await;
    }
    let _ = pieces.send(Piece::End).await;
    written.await.map_err(|error| Error::internal("An upload's writer ended", error))?
}

/// Writes what comes, until the end or until nobody waits any more.
fn write_whole(
    folder: &Path,
    name: FileName,
    mut inspector: Inspector,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Content> {
    let failed = |error| failure("The image cannot be written", folder, error);
    // Removes itself when dropped.
    let mut file = tempfile::Builder::new().prefix(UNFINISHED).rand_bytes(12).tempfile_in(folder).map_err(failed)?;
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(chunk)) => {
                inspector.chunk(&chunk)?;
                write_sparse(file.as_file_mut(), &chunk).map_err(failed)?;
            }
            Some(Piece::End) => break,
            None => return Err(broken_off(io::ErrorKind::ConnectionAborted.into())),
        }
    }
    // A hole at the end is not there yet.
    file.as_file_mut().set_len(inspector.size()).map_err(failed)?;
    let content = inspector.end(name, file.as_file())?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(folder.join(content.file.to_string())).map_err(|error| failed(error.error))?;
    Ok(content)
}

fn write_part(path: &Path, offset: u64, length: u64, most: u64, mut pieces: mpsc::Receiver<Piece>) -> Result<u64> {
    let failed = |error| failure("The image cannot be written", path, error);
    let mut file = OpenOptions::new().write(true).open(path).map_err(failed)?;
    if file.try_lock().is_err() {
        return Err(Error::new(ErrorKind::Unavailable, "upload_part_goes_on", "Another part is being written")
            .detail("parts come one after the other")
            .next("wait a moment, and ask for the offset: nephos image upload-show", None));
    }
    let length = file.metadata().map_or(length, |about| about.len());
    if offset != length {
        return Err(Error::conflict("upload_offset_wrong", "The upload stands elsewhere")
            .detail(format!("it has {length} bytes, so that is where the next part begins, not {offset}")));
    }
    file.seek(SeekFrom::Start(offset)).map_err(failed)?;
    let mut end = offset;
    let outcome = loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(chunk)) => {
                let after = end.saturating_add(chunk.len() as u64);
                if after > most {
                    break Err(too_large(most));
                }
                if let Err(error) = write_sparse(&mut file, &chunk) {
                    break Err(failed(error));
                }
                end = after;
            }
            Some(Piece::End) => break Ok(()),
            None => break Err(broken_off(io::ErrorKind::ConnectionAborted.into())),
        }
    };
    // A hole at the end is not there yet, and half a chunk may be.
    file.set_len(end).and_then(|()| file.sync_all()).map_err(failed)?;
    outcome.map(|()| end)
}

/// Writes a chunk, but leaves holes where it has blocks of zeros: an empty disk of a terabyte takes no room.
pub(super) fn write_sparse(file: &mut File, chunk: &[u8]) -> io::Result<()> {
    let is_hole = |block: &&[u8]| *block == ZEROS;
    let mut rest = chunk;
    while !rest.is_empty() {
        let blocks = || rest.chunks(BLOCK);
        let hole: usize = blocks().take_while(is_hole).map(<[u8]>::len).sum();
        if hole > 0 {
            file.seek(SeekFrom::Current(i64::try_from(hole).map_err(io::Error::other)?))?;
            rest = rest.get(hole..).unwrap_or_default();
            continue;
        }
        let data: usize = blocks().take_while(|block| !is_hole(block)).map(<[u8]>::len).sum();
        let (data, after) = rest.split_at(data);
        file.write_all(data)?;
        rest = after;
    }
    Ok(())
}

/// The body ended before its end.
fn broken_off(error: io::Error) -> Error {
    Error::invalid("upload_broken_off", "The upload broke off")
        .detail("not all of the body arrived")
        .next("upload again", None)
        .source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_kept_and_everything_else_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let mut content = vec![0; 10 * BLOCK + 7];
        content[3 * BLOCK + 5] = 1;
        content[9 * BLOCK] = 2;
        let mut file = File::create(&path).unwrap();
        for chunk in content.chunks(BLOCK * 2 + 100) {
            write_sparse(&mut file, chunk).unwrap();
        }
        file.set_len(content.len() as u64).unwrap();
        assert_eq!(fs::read(&path).unwrap(), content);
    }
}
