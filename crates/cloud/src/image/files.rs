//! Where images' bytes are kept: a trait, and files in a folder.
//!
//! What comes in is put together in the [`Spool`], judged there, and then published: written once, under a name that is
//! never used again, so that it appears whole or not at all. Which files are in use is written in the database; see
//! [`super::sweep`].

use std::{
    fmt,
    fs::{self, File},
    io::{self, SeekFrom},
    ops::Range,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use futures_util::stream;
use nephos_ops::ByteStream;
use nephos_types::{Error, ErrorKind, ImageId, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{inspect::Inspector, kind::Content, spool::Spool};
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
    /// Where files are put together before they are published.
    fn spool(&self) -> &Spool;

    /// Takes a file out of the spool. When this answers `Ok`, it is there for good; also if that was so already.
    fn publish<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>>;

    /// Writes a file from a stream; shows each byte to the inspector, and keeps nothing if that (or the stream) refuses.
    /// When this answers `Ok`, the file is there for good. Dropping the future leaves nothing behind, or the whole file.
    fn put(&self, name: FileName, body: ByteStream, inspector: Inspector) -> BoxFuture<'_, Result<Content>> {
        Box::pin(async move {
            let content = self.spool().receive(name, body, inspector).await?;
            self.publish(&content.file).await?;
            Ok(content)
        })
    }

    /// Reads a part of a file, which must lie within it.
    fn get<'a>(&'a self, name: &'a FileName, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>>;

    /// Whether it has a file, whole.
    fn holds<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<bool>>;

    /// Removes a file; nothing happens if there is none.
    fn remove<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>>;

    /// All files.
    fn list(&self) -> BoxFuture<'_, Result<Vec<FileName>>>;

    /// The file's path, where this process can read it in place.
    fn path(&self, name: &FileName) -> Option<PathBuf>;
}

/// Bytes read at a time.
const READ: usize = 256 << 10;

/// Images as files in a folder.
pub struct Folder {
    path: PathBuf,
    spool: Spool,
}

/// The spool's folder in that of the images.
pub(super) const INCOMING: &str = "incoming";

impl Folder {
    /// Opens (and makes) a folder that other processes may be writing to.
    pub fn join(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let spool = Spool::join(path.join(INCOMING))?;
        Ok(Self { path, spool })
    }

    /// Opens (and makes) the folder and its spool, and removes what uploads left there that a crash ended.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let spool = Spool::open(path.join(INCOMING))?;
        Ok(Self { path, spool })
    }

    /// A second folder that takes files out of somebody else's spool.
    #[cfg(test)]
    pub(super) fn beside(path: PathBuf, spool: Spool) -> Self {
        fs::create_dir_all(&path).unwrap();
        Self { path, spool }
    }

    fn file(&self, name: &FileName) -> PathBuf {
        self.path.join(name.to_string())
    }
}

/// Moves a file into its place, durably. Where it was handed to somebody else meanwhile, it is taken back.
fn publish(from: &Path, to: &Path) -> io::Result<()> {
    let file = match File::open(from) {
        Ok(file) => file,
        // Moved already, before a crash.
        Err(error) if error.kind() == io::ErrorKind::NotFound && to.exists() => return Ok(()),
        Err(error) => return Err(error),
    };
    std::os::unix::fs::fchown(&file, Some(rustix::process::geteuid().as_raw()), None)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.sync_all()?;
    fs::rename(from, to)?;
    for folder in [to.parent(), from.parent()].into_iter().flatten() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

impl ImageStore for Folder {
    fn spool(&self) -> &Spool {
        &self.spool
    }

    fn publish<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let (from, to) = (self.spool.path(name), self.file(name));
            let failed = |error| failure("The image cannot be written", &self.path, error);
            tokio::task::spawn_blocking(move || publish(&from, &to))
                .await
                .map_err(|error| Error::internal("An image was not published", error))?
                .map_err(failed)
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

    fn holds<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let path = self.file(name);
            let exists = tokio::fs::try_exists(&path).await;
            exists.map_err(|error| failure("An image's file cannot be read", &path, error))
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
        Box::pin(async move { names_in(&self.path).await })
    }

    fn path(&self, name: &FileName) -> Option<PathBuf> {
        Some(self.file(name))
    }
}

/// The files of images in a folder. What is not ours is passed over.
pub(super) async fn names_in(folder: &Path) -> Result<Vec<FileName>> {
    let failed = |error| failure("The folder of images cannot be read", folder, error);
    let mut entries = tokio::fs::read_dir(folder).await.map_err(failed)?;
    let mut names = vec![];
    while let Some(entry) = entries.next_entry().await.map_err(failed)? {
        names.extend(entry.file_name().to_str().and_then(|name| name.parse().ok()));
    }
    Ok(names)
}

/// A failure of the disk: what the caller can do about it, and the rest for the log.
pub(super) fn failure(title: &'static str, path: &Path, error: io::Error) -> Error {
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
}
