//! `image.import` and `image.convert`: make an image's content of what came from elsewhere, in parts, or in a format that
//! servers do not run from.
//!
//! The image's record names the workflow and both files (as it came, and what it may be converted to) before they
//! appear, so that a sweep leaves them alone exactly as long as the workflow has the image. Each step can be called
//! again: it makes its file anew.

use std::{fs::File, io, path::Path, sync::Arc, time::Duration};

use nephos_ops::{compute::Fault, image::ImageFormat};
use nephos_sandbox::{Given, Limits as SandboxLimits, Sandbox};
use nephos_store::{Bound, Record, Transaction};
use nephos_types::{Bytes, Error, ImageId, Result, Timestamp, WorkflowId};
use nephos_workflow::{Definition, Done, Failure, Retry, StepContext};
use serde::{Deserialize, Serialize};

use super::{
    Held, Image, Images, bytes_counter, fetch,
    files::FileName,
    format,
    inspect::{Inspector, check_sum},
    kind::{Content, Incoming},
    signature,
};
use crate::{
    journal::{self, Effects},
    session::Session,
};

/// The workflow for what is fetched.
const IMPORT: &str = "image.import";
/// The workflow for what was uploaded.
const CONVERT: &str = "image.convert";
/// How long fetching may take, and each of the other steps.
const FETCH_WITHIN: Duration = Duration::from_secs(6 * 3600);
const STEP_WITHIN: Duration = Duration::from_secs(2 * 3600);
/// Bounds on `qemu-img` besides the size of what it writes.
const CPU_SECONDS: u64 = 3600;
const MEMORY: Bytes = Bytes::mib(2048);
/// What a qcow2 needs besides its data: an eighth, and a little.
const OVERHEAD: u64 = 64 << 20;
/// Bytes hashed at a time.
const CHUNK: usize = 1 << 20;

/// What a run is given.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Input {
    image: ImageId,
    /// The file as it comes.
    file: FileName,
    /// The file that it may be converted to.
    output: FileName,
    url: Option<String>,
    sha256: Option<String>,
}

type Answer<T> = Result<Done<T, Effects>, Failure>;

pub(super) fn register(images: &Arc<Images>) -> Result<()> {
    images.engine.register(definition(IMPORT, images))?;
    images.engine.register(definition(CONVERT, images))
}

/// Hands an image's file (or URL) to a workflow, in the transaction that changes the image's record.
pub(super) fn start(
    images: &Images,
    session: &Session,
    transaction: Transaction,
    record: &Record<Image>,
    (file, url, sha256): (FileName, Option<String>, Option<String>),
) -> Result<(Transaction, WorkflowId)> {
    let (id, workflow) = (record.meta.id, WorkflowId::new());
    let output = FileName::new(id);
    let name = if url.is_some() { IMPORT } else { CONVERT };
    let input = Input { image: id, file: file.clone(), output: output.clone(), url, sha256 };
    let run = images
        .engine
        .prepare(name, workflow, &input)?
        .subject(id.to_string())
        .project(record.meta.project)
        .author(journal::asked_by(session));
    let edit = record.edit().modify(|image| {
        image.upload = None;
        image.fault = None;
        image.incoming = Some(Incoming::Work { file, output, workflow, charged: 0 });
    });
    Ok((journal::start(transaction.save(edit), run), workflow))
}

