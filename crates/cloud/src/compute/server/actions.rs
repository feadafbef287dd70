//! What people may ask of servers beyond making, starting and stopping them. Whatever can be known to fail is refused
//! here, before any work begins.

use std::sync::Arc;

use nephos_driver::{DiskFormat, Feature, Firmware};
use nephos_node_api::BootSource;
use nephos_ops::{
    Started,
    compute::{
        self as ops, ConfirmResize, LockServer, PauseServer, RebuildServer, RescueServer, ResizeServer, RestoreServer,
        ResumeServer, RevertResize, ServerState, ShelveServer, SnapshotServer, SuspendServer, UnlockServer,
        UnpauseServer, UnrescueServer, UnshelveServer,
    },
    placement::MoveServer,
};
use nephos_store::{CommitError, Record, Transaction};
use nephos_types::{Error, ErrorKind, ImageId, Labels, Name, NodeId, Reference, Result, WorkflowId};
use serde::Serialize;

use super::{
    Server,
    config_drive::DriveFormat,
    handlers::{idle, image_needs, power, too_small, unlocked, wrong_state},
    record::{Life, Lock, Size, Task},
    workflows::{
        ActInput, Action, Before, MOVE, Move, REBUILD, RESCUE, RESIZE, RESTORE, REVERT, Rebuild, Rescue, ResizeTo,
        SHELVE, SNAPSHOT, Shelve, Snapshot, UNRESCUE, UNSHELVE, demand, drafted, look, relocate, settled, suits,
        way_back, whereto,
    },
};
use crate::{
    compute::{Compute, flavor::Flavor, quota},
    core::Handlers,
    idempotency::Made,
    image::{self, Image},
    journal,
    node::Node,
    resolve::name_of,
    session::{Session, refusal},
};

pub(super) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle(compute, pause);
    handlers.handle(compute, unpause);
    handlers.handle(compute, suspend);
    handlers.handle(compute, resume);
    handlers.handle(compute, rebuild);
    handlers.handle(compute, resize);
    handlers.handle(compute, confirm_resize);
    handlers.handle(compute, revert_resize);
    handlers.handle_creation(compute, snapshot, |compute: Arc<Compute>, session: Session, made: Made| async move {
        let workflow = made.workflow.ok_or_else(|| Error::bug("a snapshot was begun without a workflow"))?;
        Ok(Started { workflow, resource: compute.images.shown(&session, made.id::<Image>()?)? })
    });
    handlers.handle(compute, rescue);
    handlers.handle(compute, unrescue);
    handlers.handle(compute, shelve);
    handlers.handle(compute, unshelve);
    handlers.handle(compute, lock);
    handlers.handle(compute, unlock);
    handlers.handle(compute, restore);
    handlers.handle(compute, move_server);
}

/// What an action needs to begin.
pub(super) struct Wish {
    /// `rebuilt`.
    pub(super) done: &'static str,
    /// `rebuild`.
    pub(super) task: &'static str,
    /// In which states.
    pub(super) from: &'static [ServerState],
    /// What the driver must be able to do.
    pub(super) needs: Option<Feature>,
    /// Whether a resize that is not decided stands against it.
    pub(super) settled: bool,
}

const STANDING: &[ServerState] =
    &[ServerState::Active, ServerState::Stopped, ServerState::Paused, ServerState::Suspended];

/// Refuses what cannot be done to the server now, or ever.
pub(super) fn ready(compute: &Compute, session: &Session, record: &Record<Server>, wish: &Wish) -> Result<()> {
    unlocked(session, record, wish.done)?;
    idle(record, wish.done)?;
    if record.body.life != Life::Made {
        return Err(wrong_state(record, wish.done, "it could not be made; all one can do is delete it".to_owned()));
    }
    standing(compute, record, wish)?;
    let Some(feature) = wish.needs else { return Ok(()) };
    can(compute, record, feature, wish.done)
}

/// Refuses what is not in one of the states that a wish starts from, or waits for a decision.
fn standing(compute: &Compute, record: &Record<Server>, wish: &Wish) -> Result<()> {
    let state = compute.view(record)?.state;
    if !wish.from.contains(&state) {
        let word = |state: &ServerState| serde_json::to_value(state).ok().and_then(|v| v.as_str().map(str::to_owned));
        let from: Vec<String> = wish.from.iter().filter_map(word).collect();
        let why = format!("it is {}, and has to be {}", word(&state).unwrap_or_default(), from.join(" or "));
        return Err(wrong_state(record, wish.done, why));
    }
    if wish.settled && record.body.resize.is_some() {
        let name = name_of(record)?;
        return Err(wrong_state(record, wish.done, "its resize is not decided".to_owned())
            .next("keep the new size", Some(format!("nephos server confirm-resize {name}")))
            .next("or go back", Some(format!("nephos server revert-resize {name}"))));
    }
    Ok(())
}

