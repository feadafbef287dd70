//! What people may ask of servers.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use nephos_driver::{PortForward, Protocol};
use nephos_node_api::{StreamPurpose, WantedPower};
use nephos_ops::{
    Download, Started, Tunnel,
    compute::{
        self as ops, CreateServer, DeleteServer, ListServers, OpenConsole, ReadConsoleLog, RebootServer, ServerState,
        ShowServer, StartServer, StopServer, UpdateServer,
    },
};
use nephos_store::{CommitError, Draft, Query, Record, Transaction};
use nephos_types::{Error, Id, List, Page, PageRequest, Reference, Result, ServerId, Timestamp, WorkflowId};
use tokio_util::io::ReaderStream;

use super::{
    BY_NODE, Server, actions,
    actions::Wish,
    config_drive::DriveFormat,
    inside,
    record::{Life, Placing, Task, boot_images, view},
    usage,
    workflows::{Action, CREATE, DELETE, DeleteInput, PowerInput, TRASH, Trash, demand, look},
};
use crate::{
    compute::{
        Compute,
        flavor::Flavor,
        group::{self, ServerGroup},
        keypair::KeyPair,
        quota,
    },
    core::Handlers,
    idempotency::Made,
    image::{self, Image},
    journal, network,
    node::{Node, check_traits},
    placement::Needs,
    resolve::{Named, name_claim, name_of},
    session::{Session, Visible},
};

/// What a server gets to shut down when nobody says otherwise.
const GRACE: Duration = Duration::from_secs(60);
/// What of a console log is read when nobody says otherwise.
const LOG_BYTES: u32 = 64 << 10;

impl Named for Server {
    const NOUN: &'static str = "server";
}

pub(crate) fn register(handlers: &mut Handlers, compute: &Arc<Compute>) {
    handlers.handle_creation(compute, create, |compute: Arc<Compute>, _: Session, made: Made| async move {
        let id = made.id::<Server>()?;
        let workflow = made.workflow.ok_or_else(|| Error::bug("a server was created without a workflow"))?;
        Ok(Started { workflow, resource: compute.shown(id)? })
    });
    handlers.handle(compute, list);
    handlers.handle(compute, show);
    handlers.handle(compute, update);
    handlers.handle(compute, delete);
    handlers.handle(compute, start);
    handlers.handle(compute, stop);
    handlers.handle(compute, reboot);
    handlers.handle(compute, console);
    handlers.handle(compute, console_log);
    actions::register(handlers, compute);
    inside::register(handlers, compute);
    usage::register(handlers, compute);
}

impl Compute {
    pub(super) fn view(&self, record: &Record<Server>) -> Result<ops::Server> {
        let node = record.body.node.and_then(|node| self.nodes.summary(node));
        let addresses = self.networks.addresses(record.body.nics.iter().map(|nic| nic.port));
        view(record, node.map(|node| (node.name, node.up)), addresses)
    }

    pub(super) fn shown(&self, id: ServerId) -> Result<ops::Server> {
        self.view(&*self.store.get::<Server>(id).ok_or_else(|| Error::not_found("server", id))?)
    }
}

async fn create(compute: Arc<Compute>, session: Session, input: CreateServer) -> Result<Started<ops::Server>> {
    let (id, workflow) = (ServerId::new(), WorkflowId::new());
    let refused = |error| match error {
        CommitError::Exceeded { ref counter, value, amount, limit } => quota::exceeded(counter, value, amount, limit)
            .or_else(|| group::exceeded(counter))
            .or_else(|| network::quota::exceeded(counter, limit))
            .unwrap_or_else(|| error.into()),
        other => network::explain(other),
    };
    let decide = |transaction: Transaction| decide_creation(&compute, &session, &input, transaction, (id, workflow));
    session.decide_again(decide, network::collided, refused).await?;
    compute.engine.kick(workflow);
    Ok(Started { workflow, resource: compute.shown(id)? })
}

