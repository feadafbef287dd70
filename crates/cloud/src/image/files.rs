//! Where images' bytes are kept: a trait, and files in a folder.
//!
//! A file is written once, under a name that is never used again; it appears whole or not at all. Which files are in
//! use is written in the database; see [`super::sweep`].

use std::{
    fmt,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nephos_ops::ByteStream;
use nephos_types::{Error, ErrorKind, ImageId, Result};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{mpsc, oneshot},
};

use super::{inspect::Inspector, kind::Content};
use crate::core::BoxFuture;

/// The name of an image's file: the image's id, and a part of its own for each upload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct FileName {
    image: ImageId,
    upload: u64,
}

impl FileName {
    /// A name that no file has.
    #[must_use]
    pub fn new(image: ImageId) -> Self {
        Self { image, upload: nephos_types::Id::bits(ImageId::new()) }
    }

    /// The image that the file is of.
    #[must_use]
    pub fn image(&self) -> ImageId {
        self.image
    }
}

impl fmt::Display for FileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}", self.image, self.upload)
    }
}

impl From<FileName> for String {
    fn from(name: FileName) -> Self {
        name.to_string()
    }
}

impl FromStr for FileName {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let refused = || Error::bug(format!("`{text}` is not the name of an image's file"));
        let (image, upload) = text.split_once('.').ok_or_else(refused)?;
        let name = Self { image: image.parse()?, upload: u64::from_str_radix(upload, 16).map_err(|_| refused())? };
        if name.to_string() == text { Ok(name) } else { Err(refused()) }
    }
}

impl TryFrom<String> for FileName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// Keeps the bytes of images.
pub trait ImageStore: Send + Sync + 'static {
    /// Writes a file from a stream; shows each byte to the inspector, and keeps nothing if that (or the stream) refuses.
    /// When this answers `Ok`, the file is there for good. Dropping the future leaves nothing behind, or the whole file.
    fn put(&self, name: FileName, body: ByteStream, inspector: Inspector) -> BoxFuture<'_, Result<Content>>;

    /// Reads a part of a file, which must lie within it.
    fn get<'a>(&'a self, name: &'a FileName, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>>;

    /// Removes a file; nothing happens if there is none.
    fn remove<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>>;

    /// All files.
    fn list(&self) -> BoxFuture<'_, Result<Vec<FileName>>>;

    /// The file's path, where this process can read it in place.
    fn path(&self, name: &FileName) -> Option<PathBuf>;
}

/// Begins the names of files that are still being written.
const UNFINISHED: &str = ".upload-";
/// Chunks that may wait for the disk.
const CHUNKS_AHEAD: usize = 4;
/// Zeros in runs of this many bytes are not written.
const BLOCK: usize = 4096;
const ZEROS: [u8; BLOCK] = [0; BLOCK];
/// Bytes read at a time.
const READ: usize = 256 << 10;

/// Images as files in a folder.
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Opens (and makes) a folder that other processes may be writing to.
    pub fn join(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        fs::create_dir_all(&path).map_err(|error| failure("The folder of images cannot be used", &path, error))?;
        Ok(Self { path })
    }

    /// Opens (and makes) the folder, and removes what uploads left there that a crash ended.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let failed = |error| failure("The folder of images cannot be used", &path, error);
        fs::create_dir_all(&path).map_err(failed)?;
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(Self { path })
    }

    fn file(&self, name: &FileName) -> PathBuf {
        self.path.join(name.to_string())
    }
}

/// What the writing thread is told.
enum Piece {
    Bytes(Bytes),
    /// The body is complete. Without this the file is not kept.
    End,
}

impl ImageStore for Folder {
    fn put(&self, name: FileName, mut body: ByteStream, inspector: Inspector) -> BoxFuture<'_, Result<Content>> {
        Box::pin(async move {
            let (pieces, waiting) = mpsc::channel(CHUNKS_AHEAD);
            let (answer, written) = oneshot::channel();
            let folder = self.path.clone();
            // Hashing and writing block; a thread of their own keeps them off the runtime's.
            tokio::task::spawn_blocking(move || {
                let _ = answer.send(write(&folder, name, inspector, waiting));
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
        })
    }

    fn get<'a>(&'a self, name: &'a FileName, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            let path = self.file(name);
            let failed = |error| failure("An image's file cannot be read", &path, error);
            let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
            file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
            let left = range.end.saturating_sub(range.start);
            let body = stream::try_unfold((file, left), |(mut file, left)| async move {
                if left == 0 {
                    return Ok(None);
                }
                let mut buffer = bytes::BytesMut::with_capacity(READ.min(usize::try_from(left).unwrap_or(READ)));
                let read = (&mut file).take(left).read_buf(&mut buffer).await?;
                if read == 0 {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the image's file is shorter than it was",
                    ));
                }
                Ok(Some((buffer.freeze(), (file, left - read as u64))))
            });
            Ok(Box::pin(body) as ByteStream)
        })
    }

    fn remove<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let path = self.file(name);
            match tokio::fs::remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    Err(failure("An image's file cannot be removed", &path, error))
                }
                _ => Ok(()),
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<FileName>>> {
        Box::pin(async move {
            let failed = |error| failure("The folder of images cannot be read", &self.path, error);
            let mut entries = tokio::fs::read_dir(&self.path).await.map_err(failed)?;
            let mut names = vec![];
            while let Some(entry) = entries.next_entry().await.map_err(failed)? {
                // What is not ours stays.
                names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
            }
            Ok(names)
        })
    }

    fn path(&self, name: &FileName) -> Option<PathBuf> {
        Some(self.file(name))
    }
}

/// Writes what comes, until the end or until nobody waits any more.
fn write(
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
    let path = folder.join(content.file.to_string());
    file.as_file().sync_all().map_err(failed)?;
    file.persist_noclobber(&path).map_err(|error| failed(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(content)
}

/// Writes a chunk, but leaves holes where it has blocks of zeros: an empty disk of a terabyte takes no room.
fn write_sparse(file: &mut File, chunk: &[u8]) -> io::Result<()> {
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

/// A failure of the disk: what the caller can do about it, and the rest for the log.
fn failure(title: &'static str, path: &Path, error: io::Error) -> Error {
    if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
        return Error::new(ErrorKind::Capacity, "image_store_full", "There is no room for the image")
            .detail("the disk that holds images is full")
            .next("delete images that are no longer needed, or ask an operator for more room", None)
            .source(error);
    }
    tracing::error!(path = %path.display(), error = %error, "{title}");
    Error::internal(title, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_nothing_else_is_one() {
        let name = FileName::new(ImageId::new());
        assert_eq!(name.to_string().parse::<FileName>().unwrap(), name);
        for other in ["", "img-1", "img-0000000000000.1", ".upload-x", "../x.1", "img-0000000000000.00000000000000001"]
        {
            assert!(other.parse::<FileName>().is_err(), "{other}");
        }
    }

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