/// Refuses what the driver that runs a server does not know.
pub(super) fn can(compute: &Compute, record: &Record<Server>, feature: Feature, done: &str) -> Result<()> {
    let Some(node) = record.body.node.and_then(|node| compute.nodes.summary(node)) else {
        return Err(wrong_state(record, done, "it is on no node".to_owned()));
    };
    if node.driver(&record.body.driver).is_some_and(|driver| driver.features.contains(&feature)) {
        return Ok(());
    }
    Err(Error::conflict("unsupported", format!("The server cannot be {done}"))
        .detail(format!("the driver `{}` on node {} does not know how", record.body.driver, node.name))
        .next("see what it can do", Some(format!("nephos node show {}", node.name))))
}

/// Refuses an image that the driver that runs a server does not boot.
fn boots(compute: &Compute, server: &Server, format: DiskFormat, done: &str) -> Result<()> {
    let node = server.node.and_then(|node| compute.nodes.summary(node));
    if node.is_some_and(|node| node.driver(&server.driver).is_some_and(|driver| driver.disk_formats.contains(&format)))
    {
        return Ok(());
    }
    Err(Error::conflict("unsupported", format!("The server cannot be {done} from that image"))
        .detail(format!("the driver `{}` that runs it does not boot that format", server.driver))
        .next("create another server from it", None))
}

/// The refusal of a commit, with a quota in words.
pub(super) fn refused(error: CommitError) -> Error {
    match error {
        CommitError::Exceeded { ref counter, value, amount, limit } => {
            quota::exceeded(counter, value, amount, limit).unwrap_or_else(|| error.into())
        }
        other => refusal(other),
    }
}

/// Begins an action. `decide` may change the server with which it begins, and says what the workflow is given.
pub(super) async fn act<C: Serialize>(
    compute: &Compute,
    session: &Session,
    reference: &Reference,
    wish: &Wish,
    definition: &str,
    decide: impl Fn(Transaction, &Record<Server>, &mut Server, WorkflowId) -> Result<(Transaction, C)>,
) -> Result<Started<ops::Server>> {
    let (id, workflow) = session
        .decide_or(
            |transaction| {
                let record = session.find::<Server>(reference)?;
                let id = record.meta.id;
                ready(compute, session, &record, wish)?;
                let workflow = WorkflowId::new();
                let before = Before::of(&record.body);
                let mut body = record.body.clone();
                body.task = Some(Task { name: wish.task.to_owned(), workflow });
                let (transaction, change) = decide(transaction, &record, &mut body, workflow)?;
                let run = compute
                    .engine
                    .prepare(definition, workflow, &ActInput { server: id, before, change })?
                    .subject(id.to_string())
                    .project(record.meta.project)
                    .author(journal::asked_by(session));
                Ok((journal::start(transaction.update(&record, body), run), (id, workflow)))
            },
            refused,
        )
        .await?;
    let answer = Started { workflow, resource: compute.shown(id)? };
    compute.engine.kick(workflow);
    Ok(answer)
}

async fn pause(compute: Arc<Compute>, session: Session, input: PauseServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Active];
    let wish = Wish { done: "paused", task: "pause", from, needs: Some(Feature::Pause), settled: false };
    power(&compute, &session, &input.server, Action::Pause, &wish).await
}

async fn unpause(compute: Arc<Compute>, session: Session, input: UnpauseServer) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "unpaused", task: "unpause", from: &[ServerState::Paused], needs: None, settled: false };
    power(&compute, &session, &input.server, Action::Unpause, &wish).await
}

async fn suspend(compute: Arc<Compute>, session: Session, input: SuspendServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Active];
    let wish = Wish { done: "suspended", task: "suspend", from, needs: Some(Feature::Suspend), settled: false };
    power(&compute, &session, &input.server, Action::Suspend, &wish).await
}

async fn resume(compute: Arc<Compute>, session: Session, input: ResumeServer) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "resumed", task: "resume", from: &[ServerState::Suspended], needs: None, settled: false };
    power(&compute, &session, &input.server, Action::Resume, &wish).await
}