/// The transaction that makes a server. It holds only as long as image, flavor and key pair are what they were.
fn decide_creation(
    compute: &Compute,
    session: &Session,
    input: &CreateServer,
    mut transaction: Transaction,
    (id, workflow): (ServerId, WorkflowId),
) -> Result<(Transaction, ())> {
    let project = session.project()?;
    let flavor = session.find::<Flavor>(&input.flavor)?;
    let image = compute.images.bootable(session, &input.image)?;
    let keypair = input.keypair.as_ref().map(|keypair| session.find::<KeyPair>(keypair)).transpose()?;
    let group = input.group.as_ref().map(|group| own_group(session, group)).transpose()?;
    let size = &flavor.body;
    let smallest = image.min_disk_gib.max(image.virtual_size_gib);
    if size.disk_gib != 0 && size.disk_gib < smallest {
        return Err(too_small("disk", smallest, size.disk_gib, "GiB"));
    }
    if size.memory_mib < image.min_memory_mib {
        return Err(too_small("memory", image.min_memory_mib, size.memory_mib, "MiB"));
    }
    transaction = image.records.iter().fold(transaction.expect(&flavor), |tx, record| tx.expect(record));
    if let Some(keypair) = &keypair {
        transaction = transaction.expect(keypair);
    }
    let connections =
        network::connections(session, input.network.as_ref().map(List::as_slice), input.port.as_slice(), || {
            input.forward.is_empty() && compute.nodes.have_networks()
        })?;
    let groups_wanted = input.security_group.as_ref().map(List::as_slice);
    let (connected, nics) = network::connect(&compute.networks, session, transaction, id, &connections, groups_wanted)?;
    transaction = connected;
    let body = Server {
        flavor: flavor.meta.id,
        flavor_name: name_of(&flavor)?,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        disk_gib: size.disk_gib,
        claimed_disk_gib: if size.disk_gib == 0 { smallest.max(1) } else { size.disk_gib },
        image: image.source,
        keypair: keypair.as_ref().map(|keypair| name_of(keypair)).transpose()?,
        public_keys: keypair.iter().map(|keypair| keypair.body.public_key.clone()).collect(),
        user_data: input.user_data.as_ref().map(|text| text.as_str().to_owned()),
        mac: mac(id),
        forwards: input
            .forward
            .as_slice()
            .iter()
            .map(|port| PortForward { protocol: Protocol::Tcp, host_port: 0, guest_port: port.get_u16() })
            .collect(),
        hostname: hostname(input.name.as_str()),
        restart: input.restart,
        node: None,
        wanted: WantedPower::Off { grace_ms: 0 },
        generation: 0,
        reboots: 0,
        reboot_grace_ms: 0,
        life: Life::Building,
        task: Some(Task { name: "create".to_owned(), workflow }),
        last_workflow: None,
        fault: None,
        observed: None,
        restarts: 0,
        driver: String::new(),
        incarnation: 0,
        firmware: image.firmware,
        kept: boot_images(&image.boot),
        boot: image.boot,
        rescue: None,
        snapshots: vec![],
        resize: None,
        held: vec![],
        shelved: false,
        own_image: None,
        trashed: None,
        lock: None,
        touched: None,
        console_epoch: 0,
        protected: input.protected,
        metadata: input.metadata.0.clone(),
        tags: input.tags.as_slice().iter().map(|tag| tag.as_str().to_owned()).collect(),
        files: files(input)?,
        drive_format: DriveFormat::of(image.open_stack_drive),
        placing: Placing {
            zone: input.zone.clone(),
            group: group.as_ref().map(|group| group.meta.id),
            flavor: size.needs(),
            image: image_needs(&image.records)?,
            elsewhere: None,
        },
        nics,
    };
    let amounts = body.amounts();
    // Nothing is claimed yet; but who cannot be served is told now and not by a workflow.
    compute.candidates.check(&look(compute), &demand(compute, &body))?;

    let run = compute
        .engine
        .prepare(CREATE, workflow, &serde_json::json!({ "server": id }))?
        .subject(id.to_string())
        .project(Some(project))
        .author(journal::asked_by(session));
    if let Some(group) = &group {
        transaction = group::join(transaction, group);
    }
    transaction = image::hold_all(image::hold(transaction, body.image.id), &body.kept);
    transaction = transaction
        .create(Draft::new(id, body).project(project).name(input.name.clone()).labels(input.labels.clone()))
        .claim(name_claim::<Server>(&project.to_string(), &input.name), id);
    transaction = journal::start(quota::take(&compute.store, transaction, project, amounts), run);
    Ok((session.remember::<Server>(transaction, id, Some(workflow)), ()))
}

/// A group of the caller's project: servers of other projects must not depend on where these are.
fn own_group(session: &Session, reference: &Reference) -> Result<Arc<Record<ServerGroup>>> {
    let (group, project) = (session.find::<ServerGroup>(reference)?, session.project()?);
    if group.meta.project == Some(project) { Ok(group) } else { Err(Error::not_found(ServerGroup::NOUN, reference)) }
}

