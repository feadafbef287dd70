//! Ending a guest: switched off, restarted, gone.

use std::sync::Arc;

use nephos_driver::{StopMode, refusal};
use nephos_host::work::{blocking, unwritable};
use nephos_types::Error;

use crate::{guest::Guest, host::Host};

impl Host {
    pub(crate) async fn stop(&self, guest: &Guest, mode: StopMode) -> Result<(), Error> {
        let Some(machine) = guest.end_is_wanted()? else { return guest.forget_memory() };
        if let StopMode::Soft(grace) = mode {
            if let Err(error) = self.unpause(guest, &machine).await {
                tracing::debug!(id = %guest.id, %error, "a guest that stands still hears no power button");
            }
            if machine.ask_to_shut_down(grace).await {
                return Ok(());
            }
        }
        machine.quit().await
    }

    pub(crate) async fn reboot(&self, guest: &Arc<Guest>, mode: StopMode) -> Result<(), Error> {
        let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
        match mode {
            StopMode::Hard => {
                machine.reset().await.map_err(|error| Error::internal("The server could not be reset", error))?;
                self.unpause(guest, &machine).await
            }
            StopMode::Soft(_) => {
                self.stop(guest, mode).await?;
                self.start(guest).await
            }
        }
    }

    pub(crate) async fn remove(&self, guest: &Guest) -> Result<(), Error> {
        if let Some(machine) = guest.end_is_wanted()? {
            machine.kill().await?;
        }
        let folder = guest.folder.clone();
        blocking(move || folder.remove().map_err(unwritable)).await?;
        self.guests().remove(&guest.id);
        Ok(())
    }
}