async fn rebuild(compute: Arc<Compute>, session: Session, input: RebuildServer) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "rebuilt", task: "rebuild", from: STANDING, needs: None, settled: true };
    act(&compute, &session, &input.server, &wish, REBUILD, |transaction, record, body, _| {
        let server = &record.body;
        let reference = match &input.image {
            Some(image) => image.clone(),
            None => server.image.id.to_string().parse()?,
        };
        let image = compute.images.bootable(&session, &reference)?;
        let smallest = image.min_disk_gib.max(image.virtual_size_gib);
        if server.disk_gib != 0 && server.disk_gib < smallest {
            return Err(too_small("disk", smallest, server.disk_gib, "GiB"));
        }
        if server.memory_mib < image.min_memory_mib {
            return Err(too_small("memory", image.min_memory_mib, server.memory_mib, "MiB"));
        }
        boots(&compute, server, image.source.format, "rebuilt")?;
        let needs = image_needs(&image.records)?;
        suits(&compute, record, |server| server.placing.image = needs.clone())?;
        for (feature, needed) in
            [(Feature::Uefi, image.firmware == Firmware::Uefi), (Feature::Kernel, image.boot != BootSource::Disk)]
        {
            if needed {
                can(&compute, record, feature, "rebuilt from that image")?;
            }
        }
        let transaction = hold_all(transaction, body, &image.records);
        let change = Rebuild {
            needs,
            claimed_disk_gib: if server.disk_gib == 0 { smallest.max(1) } else { server.disk_gib },
            discard: server.own_image.filter(|own| *own != image.source.id),
            user_data: input.user_data.as_ref().map(|text| text.as_str().to_owned()),
            image: image.source,
            firmware: image.firmware,
            boot: image.boot,
            drive_format: DriveFormat::of(image.open_stack_drive),
        };
        Ok((transaction, change))
    })
    .await
}

/// Keeps images until the server's node has them.
fn hold_all(transaction: Transaction, server: &mut Server, images: &[Arc<Record<Image>>]) -> Transaction {
    images.iter().fold(transaction, |transaction, record| {
        server.held.push(record.meta.id);
        image::hold(transaction.expect(record), record.meta.id)
    })
}

async fn resize(compute: Arc<Compute>, session: Session, input: ResizeServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Active, ServerState::Stopped];
    let wish = Wish { done: "resized", task: "resize", from, needs: None, settled: true };
    act(&compute, &session, &input.server, &wish, RESIZE, |transaction, record, _, _| {
        let server = &record.body;
        let flavor = session.find::<Flavor>(&input.flavor)?;
        let size = &flavor.body;
        if flavor.meta.id == server.flavor
            && (size.vcpus, size.memory_mib, size.disk_gib) == (server.vcpus, server.memory_mib, server.disk_gib)
        {
            return Err(Error::invalid("same_flavor", "The server has that size already")
                .next("choose another flavor", Some("nephos flavor list".to_owned())));
        }
        if size.disk_gib != 0 && size.disk_gib < server.claimed_disk_gib {
            return Err(Error::invalid("disk_shrinks", "A root disk cannot shrink")
                .detail(format!("it has {} GiB, the flavor {} GiB", server.claimed_disk_gib, size.disk_gib))
                .next("choose a flavor with a larger disk", Some("nephos flavor list".to_owned())));
        }
        let keeps = size.disk_gib == 0;
        let to = Size {
            flavor: flavor.meta.id,
            flavor_name: name_of(&flavor)?,
            vcpus: size.vcpus,
            memory_mib: size.memory_mib,
            disk_gib: if keeps { server.disk_gib } else { size.disk_gib },
            claimed_disk_gib: if keeps { server.claimed_disk_gib } else { size.disk_gib },
            needs: size.needs(),
        };
        whereto(&compute, record, &to)?;
        Ok((transaction.expect(&flavor), ResizeTo { to, image: ImageId::new() }))
    })
    .await
}

/// Refuses unless a resize waits for a decision.
fn undecided(session: &Session, record: &Record<Server>, done: &str) -> Result<()> {
    unlocked(session, record, done)?;
    idle(record, done)?;
    if record.body.resize.as_ref().is_none_or(|resize| resize.waits.is_none()) || record.body.trashed.is_some() {
        return Err(wrong_state(record, done, "no resize waits for a decision".to_owned()));
    }
    Ok(())
}

/// The transaction that confirms a resize.
pub(super) fn confirmed(compute: &Compute, transaction: Transaction, record: &Record<Server>) -> Result<Transaction> {
    let mut body = record.body.clone();
    Ok(settled(compute, transaction, record, &mut body)?.update(record, body))
}