fn definition(name: &'static str, images: &Arc<Images>) -> Definition<Effects> {
    let held = Held::of(images);
    let mut definition = Definition::builder::<Input>(name);
    let step = |held: &Held| held.clone();

    // Whatever fails, the first step's undo gives the image back.
    let (doing, undoing) = (step(&held), step(&held));
    let first = if name == IMPORT { "fetch" } else { "take" };
    definition
        .step(first, move |context| {
            let held = doing.clone();
            async move { fetch(&*held.get()?, &context).await }
        })
        .undo(move |context, _: Option<()>| {
            let held = undoing.clone();
            async move { give_back(&*held.get()?, &context, name).await }
        })
        .retry(Retry::attempts(3))
        .call_limit(FETCH_WITHIN)
        .add();

    let doing = step(&held);
    let inspected = definition
        .step("inspect", move |context| {
            let held = doing.clone();
            async move { inspect(held.get()?, &context).await }
        })
        .call_limit(STEP_WITHIN)
        .add();

    let doing = step(&held);
    definition
        .step("convert", move |context| {
            let held = doing.clone();
            async move {
                let inspected = context.get(inspected)?;
                convert(&*held.get()?, &context, &inspected).await
            }
        })
        .retry(Retry::attempts(2))
        .call_limit(STEP_WITHIN)
        .add();

    let doing = step(&held);
    let checked = definition
        .step("check", move |context| {
            let held = doing.clone();
            async move {
                let inspected = context.get(inspected)?;
                check(held.get()?, &context, name, inspected).await
            }
        })
        .call_limit(STEP_WITHIN)
        .add();

    let doing = step(&held);
    definition
        .step("publish", move |context: StepContext<Input>| {
            let held = doing.clone();
            async move {
                let (original, content) = (context.get(inspected)?, context.get(checked)?);
                publish(&*held.get()?, &context, name, original, content).await
            }
        })
        .no_return()
        .call_limit(STEP_WITHIN)
        .add();

    definition.build()
}

/// The image, if this run still works on it.
fn own(images: &Images, context: &StepContext<Input>) -> Result<Arc<Record<Image>>, Failure> {
    let id = context.input().image;
    // The file's name is never given again, so it says whose work this is.
    let record = images.store.get::<Image>(id).filter(
        |record| matches!(&record.body.incoming, Some(Incoming::Work { file, .. }) if *file == context.input().file),
    );
    record.ok_or_else(|| Failure::fatal(Error::conflict("image_deleted", "The image was deleted meanwhile")))
}

async fn fetch(images: &Images, context: &StepContext<Input>) -> Answer<()> {
    own(images, context)?;
    let input = context.input();
    if let Some(url) = &input.url {
        let file = images.files.spool().create(&input.file)?;
        let show = |done: u64, total: Option<u64>| {
            let percent = total.filter(|total| *total > 0).and_then(|total| u8::try_from(done * 100 / total).ok());
            context.progress(percent, format!("fetched {}", Bytes(done)));
        };
        fetch::download(url, &images.settings.import, images.settings.limits.size, file, show).await?;
    }
    Ok(Done::value(()))
}

/// Runs what blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|error| Error::internal("A step of an import ended", error))?
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::conflict("upload_lost", "What was uploaded is not here any more")
            .detail("another process of the control plane, with a folder of its own, has it")
            .next("upload or import again", None),
        _ => Error::internal("An image's file cannot be read", error),
    })
}

/// What a file is, with its checksums; as an upload in one request would have been judged.
fn judge(path: &Path, file: FileName, claim: Option<ImageFormat>, most: u64) -> Result<Content> {
    let source = open(path)?;
    format::recognise(&source, claim)?;
    let mut inspector = Inspector::new(claim, None, most);
    each_chunk(&source, 0, u64::MAX, |chunk| inspector.chunk(chunk))?;
    inspector.end(file, &source)
}

/// Reads a part of a file, to its end at most.
fn each_chunk(source: &File, at: u64, length: u64, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < length {
        let most = usize::try_from(length - done).unwrap_or(CHUNK).min(CHUNK);
        let read = source
            .read_at(buffer.get_mut(..most).unwrap_or_default(), at + done)
            .map_err(|error| Error::internal("An image's file cannot be read", error))?;
        if read == 0 {
            break;
        }
        each(buffer.get(..read).unwrap_or_default())?;
        done += read as u64;
    }
    Ok(())
}

