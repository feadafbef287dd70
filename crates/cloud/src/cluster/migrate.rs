//! From a data folder to a shared database.

use std::path::Path;

use nephos_store::{Postgres, Sqlite, Store, TransferSummary};
use nephos_types::{Error, ErrorKind, Result};

use crate::control::{DATABASE, kinds};

/// Moves the cloud of a data folder, which must be stopped, into an empty database: everything that its database holds,
/// and its keys, sealed under the key in the file `secret`. The folder keeps all it has.
pub async fn migrate(from: &Path, to: &str, secret: &Path) -> Result<TransferSummary> {
    let file = from.join(DATABASE);
    if !file.is_file() {
        return Err(Error::new(ErrorKind::NotFound, "no_cloud", "There is no cloud in this folder")
            .detail(format!("{} does not exist", file.display()))
            .next("name the data folder of a cloud", None));
    }
    // A database that cannot take it is found out before anything is written here.
    Postgres::open(to).await?;
    // The keys go the way of everything else: they become a record, here first.
    let store = Store::open(Sqlite::open(&file).await?, kinds()).await?;
    let shared = super::share(&store, from, secret).await;
    store.close().await?;
    shared?;
    Postgres::import(to, &file).await
}