async fn confirm_resize(compute: Arc<Compute>, session: Session, input: ConfirmResize) -> Result<ops::Server> {
    let id = session
        .decide(|transaction| {
            let record = session.find::<Server>(&input.server)?;
            undecided(&session, &record, "confirmed")?;
            Ok((confirmed(&compute, transaction, &record)?, record.meta.id))
        })
        .await?;
    compute.shown(id)
}

async fn revert_resize(compute: Arc<Compute>, session: Session, input: RevertResize) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "reverted", task: "revert-resize", from: STANDING, needs: None, settled: false };
    act(&compute, &session, &input.server, &wish, REVERT, |transaction, record, _, _| {
        if record.body.resize.as_ref().is_none_or(|resize| resize.waits.is_none()) {
            return Err(wrong_state(record, "reverted", "no resize waits for a decision".to_owned()));
        }
        // A disk that has grown stays as large as it is.
        let server = &record.body;
        let old = server.resize.as_ref().map_or_else(|| server.size(), |resize| resize.other.clone());
        let to = Size { disk_gib: server.disk_gib, claimed_disk_gib: server.claimed_disk_gib, ..old };
        way_back(&compute, record, &to)?;
        Ok((transaction, ResizeTo { to, image: ImageId::new() }))
    })
    .await
}

async fn snapshot(
    compute: Arc<Compute>,
    session: Session,
    input: SnapshotServer,
) -> Result<Started<nephos_ops::image::Image>> {
    let needs = Some(Feature::Snapshot);
    let wish = Wish { done: "copied", task: "snapshot", from: STANDING, needs, settled: false };
    let image = ImageId::new();
    let started = act(&compute, &session, &input.server, &wish, SNAPSHOT, |transaction, record, _, workflow| {
        let labels = input.labels.clone();
        let transaction = drafted(&compute, transaction, record, image, &input.name, labels, false)?;
        let transaction = session.remember::<Image>(transaction, image, Some(workflow));
        Ok((transaction, Snapshot { image, freeze: input.freeze }))
    })
    .await?;
    Ok(Started { workflow: started.workflow, resource: compute.images.shown(&session, image)? })
}

async fn rescue(compute: Arc<Compute>, session: Session, input: RescueServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Active, ServerState::Stopped];
    let wish = Wish { done: "rescued", task: "rescue", from, needs: Some(Feature::Rescue), settled: true };
    act(&compute, &session, &input.server, &wish, RESCUE, |transaction, record, body, _| {
        let reference = match &input.image {
            Some(image) => image.clone(),
            None => record.body.image.id.to_string().parse()?,
        };
        let image = compute.images.bootable(&session, &reference)?;
        boots(&compute, &record.body, image.source.format, "rescued")?;
        let transaction = hold_all(transaction, body, &image.records[..1]);
        Ok((transaction, Rescue { image: image.source }))
    })
    .await
}

async fn unrescue(compute: Arc<Compute>, session: Session, input: UnrescueServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Rescued, ServerState::Stopped];
    let wish = Wish { done: "unrescued", task: "unrescue", from, needs: None, settled: false };
    act(&compute, &session, &input.server, &wish, UNRESCUE, |transaction, record, _, _| {
        if record.body.rescue.is_none() {
            return Err(wrong_state(record, "unrescued", "it is not being rescued".to_owned()));
        }
        Ok((transaction, ()))
    })
    .await
}

async fn shelve(compute: Arc<Compute>, session: Session, input: ShelveServer) -> Result<Started<ops::Server>> {
    let needs = Some(Feature::Snapshot);
    let wish = Wish { done: "shelved", task: "shelve", from: STANDING, needs, settled: true };
    let image = ImageId::new();
    act(&compute, &session, &input.server, &wish, SHELVE, |transaction, record, _, _| {
        // Names of images are unique; this one is nobody's wish, and ends with the server's own id.
        let name: Name = format!("shelved-{image}").parse()?;
        let transaction = drafted(&compute, transaction, record, image, &name, Labels::default(), true)?;
        Ok((transaction, Shelve { image }))
    })
    .await
}

async fn unshelve(compute: Arc<Compute>, session: Session, input: UnshelveServer) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "unshelved", task: "unshelve", from: &[ServerState::Shelved], needs: None, settled: false };
    act(&compute, &session, &input.server, &wish, UNSHELVE, |transaction, record, _, _| {
        compute.candidates.check(&look(&compute), &demand(&compute, &record.body))?;
        Ok((transaction, ()))
    })
    .await
}

