//! Brings files and records into agreement.
//!
//! A record names its file before the file appears (`upload`), and lets go of it before it is removed. So a file whose
//! name its image's record does not hold is a left-over, whenever one looks, and may be removed.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use nephos_ops::image::ImageStatus;
use nephos_store::{Author, CommitError, Query, Transaction};
use nephos_types::Result;

use super::{
    Image, Images,
    kind::{BY_STATUS, status_key},
};

/// How often is looked for files that could not be removed when their images went.
const EVERY: Duration = Duration::from_secs(600);
/// Records read at a time.
const CHUNK: usize = 500;

impl Images {
    /// At the start nothing is being uploaded, whatever records say.
    pub(super) async fn give_up_uploads(&self) -> Result<()> {
        loop {
            let query = Query::all().index(BY_STATUS, status_key(ImageStatus::Saving)).limit(CHUNK);
            let page = self.store.list::<Image>(&query);
            if page.items.is_empty() {
                return Ok(());
            }
            let mut transaction = Transaction::new(Author::new("images"));
            for record in &page.items {
                transaction = transaction.save(record.edit().modify(|image| image.upload = None));
            }
            match self.store.commit(transaction).await {
                Ok(_) | Err(CommitError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes files that no record names; answers how many.
    pub(super) async fn sweep(&self) -> Result<usize> {
        let mut removed = 0;
        let files = self.files.list().await?;
        // Those of other processes, too.
        self.store.catch_up().await?;
        for file in files {
            // Read after the list: a file that is listed has been in its record before.
            let record = self.store.get::<Image>(file.image());
            if record.is_some_and(|record| record.body.file() == Some(&file)) {
                continue;
            }
            self.files.remove(&file).await?;
            tracing::info!(%file, "removed a file that no image has");
            removed += 1;
        }
        Ok(removed)
    }
}

/// Sweeps now and then as long as the family exists.
pub(super) fn keep_sweeping(images: &Arc<Images>) {
    let images: Weak<Images> = Arc::downgrade(images);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(EVERY).await;
            let Some(images) = images.upgrade() else { return };
            if let Err(error) = images.sweep().await {
                tracing::warn!(error = %error.chain(), "looking for left-over image files failed");
            }
        }
    });
}