/// What an image asks of a node's kind: its properties `trait:NAME`, as in OpenStack.
pub(super) fn image_needs(images: &[Arc<Record<Image>>]) -> Result<Needs> {
    let mut needs = Needs::default();
    for (key, value) in images.iter().flat_map(|image| &image.body.properties.0) {
        let Some(name) = key.strip_prefix("trait:") else { continue };
        let traits = check_traits([name])?;
        match value.as_str() {
            "required" => needs.required.extend(traits),
            "forbidden" => needs.forbidden.extend(traits),
            other => {
                return Err(Error::invalid("invalid_trait", "The image asks for a trait in an unknown way")
                    .detail(format!("its property `{key}` is `{other}`; it has to be `required` or `forbidden`")));
            }
        }
    }
    Ok(needs)
}

pub(super) fn too_small(what: &str, need: u64, have: u64, unit: &str) -> Error {
    Error::invalid("flavor_too_small", "The flavor is too small for the image")
        .detail(format!("{what}: the image needs {need} {unit}, the flavor has {have} {unit}"))
        .next("choose a larger flavor", Some("nephos flavor list".to_owned()))
}

/// The files that a server finds at its first boot.
fn files(input: &CreateServer) -> Result<Vec<(String, String)>> {
    let file = |(index, file): (usize, &ops::Personality)| {
        let path = file.path.as_str();
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(Error::invalid("invalid_input", "The input of server.create is not valid").reason(
                format!("files[{index}].path"),
                "format",
                "an absolute path of a file",
            ));
        }
        Ok((path.to_owned(), file.content.as_str().to_owned()))
    };
    input.files.as_slice().iter().enumerate().map(file).collect()
}

/// A MAC address out of QEMU's range, made of the server's id.
fn mac(id: ServerId) -> String {
    let bytes = id.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2])
}

/// A host name (RFC 1123) out of a server's name.
fn hostname(name: &str) -> String {
    let mut text: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).take(63).collect();
    text = text.trim_matches('-').to_owned();
    if text.is_empty() { "server".to_owned() } else { text }
}

async fn list(compute: Arc<Compute>, session: Session, input: ListServers) -> Result<Page<ops::Server>> {
    let request = PageRequest { limit: input.limit, after: input.after.map(|id| id.to_string()) };
    let mut query = Query::all().page::<Server>(&request)?;
    if let Some(node) = &input.node {
        query = query.index(BY_NODE, session.find::<Node>(node)?.meta.id);
    }
    for (key, value) in &input.labels.0 {
        query = query.label(key, value);
    }
    match session.listed(input.all_projects) {
        Visible::Everything => {}
        Visible::Project(project) => {
            if let Some(name) = &input.name {
                let owner = compute.store.owner(&name_claim::<Server>(&project.to_string(), name));
                let found = owner.and_then(|id| compute.shown(id.parse().ok()?).ok());
                return Ok(Page { items: found.into_iter().collect(), next: None });
            }
            query = query.project(project);
        }
        Visible::Domain(_) | Visible::Nothing => return Ok(Page { items: vec![], next: None }),
    }
    let page = compute.store.list::<Server>(&query);
    let wanted = |record: &&Arc<Record<Server>>| input.name.is_none() || record.meta.name == input.name;
    let items = page.items.iter().filter(wanted).map(|record| compute.view(record)).collect::<Result<_>>()?;
    Ok(Page { items, next: page.next })
}

async fn show(compute: Arc<Compute>, session: Session, input: ShowServer) -> Result<ops::Server> {
    compute.view(&*session.find::<Server>(&input.server)?)
}

async fn update(compute: Arc<Compute>, session: Session, input: UpdateServer) -> Result<ops::Server> {
    let id = session
        .decide(|mut transaction| {
            let record = session.find::<Server>(&input.server)?;
            unlocked(&session, &record, "changed")?;
            let (id, old) = (record.meta.id, name_of(&record)?);
            let mut edit = record.edit();
            if let Some(new) = input.name.as_ref().filter(|new| **new != old) {
                let space = record.meta.project.unwrap_or_else(crate::resolve::no_id).to_string();
                transaction = transaction
                    .release(name_claim::<Server>(&space, &old), id)
                    .claim(name_claim::<Server>(&space, new), id);
                edit = edit.name(new.clone());
            }
            if let Some(labels) = &input.labels {
                edit = edit.labels(labels.clone());
            }
            edit = edit.modify(|server| {
                server.protected = input.protected.unwrap_or(server.protected);
                if let Some(metadata) = &input.metadata {
                    server.metadata.clone_from(&metadata.0);
                }
                if let Some(tags) = &input.tags {
                    server.tags = tags.as_slice().iter().map(|tag| tag.as_str().to_owned()).collect();
                }
            });
            Ok((transaction.save(edit), id))
        })
        .await?;
    compute.shown(id)
}

