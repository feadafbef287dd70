//! Brings files and records into agreement.
//!
//! A record names its file before the file appears (`upload`), and lets go of it before it is removed. So a file whose
//! name its image's record does not hold is a left-over, whenever one looks, and may be removed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_ops::image::{ImageStatus, StoreKind};
use nephos_store::{Author, Bound, CommitError, Query, Transaction};
use nephos_types::{ImageId, Result, Timestamp};

use super::{
    Image, Images,
    files::FileName,
    kind::{BY_STATUS, Incoming, status_key},
    uploads_counter,
};

/// How often is looked for files that could not be removed when their images went.
const EVERY: Duration = Duration::from_secs(600);
/// Records read at a time.
const CHUNK: usize = 500;

impl Images {
    /// At the start no request writes, whatever records say.
    pub(super) async fn give_up_uploads(&self) -> Result<()> {
        for id in self.saving(|image| image.upload.is_some()) {
            self.change(id, |image| image.upload = None).await?;
        }
        Ok(())
    }

    /// Gives up uploads in parts of which nothing has come for long.
    pub(super) async fn expire_uploads(&self, now: Timestamp) -> Result<()> {
        let expired =
            |image: &Image| matches!(image.incoming, Some(Incoming::Parts { expires_at, .. }) if expires_at <= now);
        for id in self.saving(expired) {
            let Some(record) = self.store.get::<Image>(id).filter(|record| expired(&record.body)) else { continue };
            let mut transaction =
                Transaction::new(Author::new("images")).save(record.edit().modify(|image| image.incoming = None));
            if let Some(project) = record.meta.project {
                transaction = transaction.add(uploads_counter(project), -1, Bound::Any);
            }
            match self.store.commit(transaction).await {
                Ok(_) => tracing::info!(image = %id, "gave up an upload of which nothing came for long"),
                // A part came just now.
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Images that are being uploaded, of a kind.
    fn saving(&self, which: impl Fn(&Image) -> bool) -> Vec<ImageId> {
        let mut found = vec![];
        let mut query = Query::all().index(BY_STATUS, status_key(ImageStatus::Saving)).limit(CHUNK);
        loop {
            let page = self.store.list::<Image>(&query);
            found.extend(page.items.iter().filter(|record| which(&record.body)).map(|record| record.meta.id));
            match page.items.last() {
                Some(last) if page.next.is_some() => query = query.after(last.meta.id),
                _ => return found,
            }
        }
    }

    /// Changes an image's record, whatever others do to it; nothing happens if it is gone.
    async fn change(&self, id: ImageId, change: impl Fn(&mut Image)) -> Result<()> {
        while let Some(record) = self.store.get::<Image>(id) {
            let transaction = Transaction::new(Author::new("images")).save(record.edit().modify(&change));
            match self.store.commit(transaction).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The same where it is no reason not to start that a store cannot be reached: it is done again.
    pub(super) async fn sweep_if_it_can(&self) {
        if let Err(error) = self.sweep().await {
            tracing::warn!(error = %error.chain(), "looking for left-over image files failed");
        }
    }

    /// Removes files that no record names; answers how many.
    pub(super) async fn sweep(&self) -> Result<usize> {
        let mut removed = 0;
        let incoming = self.files.spool().list().await?;
        let mut published = vec![];
        let mut failed = None;
        for (kind, store) in self.files.each() {
            match store.list().await {
                Ok(files) => published.push((kind, store, files)),
                // The others are swept all the same.
                Err(error) => failed = Some(error),
            }
        }
        // Those of other processes, too.
        self.store.catch_up().await?;
        // Read after the lists: a file that is listed has been in its record before.
        let named = |file: &FileName, at: Option<StoreKind>| {
            self.store.get::<Image>(file.image()).is_some_and(|record| record.body.names(file, at))
        };
        for file in incoming {
            if !named(&file, None) {
                self.files.spool().remove(&file).await?;
                removed += 1;
            }
        }
        for (kind, store, files) in published {
            for file in files.iter().filter(|file| !named(file, Some(kind))) {
                store.remove(file).await?;
                tracing::info!(%file, store = kind.name(), "removed a file that no image has");
                removed += 1;
            }
        }
        failed.map_or(Ok(removed), Err)
    }
}

/// Sweeps now and then as long as the family exists.
pub(super) fn keep_sweeping(images: &Arc<Images>) {
    let images: Weak<Images> = Arc::downgrade(images);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(images) = images.upgrade() else { return };
            let expired = images.expire_uploads(Timestamp::now()).await;
            if let Err(error) = expired {
                tracing::warn!(error = %error.chain(), "looking for uploads that nobody goes on with failed");
            }
            images.sweep_if_it_can().await;
        }
    });
}
