//! The stores that there are for images' bytes, and the one that new images go to.
//!
//! Each image's record says which store its content is in ([`Content::store`]), so that what an operator sets for new
//! images changes nothing for those that are there.

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use nephos_ops::{ByteStream, image::StoreKind};
use nephos_types::{Error, Result};

use super::{
    Settings,
    files::{self, FileName, Folder, ImageStore},
    kind::Content,
    s3::S3Images,
    spool::Spool,
};

/// All of them.
pub struct Stores {
    all: BTreeMap<StoreKind, Arc<dyn ImageStore>>,
    new: StoreKind,
    spool: Spool,
}

impl Stores {
    /// Opens a folder for images, with the spool in it, and the bucket that the settings name. What uploads that a crash
    /// ended have left is removed only if this process is `alone`: otherwise it may be another one's that goes on.
    ///
    /// # Errors
    /// If a store cannot be used, or new images are to go to one that is not there.
    pub fn open(folder: &Path, alone: bool, settings: &Settings) -> Result<Self> {
        let first = if alone { Folder::open(folder)? } else { Folder::join(folder)? };
        let mut all = BTreeMap::from([(StoreKind::Files, Arc::new(first) as Arc<dyn ImageStore>)]);
        let spool = || Spool::join(folder.join(files::INCOMING));
        if let Some(s3) = &settings.s3 {
            all.insert(StoreKind::S3, Arc::new(S3Images::new(spool()?, s3)?));
        }
        let new = settings.store.unwrap_or(if settings.s3.is_some() { StoreKind::S3 } else { StoreKind::Files });
        Self::of(all, new, spool()?)
    }

    /// These; all put files together in the same spool.
    ///
    /// # Errors
    /// If new images are to go to one that is not there.
    pub fn of(all: BTreeMap<StoreKind, Arc<dyn ImageStore>>, new: StoreKind, spool: Spool) -> Result<Self> {
        if !all.contains_key(&new) {
            return Err(Error::invalid("config", "`image_store` names a store that is not there")
                .detail(format!("`{}` is not configured", new.name()))
                .next("configure the bucket as [image_s3] in nephos.toml", None));
        }
        Ok(Self { all, new, spool })
    }

    /// Where files are put together.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Each with what it is.
    pub fn each(&self) -> impl Iterator<Item = (StoreKind, &Arc<dyn ImageStore>)> {
        // The one for new images first: most are there.
        let first = self.all.get_key_value(&self.new);
        let others = self.all.iter().filter(|(kind, _)| **kind != self.new);
        first.into_iter().chain(others).map(|(kind, store)| (*kind, store))
    }

    /// The store of this kind.
    ///
    /// # Errors
    /// If it is not configured.
    pub fn named(&self, kind: StoreKind) -> Result<&Arc<dyn ImageStore>> {
        self.all.get(&kind).ok_or_else(|| {
            Error::conflict("image_store_missing", format!("The image store `{}` is not configured", kind.name())).next(
                "an operator configures it in nephos.toml: `image_s3`, and `image_store` for where new images go",
                None,
            )
        })
    }

    /// Takes a file out of the spool, into the store for new images; answers where it is, which is elsewhere if it was
    /// published before the settings changed.
    pub async fn publish(&self, name: &FileName) -> Result<StoreKind> {
        if !self.spool.path(name).exists()
            && let Some(kind) = self.find(name).await?
        {
            return Ok(kind);
        }
        self.named(self.new)?.publish(name).await?;
        Ok(self.new)
    }

    /// Which store has a file.
    async fn find(&self, name: &FileName) -> Result<Option<StoreKind>> {
        for (kind, store) in self.each() {
            if store.holds(name).await? {
                return Ok(Some(kind));
            }
        }
        Ok(None)
    }

    /// The store that an image's content is in. Records from before there were several do not say; then it is looked for.
    pub async fn kind_of(&self, content: &Content) -> Result<StoreKind> {
        match content.store {
            Some(kind) => Ok(kind),
            None if self.all.len() == 1 => Ok(self.new),
            None => Ok(self.find(&content.file).await?.unwrap_or(self.new)),
        }
    }

    /// Reads a part of an image's content, which must lie within it.
    pub async fn get(&self, content: &Content, range: Range<u64>) -> Result<ByteStream> {
        let kind = self.kind_of(content).await?;
        self.named(kind)?.get(&content.file, range).await
    }

    /// Removes an image's content, from wherever it may be.
    pub async fn remove_content(&self, content: &Content, moving_to: Option<StoreKind>) -> Result<()> {
        for (kind, store) in self.each() {
            if content.store.is_none_or(|at| at == kind) || moving_to == Some(kind) {
                store.remove(&content.file).await?;
            }
        }
        Ok(())
    }

    /// Removes a file that no record names any more from all stores; nothing happens where there is none.
    pub async fn remove(&self, name: &FileName) -> Result<()> {
        for (_, store) in self.each() {
            store.remove(name).await?;
        }
        Ok(())
    }
}