/// A refusal because of what the server is, or is being done to it.
pub(super) fn wrong_state(record: &Record<Server>, wish: &str, why: String) -> Error {
    let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
    Error::conflict("wrong_state", format!("The server cannot be {wish} now"))
        .detail(why)
        .next("see what it is", Some(format!("nephos server show {name}")))
}

pub(super) fn idle(record: &Record<Server>, wish: &str) -> Result<()> {
    match &record.body.task {
        None => Ok(()),
        Some(task) => Err(wrong_state(record, wish, format!("`{}` is still being done to it", task.name))
            .next("wait for that", Some(format!("nephos workflow watch {}", task.workflow)))),
    }
}

/// Refuses changes of a locked server, except by an administrator.
pub(super) fn unlocked(session: &Session, record: &Record<Server>, wish: &str) -> Result<()> {
    match &record.body.lock {
        Some(lock) if !session.is_admin() => {
            let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
            let why = lock.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
            Err(Error::conflict("server_locked", format!("The server cannot be {wish}: it is locked"))
                .detail(format!("locked{why}"))
                .next("unlock it", Some(format!("nephos server unlock {name}"))))
        }
        _ => Ok(()),
    }
}

async fn delete(compute: Arc<Compute>, session: Session, input: DeleteServer) -> Result<Started<ops::Server>> {
    let record = session.find::<Server>(&input.server)?;
    let kept = input.keep_hours.map(|hours| Duration::from_secs(hours.get() * 3600)).or(compute.settings.trash);
    // What could not be made, or is in the trash already, is of no use there.
    let trashable = record.body.life == Life::Made && record.body.trashed.is_none();
    match kept.filter(|_| !input.now && trashable) {
        Some(kept) => trash(&compute, &session, &input, kept).await,
        None => delete_for_good(&compute, &session, &input).await,
    }
}

fn unprotected(record: &Record<Server>) -> Result<()> {
    if !record.body.protected {
        return Ok(());
    }
    let name = record.meta.name.as_ref().map_or_else(|| record.meta.id.to_string(), ToString::to_string);
    Err(Error::conflict("server_protected", "The server is protected from deletion")
        .next("take the protection away first", Some(format!("nephos server update {name} --protected false"))))
}

async fn trash(
    compute: &Compute,
    session: &Session,
    input: &DeleteServer,
    kept: Duration,
) -> Result<Started<ops::Server>> {
    let from = &[
        ServerState::Active,
        ServerState::Stopped,
        ServerState::Paused,
        ServerState::Suspended,
        ServerState::Rescued,
        ServerState::Shelved,
        ServerState::Error,
        ServerState::Unknown,
    ];
    let wish = Wish { done: "deleted", task: "trash", from, needs: None, settled: false };
    actions::act(compute, session, &input.server, &wish, TRASH, |transaction, record, _, _| {
        unprotected(record)?;
        Ok((transaction, Trash { until: Timestamp::now().plus(kept) }))
    })
    .await
}

async fn delete_for_good(compute: &Compute, session: &Session, input: &DeleteServer) -> Result<Started<ops::Server>> {
    let (id, workflow) = session
        .decide(|transaction| {
            let record = session.find::<Server>(&input.server)?;
            let id = record.meta.id;
            if let Some(task) = record.body.task.as_ref().filter(|task| task.name == "delete") {
                return Ok((transaction.expect(&record), (id, task.workflow)));
            }
            unlocked(session, &record, "deleted")?;
            unprotected(&record)?;
            let workflow = WorkflowId::new();
            let other = record.body.task.as_ref().map(|task| task.workflow);
            let run = compute
                .engine
                .prepare(DELETE, workflow, &DeleteInput { server: id, other })?
                .subject(id.to_string())
                .project(record.meta.project)
                .author(journal::asked_by(session));
            let mut body = record.body.clone();
            body.task = Some(Task { name: "delete".to_owned(), workflow });
            Ok((journal::start(transaction.update(&record, body), run), (id, workflow)))
        })
        .await?;
    let answer = Started { workflow, resource: compute.shown(id)? };
    compute.engine.kick(workflow);
    Ok(answer)
}

