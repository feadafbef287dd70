//! Ending guests: for a while, for ever, or to begin anew.

use std::sync::Arc;

use nephos_driver::{StopMode, refusal};
use nephos_host::work::{blocking, unwritable};
use nephos_types::Error;

use crate::{guest::Guest, host::Host, keeper::Order};

impl Host {
    /// Makes a guest be off.
    pub(crate) async fn stop(&self, guest: &Guest, mode: StopMode) -> Result<(), Error> {
        let Some(machine) = guest.end_is_wanted()? else { return Ok(()) };
        if let StopMode::Soft(grace) = mode
            && machine.ask_to_end(self.stop_signal(guest), grace).await
        {
            return Ok(());
        }
        machine.kill().await
    }

    fn stop_signal(&self, guest: &Guest) -> i32 {
        let base = {
            let record = &guest.now().record;
            record.rescue.as_ref().unwrap_or(&record.base).clone()
        };
        self.bases.program(&base).map_or(nix::libc::SIGTERM, |program| program.stop_signal)
    }

    /// Makes a running guest begin anew.
    pub(crate) async fn reboot(self: &Arc<Self>, guest: &Arc<Guest>, mode: StopMode) -> Result<(), Error> {
        let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
        match mode {
            StopMode::Hard => machine
                .order(Order::Reset)
                .await
                .map_err(|error| Error::internal("The server could not be reset", error)),
            StopMode::Soft(_) => {
                self.stop(guest, mode).await?;
                self.start(guest).await
            }
        }
    }

    /// Makes everything of a guest be gone.
    pub(crate) async fn remove(self: &Arc<Self>, guest: &Guest) -> Result<(), Error> {
        if let Some(machine) = guest.end_is_wanted()? {
            machine.kill().await?;
        }
        let folder = guest.folder.clone();
        blocking(move || folder.remove().map_err(unwritable)).await?;
        self.guests().remove(&guest.id);
        self.sweep().await;
        Ok(())
    }
}
