//! `server.snapshot`: an image of a server's root disk. The image's record is made with the run.

use std::collections::BTreeMap;

use nephos_driver::Firmware;
use nephos_node_api::{BootSource, ImageSource, SnapshotState, SnapshotTask};
use nephos_store::{Record, Transaction};
use nephos_types::{Error, ImageId, Labels, Name, Result};
use nephos_workflow::{Definition, Done, Failure};
use serde::{Deserialize, Serialize};

use super::{
    Answer,
    act::{Plan, Step},
    wait,
};
use crate::{
    compute::{
        Compute, Held,
        server::{Server, config_drive::DriveFormat},
    },
    image::{SnapshotDraft, bootable},
    journal::Effects,
};

/// The definition's name.
pub(crate) const NAME: &str = "server.snapshot";

/// What is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// The image; its record is there, and waits for its content.
    pub(crate) image: ImageId,
    /// Have the server hold its file systems still.
    pub(crate) freeze: bool,
}

pub(super) fn definition(held: &Held) -> Definition<Effects> {
    let mut plan = Plan::<Snapshot>::undone_by(held, NAME, |step| discard(step, step.change().image));
    plan.step("copy disk", |step| {
        copied(step, step.change().image, step.change().freeze).map_or_else(|answer| answer, |_| Ok(Done::value(())))
    });
    plan.final_step("finish", |step| {
        step.finish(|transaction, _, server| {
            server.snapshots.retain(|task| task.image != step.change().image);
            Ok(transaction)
        })
    });
    plan.build()
}

/// Has the node copy the root disk, unless it has; then says what nodes are told of the image.
pub(super) fn copied<C>(step: &Step<C>, image: ImageId, freeze: bool) -> Result<(ImageSource, u64), Answer<()>> {
    let record = step.own().map_err(Err)?;
    if let Some(source) = step.compute.images.source(image).map_err(|error| Err(Failure::fatal(error)))? {
        return Ok(source);
    }
    if !record.body.snapshots.iter().any(|task| task.image == image) {
        let mut body = record.body.clone();
        body.snapshots.push(SnapshotTask { image, freeze });
        return Err(Ok(wait(step.id()).with(Some(step.effects().update(&record, body)))));
    }
    let reports = record.body.observed.iter().flat_map(|observed| &observed.snapshots);
    match reports.into_iter().find(|report| report.image == image).map(|report| &report.state) {
        Some(SnapshotState::Failed { error }) if !error.retryable() => {
            return Err(Err(Failure::fatal(error.clone())));
        }
        Some(SnapshotState::Failed { error }) => step.context.progress(None, error.to_string()),
        Some(SnapshotState::Copying) => step.context.progress(None, "copying disk"),
        Some(SnapshotState::Uploading { percent }) => step.context.progress(Some(*percent), "sending copy"),
        Some(SnapshotState::Done) | None => {}
    }
    if record.body.node.is_none_or(|node| step.compute.nodes.summary(node).is_none()) {
        return Err(Err(Failure::fatal(Error::conflict("node_removed", "The server's node has been removed"))));
    }
    Err(Ok(wait(step.id())))
}

/// Undo of it all: nobody wants the copy any more, and its image goes.
pub(super) fn discard<C>(step: &Step<C>, image: ImageId) -> Answer<()> {
    let transaction = step.compute.images.discard(step.effects(), image);
    step.give_up(transaction, |server| server.snapshots.retain(|task| task.image != image))
}

/// Adds the record of an image that a server's disk becomes.
pub(crate) fn drafted(
    compute: &Compute,
    transaction: Transaction,
    record: &Record<Server>,
    image: ImageId,
    name: &Name,
    labels: Labels,
    protected: bool,
) -> Result<Transaction> {
    let project = record.meta.project.ok_or_else(|| Error::bug("a server has no project"))?;
    let server = &record.body;
    let mut properties = boot_properties(server);
    properties.insert("server".to_owned(), record.meta.id.to_string());
    properties.insert("base_image".to_owned(), server.image.id.to_string());
    let draft = SnapshotDraft { name, labels, properties, protected, min_disk_gib: server.disk_gib, min_memory_mib: 0 };
    Ok(compute.images.draft(transaction, project, image, draft))
}

/// What an image of a server's disk has to say for it to boot as the server does.
fn boot_properties(server: &Server) -> BTreeMap<String, String> {
    let mut properties = BTreeMap::new();
    let mut set = |name: &str, value: String| properties.insert(name.to_owned(), value);
    if server.firmware == Firmware::Uefi {
        set(bootable::FIRMWARE, "uefi".to_owned());
    }
    if server.drive_format == DriveFormat::OpenStack {
        set(bootable::DRIVE_FORMAT, "openstack".to_owned());
    }
    if let BootSource::Kernel { kernel, initrd, command_line } = &server.boot {
        set(bootable::KERNEL, kernel.id.to_string());
        set(bootable::COMMAND_LINE, command_line.clone());
        if let Some(initrd) = initrd {
            set(bootable::RAM_DISK, initrd.id.to_string());
        }
    }
    properties
}