/// Begins an action that changes nothing but whether the server runs.
pub(super) async fn power(
    compute: &Compute,
    session: &Session,
    reference: &Reference,
    action: Action,
    wish: &Wish,
) -> Result<Started<ops::Server>> {
    let (id, workflow) = session
        .decide(|transaction| {
            let record = session.find::<Server>(reference)?;
            let id = record.meta.id;
            actions::ready(compute, session, &record, wish)?;
            let workflow = WorkflowId::new();
            let input = PowerInput { server: id, action, before: record.body.wanted };
            let run = compute
                .engine
                .prepare(action.workflow(), workflow, &input)?
                .subject(id.to_string())
                .project(record.meta.project)
                .author(journal::asked_by(session));
            let mut body = record.body.clone();
            body.task = Some(Task { name: action.task().to_owned(), workflow });
            Ok((journal::start(transaction.update(&record, body), run), (id, workflow)))
        })
        .await?;
    let answer = Started { workflow, resource: compute.shown(id)? };
    compute.engine.kick(workflow);
    Ok(answer)
}

async fn start(compute: Arc<Compute>, session: Session, input: StartServer) -> Result<Started<ops::Server>> {
    let from = &[ServerState::Stopped, ServerState::Unknown];
    let wish = Wish { done: "started", task: "start", from, needs: None, settled: false };
    power(&compute, &session, &input.server, Action::Start, &wish).await
}

async fn stop(compute: Arc<Compute>, session: Session, input: StopServer) -> Result<Started<ops::Server>> {
    let grace = input.grace_seconds.map_or(GRACE, |seconds| Duration::from_secs(seconds.get()));
    let grace_ms = if input.hard { 0 } else { u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) };
    let from =
        &[ServerState::Active, ServerState::Paused, ServerState::Suspended, ServerState::Rescued, ServerState::Unknown];
    let wish = Wish { done: "stopped", task: "stop", from, needs: None, settled: false };
    power(&compute, &session, &input.server, Action::Stop { grace_ms }, &wish).await
}

async fn reboot(compute: Arc<Compute>, session: Session, input: RebootServer) -> Result<Started<ops::Server>> {
    let grace_ms = if input.hard { 0 } else { u64::try_from(GRACE.as_millis()).unwrap_or(u64::MAX) };
    // Only a running server can be asked.
    let from: &[ServerState] = if input.hard {
        &[ServerState::Active, ServerState::Rescued, ServerState::Paused, ServerState::Suspended]
    } else {
        &[ServerState::Active, ServerState::Rescued]
    };
    let wish = Wish { done: "rebooted", task: "reboot", from, needs: None, settled: false };
    power(&compute, &session, &input.server, Action::Reboot { grace_ms }, &wish).await
}

async fn console(compute: Arc<Compute>, session: Session, input: OpenConsole) -> Result<Tunnel> {
    let record = session.find::<Server>(&input.server)?;
    let view = compute.view(&record)?;
    match (view.node, view.state) {
        (Some(node), ServerState::Active | ServerState::Rescued | ServerState::Building) => {
            let purpose = StreamPurpose::Console { server: record.meta.id };
            Ok(Tunnel(Box::new(compute.nodes.open_stream(node, purpose).await?)))
        }
        _ => Err(wrong_state(&record, "opened a console on", "it does not run".to_owned())),
    }
}

async fn console_log(compute: Arc<Compute>, session: Session, input: ReadConsoleLog) -> Result<Download> {
    let record = session.find::<Server>(&input.server)?;
    let Some(node) = record.body.node else {
        return Err(wrong_state(&record, "read the console log of", "it is on no node yet".to_owned()));
    };
    let max = u64::from(input.bytes.map_or(LOG_BYTES, nephos_types::Number::get_u32));
    let stream = compute.nodes.open_stream(node, StreamPurpose::ConsoleLog { server: record.meta.id, max }).await?;
    Ok(Download { body: ReaderStream::new(stream).boxed(), length: None, content_type: "text/plain; charset=utf-8" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_host_names() {
        for (name, host) in [("web-1", "web-1"), ("Größe 7", "gr--e-7"), ("--", "server"), ("ÄÖÜ", "server")] {
            assert_eq!(hostname(name), host);
        }
        assert!(hostname(&"x".repeat(200)).len() <= 63);
    }

    #[test]
    fn servers_differ_in_their_mac_addresses() {
        assert_ne!(mac(ServerId::from_bits(1)), mac(ServerId::from_bits(2)));
    }
}
