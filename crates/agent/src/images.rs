//! The image cache: base images by checksum, read-only, fetched once however many servers wait for one.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::SystemTime,
};

use futures_util::StreamExt;
use nephos_node_api::{Client, ImageSource};
use nephos_types::{Bytes, Error, ErrorKind, Result};
use ring::digest;
use tokio::io::AsyncWriteExt;

use crate::records::private_folder;

pub(crate) struct Images {
    /// `None`: nothing is fetched (simulated nodes).
    folder: Option<PathBuf>,
    limit: Bytes,
    client: Client,
    /// One lock per image that is being fetched.
    fetching: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Eviction and arrival of images exclude each other.
    evicting: tokio::sync::Mutex<()>,
}

impl Images {
    pub(crate) fn open(data: Option<&Path>, limit: Bytes, client: Client) -> Result<Self> {
        let folder = data.map(|data| data.join("images"));
        if let Some(folder) = &folder {
            private_folder(folder)?;
            // What a killed agent had half fetched.
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "part") {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        Ok(Self { folder, limit, client, fetching: Mutex::default(), evicting: tokio::sync::Mutex::default() })
    }

    /// The file of an image, fetched and verified if it is not there. `progress` hears percentages; `in_use` says
    /// which checksums must stay, or `None` if that is not known.
    pub(crate) async fn ensure(
        &self,
        source: &ImageSource,
        progress: impl Fn(u8) + Send,
        in_use: impl Fn() -> Option<HashSet<String>> + Send,
    ) -> Result<PathBuf> {
        let wellformed = source.sha256.len() == 64 && source.sha256.bytes().all(|b| b.is_ascii_hexdigit());
        if !wellformed {
            return Err(Error::invalid("invalid_checksum", "An image's checksum is not SHA-256 in hexadecimal"));
        }
        let name = source.sha256.to_ascii_lowercase();
        let Some(folder) = &self.folder else { return Ok(PathBuf::from(name)) };
        let path = folder.join(&name);
        if is_there(&path, source.size).await {
            touch(&path).await;
            return Ok(path);
        }
        let lock = self.lock_of(&name);
        let _held = lock.lock().await;
        if is_there(&path, source.size).await {
            return Ok(path);
        }
        self.make_room(folder, source.size, in_use).await?;
        let part = folder.join(format!("{name}.part"));
        let fetched = self.fetch(source, &name, &part, progress).await;
        if fetched.is_err() {
            let _ = tokio::fs::remove_file(&part).await;
        }
        fetched?;
        tokio::fs::rename(&part, &path).await.map_err(disk)?;
        Ok(path)
    }

    fn lock_of(&self, name: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        fetching.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = fetching.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(tokio::sync::Mutex::new(()));
        fetching.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    async fn fetch(
        &self,
        source: &ImageSource,
        checksum: &str,
        part: &Path,
        progress: impl Fn(u8) + Send,
    ) -> Result<()> {
        let mut content = self.client.image(source.id).await?;
        if content.length != source.size.0 {
            return Err(corrupt(format!("{} bytes were announced, {} expected", content.length, source.size.0)));
        }
        let mut file = tokio::fs::File::create(part).await.map_err(disk)?;
        let mut hash = digest::Context::new(&digest::SHA256);
        let mut received: u64 = 0;
        while let Some(chunk) = content.body.next().await {
            let chunk = chunk.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "image_broke_off", "The image's transfer broke off")
                    .detail(error.to_string())
            })?;
            received = received.saturating_add(chunk.len() as u64);
            if received > source.size.0 {
                return Err(corrupt(format!("more than the expected {} bytes came", source.size.0)));
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(disk)?;
            progress(u8::try_from(received.saturating_mul(100) / source.size.0.max(1)).unwrap_or(100));
        }
        if received != source.size.0 {
            return Err(corrupt(format!("{received} bytes came, {} expected", source.size.0)));
        }
        let found = hex::encode(hash.finish());
        if found != checksum {
            return Err(corrupt(format!("SHA-256 is {found}, expected {checksum}")));
        }
        file.set_permissions(std::fs::Permissions::from_mode(0o444)).await.map_err(disk)?;
        file.sync_all().await.map_err(disk)
    }

    /// Removes images that no guest uses, the least recently used first, until this one fits.
    async fn make_room(
        &self,
        folder: &Path,
        needed: Bytes,
        in_use: impl Fn() -> Option<HashSet<String>> + Send,
    ) -> Result<()> {
        let _one_at_a_time = self.evicting.lock().await;
        // A guest that is not known here may stand on any image.
        let Some(in_use) = in_use() else { return Ok(()) };
        let fetching: HashSet<String> = {
            let fetching = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            fetching.iter().filter(|(_, lock)| lock.strong_count() > 0).map(|(name, _)| name.clone()).collect()
        };
        let mut present: Vec<(SystemTime, u64, PathBuf)> = vec![];
        let mut entries = tokio::fs::read_dir(folder).await.map_err(disk)?;
        while let Some(entry) = entries.next_entry().await.map_err(disk)? {
            let Ok(metadata) = entry.metadata().await else { continue };
            present.push((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len(), entry.path()));
        }
        present.sort();
        let mut total: u64 = present.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in present {
            if total.saturating_add(needed.0) <= self.limit.0 {
                break;
            }
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let busy = in_use.contains(&name) || fetching.contains(name.trim_end_matches(".part"));
            if !busy && tokio::fs::remove_file(&path).await.is_ok() {
                tracing::info!(image = name, size = %Bytes(size), "removed from the image cache to make room");
                total = total.saturating_sub(size);
            }
        }
        Ok(())
    }
}

async fn is_there(path: &Path, size: Bytes) -> bool {
    tokio::fs::metadata(path).await.is_ok_and(|metadata| metadata.is_file() && metadata.len() == size.0)
}

/// The time of last change says when an image was last used; base images themselves never change.
async fn touch(path: &Path) {
    let path = path.to_owned();
    let _ = tokio::task::spawn_blocking(move || std::fs::File::open(path)?.set_modified(SystemTime::now())).await;
}

fn corrupt(detail: String) -> Error {
    Error::new(ErrorKind::Unavailable, "image_corrupt", "The image did not arrive as it should be")
        .detail(detail)
        .next("it is fetched again; if that does not help, upload the image again", None)
}

fn disk(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full")
            .detail(error.to_string())
            .next("free room on the node, or delete servers there", None);
    }
    Error::internal("The node's image cache cannot be written", error)
}