async fn inspect(images: Arc<Images>, context: &StepContext<Input>) -> Answer<Content> {
    let record = own(&images, context)?;
    context.progress(None, "checking what it is");
    let Input { file, sha256, .. } = context.input().clone();
    let path = images.files.spool().path(&file);
    let content = blocking(move || {
        let content = judge(&path, file, record.body.claimed, images.settings.limits.size)?;
        check_sum(sha256.as_deref(), &content.sha256)?;
        if content.format == ImageFormat::Ova {
            check_manifest(&path)?;
        }
        signature::check(&images.settings.trusted_keys, &record.body.properties, &path)?;
        Ok(content)
    });
    Ok(Done::value(content.await?))
}

/// An appliance's manifest must be right about everything that it names.
fn check_manifest(path: &Path) -> Result<()> {
    let source = open(path)?;
    for stated in format::appliance(&source)?.checksums {
        let mut sum = ring::digest::Context::new(stated.algorithm);
        each_chunk(&source, stated.at, stated.size, |chunk| {
            sum.update(chunk);
            Ok(())
        })?;
        if hex::encode(sum.finish()) != stated.sum {
            return Err(Error::invalid("image_checksum_mismatch", "The appliance is not what its manifest says")
                .detail(format!("the checksum of `{}` is another", stated.name)));
        }
    }
    Ok(())
}

/// What `qemu-img` is told to read: never a name or a format that it would have to find out.
fn source_arguments(source: &File, format: ImageFormat) -> Result<Vec<String>> {
    let plain = |name: &str| Ok(["-f", name, "/from"].map(str::to_owned).into());
    match format {
        ImageFormat::Vmdk => plain("vmdk"),
        ImageFormat::Vdi => plain("vdi"),
        ImageFormat::Vhd => plain("vpc"),
        ImageFormat::Vhdx => plain("vhdx"),
        ImageFormat::Ova => {
            let appliance = format::appliance(source)?;
            let disk = format!(
                "driver=vmdk,file.driver=raw,file.offset={},file.size={},file.file.driver=file,file.file.filename=/from",
                appliance.disk_at, appliance.disk_size
            );
            Ok(vec!["--image-opts".to_owned(), disk])
        }
        _ => Err(Error::bug(format!("{} is not converted", format.name()))),
    }
}

async fn convert(images: &Images, context: &StepContext<Input>, original: &Content) -> Answer<()> {
    own(images, context)?;
    if !original.format.is_converted() {
        return Ok(Done::value(()));
    }
    context.progress(None, format!("converting {} to qcow2", original.format.name()));
    let spool = images.files.spool();
    let (from, to) = (spool.path(&context.input().file), spool.path(&context.input().output));
    let source = source_arguments(&open(&from)?, original.format)?;
    let file = spool.create(&context.input().output)?;
    let arguments: Vec<String> = ["convert", "-q", "-O", "qcow2"]
        .map(str::to_owned)
        .into_iter()
        .chain(source)
        .chain(["/to".to_owned()])
        .collect();
    let largest = original.virtual_size.saturating_add(original.virtual_size / 8 + OVERHEAD);
    let files = [Given { name: "from", path: &from, writable: false }, Given { name: "to", path: &to, writable: true }];
    qemu_img(&arguments, &files, largest.min(images.settings.limits.size)).await?;
    file.sync_all().map_err(|error| Error::internal("The converted image could not be written", error))?;
    Ok(Done::value(()))
}

