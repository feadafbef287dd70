//! A guest's screen: the framebuffer protocol that QEMU speaks itself, and pictures.

use std::{
    fs::File,
    io::{self, Read, Seek},
    os::fd::{AsFd, AsRawFd},
};

use nephos_driver::{Console, refusal};
use nephos_types::{Error, ErrorKind};
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use crate::{
    folder::DISPLAY_SOCKET,
    guest::Guest,
    machine::{COMMAND_LIMIT, Machine},
    qmp::QmpError,
};

/// The largest picture: the framebuffer has 16 MiB, which PNG makes hardly larger at worst.
const MAX_PICTURE: u64 = 64 << 20;
/// The picture's name among QEMU's open files.
const PICTURE: &str = "picture";

/// Opens a guest's screen.
pub(crate) async fn open(guest: &Guest) -> Result<Box<dyn Console>, Error> {
    guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
    match guest.folder.connect(DISPLAY_SOCKET).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) => Err(unavailable(error.to_string())),
    }
}

/// A picture of a guest's screen.
pub(crate) async fn picture(guest: &Guest) -> Result<Vec<u8>, Error> {
    let machine = guest.machine().ok_or_else(|| refusal::not_running(guest.id))?;
    draw(&machine).await.map_err(|error| unavailable(error.to_string()))
}

fn unavailable(why: String) -> Error {
    Error::new(ErrorKind::Unavailable, "display_unavailable", "The server's screen cannot be shown").detail(why)
}

/// Has QEMU draw into memory, so that nothing is left however it ends.
async fn draw(machine: &Machine) -> Result<Vec<u8>, QmpError> {
    let memory = rustix::fs::memfd_create(PICTURE, MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
    let mut memory = File::from(memory);
    // QEMU takes a file only with the very access that it asks for.
    let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
    let written = File::options().write(true).open(path)?;
    let qmp = machine.qmp()?;
    let arguments = json!({ "opaque": PICTURE });
    let added = qmp.execute_with_file("add-fd", arguments, written.as_fd(), COMMAND_LIMIT).await?;
    let set = added["fdset-id"].as_u64().ok_or_else(|| QmpError::Protocol("no number of a file".to_owned()))?;
    let arguments = json!({ "filename": format!("/dev/fdset/{set}"), "format": "png" });
    let drawn = machine.execute("screendump", arguments).await;
    let _: Result<Value, _> = machine.execute("remove-fd", json!({ "fdset-id": set })).await;
    drawn?;
    let mut picture = vec![];
    memory.rewind()?;
    memory.take(MAX_PICTURE).read_to_end(&mut picture)?;
    Ok(picture)
}
