//! A guest that stands still, in memory, and goes on.

use nephos_driver::refusal;
use nephos_types::Error;

use crate::{guest::Guest, host::Host, machine::Machine};

impl Host {
    pub(crate) async fn pause(&self, guest: &Guest) -> Result<(), Error> {
        guest.must_be_known()?;
        let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
        machine.pause().await.map_err(|error| Error::internal("The server could not be made to stand still", error))?;
        guest.set_paused(true)
    }

    /// Lets a guest go on; nothing happens if it does not stand still.
    pub(crate) async fn unpause(&self, guest: &Guest, machine: &Machine) -> Result<(), Error> {
        if guest.now().paused {
            machine.go().await.map_err(|error| Error::internal("The server could not be made to go on", error))?;
        }
        guest.set_paused(false)
    }
}