/// Refuses unless the server could be moved to another node now.
pub(crate) fn movable(compute: &Compute, record: &Record<Server>) -> Result<()> {
    let wish = Wish { done: "moved", task: "move", from: &[], needs: None, settled: true };
    idle(record, wish.done)?;
    if let Some(lock) = &record.body.lock {
        let why = lock.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        return Err(
            Error::conflict("server_locked", "The server cannot be moved: it is locked").detail(format!("locked{why}"))
        );
    }
    if record.body.life != Life::Made {
        return Err(wrong_state(record, wish.done, "it could not be made; all one can do is delete it".to_owned()));
    }
    let from = &[ServerState::Active, ServerState::Stopped];
    standing(compute, record, &Wish { from, ..wish })?;
    can(compute, record, Feature::Snapshot, "moved")
}

/// Adds to a transaction that a server moves to another node.
pub(crate) fn begin_move(
    compute: &Compute,
    transaction: Transaction,
    record: &Record<Server>,
    (to, drain): (Option<NodeId>, Option<WorkflowId>),
    author: serde_json::Value,
) -> Result<(Transaction, WorkflowId)> {
    movable(compute, record)?;
    let (id, image, workflow) = (record.meta.id, ImageId::new(), WorkflowId::new());
    compute.candidates.check(&look(compute), &relocate::demand(compute, &record.body, to))?;
    let name: Name = format!("moved-{image}").parse()?;
    let transaction = drafted(compute, transaction, record, image, &name, Labels::default(), true)?;
    let mut body = record.body.clone();
    body.task = Some(Task { name: "move".to_owned(), workflow });
    let input = ActInput { server: id, before: Before::of(&record.body), change: Move { image, to, drain } };
    let run = compute
        .engine
        .prepare(MOVE, workflow, &input)?
        .subject(id.to_string())
        .project(record.meta.project)
        .author(author);
    Ok((journal::start(transaction.update(record, body), run), workflow))
}

async fn move_server(compute: Arc<Compute>, session: Session, input: MoveServer) -> Result<Started<ops::Server>> {
    let (id, workflow) = session
        .decide_or(
            |transaction| {
                let record = session.find::<Server>(&input.server)?;
                let to = input.node.as_ref().map(|node| session.find::<Node>(node)).transpose()?;
                let to = to.map(|node| node.meta.id);
                let author = journal::asked_by(&session);
                let (transaction, workflow) = begin_move(&compute, transaction, &record, (to, None), author)?;
                Ok((transaction, (record.meta.id, workflow)))
            },
            refused,
        )
        .await?;
    let answer = Started { workflow, resource: compute.shown(id)? };
    compute.engine.kick(workflow);
    Ok(answer)
}

async fn restore(compute: Arc<Compute>, session: Session, input: RestoreServer) -> Result<Started<ops::Server>> {
    let wish = Wish { done: "restored", task: "restore", from: &[ServerState::Trashed], needs: None, settled: false };
    act(&compute, &session, &input.server, &wish, RESTORE, |transaction, _, _, _| Ok((transaction, ()))).await
}

async fn lock(compute: Arc<Compute>, session: Session, input: LockServer) -> Result<ops::Server> {
    let id = session
        .decide(|transaction| {
            let record = session.find::<Server>(&input.server)?;
            unlocked(&session, &record, "locked")?;
            let mut body = record.body.clone();
            let reason = input.reason.as_ref().map(|reason| reason.as_str().to_owned());
            body.lock = Some(Lock { by_admin: session.is_admin(), reason });
            Ok((transaction.update(&record, body), record.meta.id))
        })
        .await?;
    compute.shown(id)
}

async fn unlock(compute: Arc<Compute>, session: Session, input: UnlockServer) -> Result<ops::Server> {
    let id = session
        .decide(|transaction| {
            let record = session.find::<Server>(&input.server)?;
            if record.body.lock.as_ref().is_some_and(|lock| lock.by_admin) && !session.is_admin() {
                return Err(Error::new(
                    ErrorKind::Forbidden,
                    "locked_by_admin",
                    "An administrator has locked the server",
                )
                .next("ask an administrator to unlock it", None));
            }
            let mut body = record.body.clone();
            body.lock = None;
            Ok((transaction.update(&record, body), record.meta.id))
        })
        .await?;
    compute.shown(id)
}