/// Runs `qemu-img` on a stranger's file.
async fn qemu_img(arguments: &[String], files: &[Given<'_>], largest: u64) -> Result<()> {
    let limits =
        SandboxLimits { cpu_seconds: CPU_SECONDS, memory: MEMORY, file_size: Bytes(largest), time: STEP_WITHIN };
    let output = Sandbox { program: "qemu-img", arguments, files, limits }.run().await?;
    if output.success {
        return Ok(());
    }
    Err(Error::invalid("image_not_convertible", "The image could not be converted")
        .detail(format!("qemu-img: {}; {}", output.ended, output.stderr.chars().take(500).collect::<String>()))
        .next("convert it yourself (qemu-img convert -O qcow2 FILE FILE.qcow2), and upload the result", None))
}

/// What is to be published: what it was converted to, checked like a stranger's file, or what came. The project's quota
/// is charged with it here, so that publishing cannot be refused.
async fn check(images: Arc<Images>, context: &StepContext<Input>, name: &str, original: Content) -> Answer<Content> {
    own(&images, context)?;
    let kept = if images.settings.keep_originals { original.size } else { 0 };
    let (content, size) = if original.format.is_converted() {
        let content = check_converted(&images, context).await?;
        let size = content.size.saturating_add(kept);
        (content, size)
    } else {
        let size = original.size;
        (original, size)
    };
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let record = own(&images, context)?;
    let more = size.saturating_sub(record.body.charged_bytes());
    let mut transaction = journal::effects(name, context.run_id());
    if let Some(project) = record.meta.project {
        let most = Bound::AtMost(images.settings.limits.project_bytes);
        transaction = transaction.add(bytes_counter(project), more, most);
    }
    let edit = record.edit().modify(|image| {
        if let Some(Incoming::Work { charged, .. }) = &mut image.incoming {
            *charged = size;
        }
    });
    Ok(Done::value(content).with(Some(transaction.save(edit))))
}

async fn check_converted(images: &Images, context: &StepContext<Input>) -> Result<Content> {
    context.progress(None, "checking the converted image");
    let output = context.input().output.clone();
    let path = images.files.spool().path(&output);
    let arguments = ["check", "-q", "-f", "qcow2", "/image"].map(str::to_owned);
    let given = [Given { name: "image", path: &path, writable: false }];
    qemu_img(&arguments, &given, 0).await?;
    let most = images.settings.limits.size;
    let judged = path.clone();
    blocking(move || judge(&judged, output, Some(ImageFormat::Qcow2), most)).await
}

async fn publish(
    images: &Images,
    context: &StepContext<Input>,
    name: &str,
    original: Content,
    content: Content,
) -> Answer<()> {
    let Ok(record) = own(images, context) else {
        // Deleted: there is nothing to publish for.
        remove_files(images, context).await?;
        return Ok(Done::value(()));
    };
    let converted = original.file != content.file;
    let keep = converted && images.settings.keep_originals;
    let (mut original, mut content) = (original, content);
    content.store = Some(images.files.publish(&content.file).await?);
    if keep {
        original.store = Some(images.files.publish(&original.file).await?);
    } else if converted {
        // Not needed if this is called again.
        images.files.spool().remove(&original.file).await?;
    }
    let mut body = record.body.clone();
    body.min_disk_gib = body.min_disk_gib.max(content.disk_gib());
    body.incoming = None;
    body.fault = None;
    body.content = Some(content);
    body.original = keep.then_some(original);
    Ok(Done::value(()).with(Some(journal::effects(name, context.run_id()).update(&record, body))))
}

/// The image is queued again and says why; then its files go.
async fn give_back(images: &Images, context: &StepContext<Input>, name: &str) -> Answer<()> {
    if let Ok(record) = own(images, context) {
        let mut body = record.body.clone();
        body.incoming = None;
        body.fault = context.failure().map(|error| Fault::of(error, Timestamp::now()));
        let mut transaction = journal::effects(name, context.run_id()).update(&record, body);
        if let Some(project) = record.meta.project {
            transaction = transaction.add(bytes_counter(project), -record.body.charged_bytes(), Bound::Any);
        }
        return Ok(Done::after(Duration::ZERO).with(Some(transaction)));
    }
    remove_files(images, context).await?;
    Ok(Done::value(()))
}

/// Removes the run's files, unless the image has them.
async fn remove_files(images: &Images, context: &StepContext<Input>) -> Result<()> {
    let record = images.store.get::<Image>(context.input().image);
    for file in [&context.input().file, &context.input().output] {
        if record.as_ref().is_none_or(|record| !record.body.names(file, None)) {
            images.files.spool().remove(file).await?;
            images.files.remove(file).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
