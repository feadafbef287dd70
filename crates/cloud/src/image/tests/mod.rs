//! The operations on images, through the core, on a store and a folder of their own.

mod incoming;
mod sharing;

use std::{path::PathBuf, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use nephos_auth::Policy;
use nephos_ops::{
    ByteStream, Caller, Cloud, Context, Credentials, Identity, Operation, Scope,
    image::{
        CreateImage, DeleteImage, DownloadImage, ImageFormat, ImageStatus, ListImages, ShowImage, UpdateImage,
        UploadImage,
    },
};
use nephos_store::{Kinds, Sqlite, Store};
use nephos_types::{DomainId, Error, ErrorKind, Id, ProjectId, Result, Timestamp, UserId};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::{
    CloudCore, Identify,
    core::BoxFuture,
    idempotency::Idempotency,
    identity::kinds::Project,
    journal::{StoreJournal, WorkflowRun},
};

struct Nobody;

impl Identify for Nobody {
    fn identify<'a>(&'a self, _: &'a Credentials) -> BoxFuture<'a, Result<Arc<Identity>>> {
        Box::pin(async { Err(Error::bug("not asked here")) })
    }
}

/// A cloud that has nothing but images.
struct Bench {
    data: TempDir,
    store: Store,
    images: Arc<Images>,
    cloud: Cloud,
}

impl Bench {
    async fn new() -> Self {
        Self::open(tempfile::tempdir().unwrap(), Limits::default()).await
    }

    async fn open(data: TempDir, limits: Limits) -> Self {
        Self::with(data, |settings| settings.limits = limits).await
    }

    async fn with(data: TempDir, adjust: impl FnOnce(&mut Settings)) -> Self {
        let kinds = kinds(Kinds::new().with::<Idempotency>().with::<Project>().with::<WorkflowRun>());
        let store = Store::open(Sqlite::open(data.path().join("db")).await.unwrap(), kinds).await.unwrap();
        let engine = Engine::new(StoreJournal::new(store.clone()), nephos_workflow::Config::default());
        let mut handlers = Handlers::new();
        let mut settings = Settings::new(data.path().join("image-keys"));
        adjust(&mut settings);
        let files = Stores::open(&data.path().join("images"), true, &settings).unwrap();
        let images = Images::register_with(&mut handlers, &store, &engine, files, true, settings).await.unwrap();
        let cloud = Cloud::new(Arc::new(CloudCore::new(store.clone(), Arc::new(Nobody), Policy::default(), handlers)));
        engine.recover().await.unwrap();
        Self { data, store, images, cloud }
    }

    /// Ends as a crash would, as far as files and database can tell, and starts again.
    async fn restart(self) -> Self {
        let Self { data, store, images, cloud } = self;
        images.engine.stop().await;
        drop((images, cloud));
        store.close().await.unwrap();
        Self::open(data, Limits::default()).await
    }

    /// A request by somebody with this role on this project.
    fn by(&self, project: u64, role: &str) -> Context {
        let roles = match role {
            "admin" => vec!["admin", "manager", "member", "reader"],
            "member" => vec!["member", "reader"],
            role => vec![role],
        };
        let now = Timestamp::now();
        self.cloud.context(Caller {
            identity: Some(Arc::new(Identity {
                user: UserId::from_bits(project),
                user_name: "user".parse().unwrap(),
                user_domain: DomainId::from_bits(1),
                scope: Scope::Project {
                    id: ProjectId::from_bits(project),
                    name: "project".parse().unwrap(),
                    domain: DomainId::from_bits(1),
                },
                roles: roles.into_iter().map(str::to_owned).collect(),
                issued_at: now,
                expires_at: now.plus(Duration::from_secs(60)),
                login: Default::default(),
            })),
            address: "127.0.0.1".to_owned(),
            front_end: "test",
        })
    }

    fn member(&self) -> Context {
        self.by(1, "member")
    }

    /// The images' files, finished or not.
    fn files(&self) -> Vec<PathBuf> {
        let images = self.data.path().join("images");
        [images.clone(), images.join("incoming")]
            .iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect()
    }

    async fn create(&self, input: Value) -> nephos_ops::image::Image {
        call::<CreateImage>(self.member(), input).await.unwrap()
    }

    async fn upload(&self, image: &str, body: ByteStream) -> Result<nephos_ops::image::Image> {
        let context = self.member();
        context.set_upload(body);
        call::<UploadImage>(context, json!({ "image": image })).await
    }

    async fn status(&self, image: &str) -> ImageStatus {
        call::<ShowImage>(self.member(), json!({ "image": image })).await.unwrap().status
    }

    /// Waits until an image is what it should be.
    async fn until(&self, image: &str, status: ImageStatus) {
        while self.status(image).await != status {
            tokio::task::yield_now().await;
        }
    }

    fn counters(&self) -> (i64, i64) {
        let project = ProjectId::from_bits(1);
        (self.store.counter(&images_counter(project)), self.store.counter(&bytes_counter(project)))
    }
}

async fn call<O: Operation>(context: Context, input: Value) -> Result<O::Output> {
    context.call(serde_json::from_value::<O>(input).unwrap()).await
}

fn body(content: &[u8]) -> ByteStream {
    let chunks: Vec<_> = content.chunks(10_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    Box::pin(stream::iter(chunks))
}

/// A body that stops in the middle until it is dropped.
fn stalled(content: &[u8]) -> ByteStream {
    Box::pin(body(content).chain(stream::pending()))
}

async fn content_of(context: Context, input: Value) -> Result<Vec<u8>> {
    let mut download = call::<DownloadImage>(context, input).await?;
    let mut content = vec![];
    while let Some(chunk) = download.body.next().await {
        content.extend_from_slice(&chunk.unwrap());
    }
    assert_eq!(download.length, Some(content.len() as u64));
    Ok(content)
}

#[tokio::test]
async fn an_image_goes_from_queued_to_active_and_away() {
    let bench = Bench::new().await;
    let image = bench.create(json!({ "name": "disk", "properties": { "os": "none" }, "labels": { "a": "b" } })).await;
    assert_eq!((image.status, image.format, image.size), (ImageStatus::Queued, None, None));
    let refused = content_of(bench.member(), json!({ "image": "disk" })).await.unwrap_err();
    assert_eq!((refused.kind, &*refused.code), (ErrorKind::Conflict, "image_not_active"));

    let content: Vec<u8> = (0..200_000_u32).map(|n| (n % 251) as u8).collect();
    let active = bench.upload("disk", body(&content)).await.unwrap();
    assert_eq!((active.status, active.format), (ImageStatus::Active, Some(ImageFormat::Raw)));
    assert_eq!((active.size, active.virtual_size, active.min_disk_gib), (Some(200_000), Some(200_000), 1));
    assert_eq!((active.sha256.unwrap(), active.md5.unwrap()), sums_of(&content));
    assert_eq!(bench.counters(), (1, 200_000));

    assert_eq!(content_of(bench.by(1, "reader"), json!({ "image": "disk" })).await.unwrap(), content);
    let part = json!({ "image": image.id, "offset": 199_990, "length": 100 });
    assert_eq!(content_of(bench.member(), part).await.unwrap(), content[199_990..]);
    let past = content_of(bench.member(), json!({ "image": "disk", "offset": 200_001 })).await.unwrap_err();
    assert_eq!(past.kind, ErrorKind::Invalid);
    assert_eq!(NodeImages(bench.images.clone()).open(image.id).await.unwrap().length, 200_000);

    let again = bench.upload("disk", body(&content)).await.unwrap_err();
    assert_eq!((again.kind, &*again.code), (ErrorKind::Conflict, "image_has_content"));

    call::<DeleteImage>(bench.member(), json!({ "image": "disk" })).await.unwrap();
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
    assert_eq!(bench.counters(), (0, 0));
    assert_eq!(NodeImages(bench.images.clone()).open(image.id).await.err().unwrap().kind, ErrorKind::NotFound);
    // The name is free again.
    bench.create(json!({ "name": "disk" })).await;
}

fn sums_of(content: &[u8]) -> (String, String) {
    use md5::Digest;
    let sha256 = ring::digest::digest(&ring::digest::SHA256, content);
    (hex::encode(sha256), hex::encode(md5::Md5::digest(content)))
}

#[tokio::test]
async fn content_that_is_not_acceptable_leaves_the_image_queued() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "claimed", "format": "qcow2" })).await;
    let mut backed = b"QFI\xfb\0\0\0\x03".to_vec();
    backed.resize(70_000, 1);
    let cases: [(&str, ByteStream, ErrorKind); 6] = [
        ("image_format_mismatch", body(&[0; 70_000]), ErrorKind::UnsupportedMedia),
        ("image_format_mismatch", body(&[0; 70]), ErrorKind::UnsupportedMedia),
        ("image_refused", body(&backed), ErrorKind::Invalid),
        // Refused at once: the rest is not waited for.
        ("image_refused", stalled(&backed), ErrorKind::Invalid),
        ("image_empty", body(&[]), ErrorKind::Invalid),
        (
            "upload_broken_off",
            Box::pin(stream::iter([Ok(Bytes::from_static(b"QFI\xfb")), Err(std::io::ErrorKind::UnexpectedEof.into())])),
            ErrorKind::Invalid,
        ),
    ];
    for (code, body, kind) in cases {
        let error = bench.upload("claimed", body).await.unwrap_err();
        assert_eq!((&*error.code, error.kind), (code, kind));
        assert_eq!(bench.status("claimed").await, ImageStatus::Queued);
    }
    let context = bench.member();
    context.set_upload(body(&[0; 10]));
    bench.create(json!({ "name": "summed" })).await;
    let error = call::<UploadImage>(context, json!({ "image": "summed", "sha256": "0".repeat(64) })).await.unwrap_err();
    assert_eq!(&*error.code, "image_checksum_mismatch");
    let error =
        call::<UploadImage>(bench.member(), json!({ "image": "summed", "sha256": "é".repeat(32) })).await.unwrap_err();
    assert_eq!(&*error.code, "invalid_checksum");
    let error = call::<UploadImage>(bench.member(), json!({ "image": "summed" })).await.unwrap_err();
    assert_eq!(&*error.code, "body_missing");
    assert_eq!(bench.status("summed").await, ImageStatus::Queued);
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
    assert_eq!(bench.counters(), (2, 0));
}

#[tokio::test]
async fn limits_hold() {
    let limits = Limits { size: 1000, project_images: 2, project_bytes: 1500 };
    let bench = Bench::open(tempfile::tempdir().unwrap(), limits).await;
    for name in ["a", "b"] {
        bench.create(json!({ "name": name })).await;
    }
    let third = call::<CreateImage>(bench.member(), json!({ "name": "c" })).await.unwrap_err();
    assert_eq!(third.kind, ErrorKind::Quota);
    assert_eq!(bench.upload("a", stalled(&[1; 1001])).await.unwrap_err().kind, ErrorKind::TooLarge);
    bench.upload("a", body(&[1; 1000])).await.unwrap();
    assert_eq!(bench.upload("b", body(&[1; 1000])).await.unwrap_err().kind, ErrorKind::Quota);
    assert_eq!(bench.status("b").await, ImageStatus::Queued);
    assert_eq!(bench.files().len(), 1);
    bench.upload("b", body(&[1; 500])).await.unwrap();
}

#[tokio::test]
async fn of_two_uploads_one_wins() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    let uploads: Vec<_> = (1..=8_u8).map(|n| bench.upload("disk", body(&vec![n; 100_000]))).collect();
    let outcomes = futures_util::future::join_all(uploads).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    assert!(lost.into_iter().all(|outcome| outcome.unwrap_err().kind == ErrorKind::Conflict));
    let content = content_of(bench.member(), json!({ "image": "disk" })).await.unwrap();
    assert_eq!(won.into_iter().next().unwrap().unwrap().sha256.unwrap(), sums_of(&content).0);
    assert_eq!(bench.files().len(), 1);
}

#[tokio::test]
async fn an_upload_whose_client_leaves_leaves_nothing() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    // Left after a different number of polls each time, so at every place where it waits.
    for polls in 0..40 {
        let mut upload = Box::pin(bench.upload("disk", body(&[7; 300_000])));
        let mut done = false;
        for _ in 0..polls {
            if futures_util::poll!(&mut upload).is_ready() {
                done = true;
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(upload);
        if done {
            call::<DeleteImage>(bench.member(), json!({ "image": "disk" })).await.unwrap();
            bench.create(json!({ "name": "disk" })).await;
        }
        bench.until("disk", ImageStatus::Queued).await;
    }
    // An upload that was left before it had the image may take it, and give it back, a moment later.
    let going_on = |error: &Error| &*error.code == "image_upload_goes_on";
    let mut upload = Box::pin(bench.upload("disk", stalled(&[7; 300_000])));
    while bench.status("disk").await != ImageStatus::Saving || bench.files().is_empty() {
        if let Poll::Ready(outcome) = futures_util::poll!(&mut upload) {
            assert!(going_on(&outcome.unwrap_err()));
            upload = Box::pin(bench.upload("disk", stalled(&[7; 300_000])));
        }
        tokio::task::yield_now().await;
    }
    drop(upload);
    bench.until("disk", ImageStatus::Queued).await;
    // The writer notices by itself; what it may have finished is swept away.
    while !bench.files().is_empty() {
        bench.images.sweep().await.unwrap();
        tokio::task::yield_now().await;
    }
    while let Err(error) = bench.upload("disk", body(&[7; 300_000])).await {
        assert!(going_on(&error), "{error:?}");
    }
    assert_eq!(content_of(bench.member(), json!({ "image": "disk" })).await.unwrap(), [7; 300_000]);
}

#[tokio::test]
async fn a_restart_brings_records_and_files_into_agreement() {
    let bench = Bench::new().await;
    for name in ["kept", "broken-off"] {
        bench.create(json!({ "name": name })).await;
    }
    let kept = bench.upload("kept", body(&[1; 5000])).await.unwrap();
    // Killed in the middle of an upload: a record that says so, a half file, and one that no record names.
    let half = call::<ShowImage>(bench.member(), json!({ "image": "broken-off" })).await.unwrap();
    let record = bench.store.get::<Image>(half.id).unwrap();
    let file = files::FileName::new(half.id);
    let edit = record.edit().modify(|image| image.upload = Some(file.clone()));
    bench.store.commit(Transaction::new(nephos_store::Author::new("test")).save(edit)).await.unwrap();
    let folder = bench.data.path().join("images");
    std::fs::write(folder.join("incoming/.upload-abc"), "x").unwrap();
    for name in [file.to_string(), files::FileName::new(kept.id).to_string(), "other.txt".to_owned()] {
        std::fs::write(folder.join(name), "x").unwrap();
    }
    // While the process lives, an upload's file is its own.
    assert_eq!(bench.images.sweep().await.unwrap(), 1);

    let bench = bench.restart().await;
    assert_eq!(bench.status("broken-off").await, ImageStatus::Queued);
    assert_eq!(bench.status("kept").await, ImageStatus::Active);
    assert_eq!(content_of(bench.member(), json!({ "image": "kept" })).await.unwrap(), [1; 5000]);
    let mut left: Vec<_> =
        bench.files().into_iter().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    left.sort();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.contains(&"other.txt".to_owned()));
    bench.upload("broken-off", body(&[2; 10])).await.unwrap();
}

#[tokio::test]
async fn an_image_deleted_during_its_upload_is_gone() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let upload = bench.upload(
        "disk",
        Box::pin(body(&[1; 100]).chain(stream::once(async move {
            ended.await.unwrap();
            Ok(Bytes::from_static(b"the end"))
        }))),
    );
    let delete = async {
        bench.until("disk", ImageStatus::Saving).await;
        call::<DeleteImage>(bench.member(), json!({ "image": "disk" })).await.unwrap();
        end.send(()).unwrap();
    };
    let (outcome, ()) = futures_util::join!(upload, delete);
    assert_eq!(&*outcome.unwrap_err().code, "image_deleted");
    assert_eq!(bench.files(), Vec::<PathBuf>::new());
    assert_eq!(bench.counters(), (0, 0));
}

#[tokio::test]
async fn who_sees_and_changes_what() {
    let bench = Bench::new().await;
    let admin = || bench.by(9, "admin");
    for (context, name, visibility) in [
        (bench.member(), "mine", json!({})),
        (bench.member(), "shared", json!({ "visibility": "shared", "shared_with": [ProjectId::from_bits(2)] })),
        (bench.member(), "community", json!({ "visibility": "community" })),
        (admin(), "public", json!({ "visibility": "public" })),
        // The same names in another project are other images.
        (bench.by(2, "member"), "mine", json!({})),
    ] {
        let mut input = json!({ "name": name });
        input.as_object_mut().unwrap().extend(visibility.as_object().unwrap().clone());
        call::<CreateImage>(context, input).await.unwrap();
    }
    let names = |context: Context, input: Value| async move {
        let page = call::<ListImages>(context, input).await.unwrap();
        // Sorted: ids made within one millisecond are in no order.
        let mut names: Vec<_> = page.items.iter().map(|image| image.name.to_string()).collect();
        names.sort();
        names
    };
    assert_eq!(names(bench.member(), json!({})).await, ["community", "mine", "public", "shared"]);
    // What others share is listed once it is accepted.
    assert_eq!(names(bench.by(2, "reader"), json!({})).await, ["mine", "public"]);
    assert_eq!(names(bench.by(2, "reader"), json!({ "member_status": "pending" })).await, ["shared"]);
    assert_eq!(names(bench.by(3, "reader"), json!({})).await, ["public"]);
    assert_eq!(names(bench.by(3, "reader"), json!({ "all_projects": true })).await, ["public"]);
    assert_eq!(names(bench.by(3, "reader"), json!({ "visibility": "community" })).await, ["community"]);
    assert_eq!(names(bench.by(3, "reader"), json!({ "visibility": "private" })).await, [] as [&str; 0]);
    assert_eq!(names(bench.by(2, "reader"), json!({ "name": "mine" })).await, ["mine"]);
    assert_eq!(names(admin(), json!({ "all_projects": true })).await.len(), 5);
    assert_eq!(names(bench.member(), json!({ "status": "active" })).await, [] as [&str; 0]);

    let own = |name: &str| {
        let input = json!({ "image": name });
        let context = bench.member();
        async move { call::<ShowImage>(context, input).await.unwrap().id }
    };
    let (private, shared, community) = (own("mine").await, own("shared").await, own("community").await);
    // What may not be seen is not there, in the same words as what does not exist.
    for (image, kind) in [
        (private.to_string(), ErrorKind::NotFound),
        (ImageId::new().to_string(), ErrorKind::NotFound),
        (shared.to_string(), ErrorKind::Forbidden),
        (community.to_string(), ErrorKind::Forbidden),
        ("public".to_owned(), ErrorKind::Forbidden),
    ] {
        let stranger = || bench.by(2, "member");
        let input = json!({ "image": image });
        assert_eq!(call::<ShowImage>(stranger(), input.clone()).await.is_err(), kind == ErrorKind::NotFound);
        assert_eq!(call::<UpdateImage>(stranger(), input.clone()).await.unwrap_err().kind, kind, "{image}");
        assert_eq!(call::<DeleteImage>(stranger(), input.clone()).await.unwrap_err().kind, kind, "{image}");
        let context = stranger();
        context.set_upload(body(&[1]));
        assert_eq!(call::<UploadImage>(context, input.clone()).await.unwrap_err().kind, kind, "{image}");
        let read = call::<DownloadImage>(stranger(), input).await.err().unwrap().kind;
        assert_eq!(read, if kind == ErrorKind::Forbidden { ErrorKind::Conflict } else { kind }, "{image}");
    }
    // Who it is shared with is the owner's business.
    let seen = call::<ShowImage>(bench.by(2, "reader"), json!({ "image": shared })).await.unwrap();
    assert!(seen.shared_with.is_empty());

    // Without the role.
    let denied = |error: Error| assert_eq!(error.kind, ErrorKind::Forbidden, "{error:?}");
    let reader = || bench.by(1, "reader");
    denied(call::<CreateImage>(reader(), json!({ "name": "x" })).await.unwrap_err());
    denied(call::<UpdateImage>(reader(), json!({ "image": "mine" })).await.unwrap_err());
    denied(call::<DeleteImage>(reader(), json!({ "image": "mine" })).await.unwrap_err());
    denied(call::<UploadImage>(reader(), json!({ "image": "mine" })).await.unwrap_err());
    let nobody = || bench.by(1, "nothing");
    denied(call::<ListImages>(nobody(), json!({})).await.unwrap_err());
    denied(call::<ShowImage>(nobody(), json!({ "image": "public" })).await.unwrap_err());
    denied(call::<DownloadImage>(nobody(), json!({ "image": "public" })).await.err().unwrap());
    denied(call::<CreateImage>(bench.member(), json!({ "name": "x", "visibility": "public" })).await.unwrap_err());
    denied(call::<UpdateImage>(bench.member(), json!({ "image": "mine", "visibility": "public" })).await.unwrap_err());
}

#[tokio::test]
async fn names_are_unique_and_updates_keep_that() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "a" })).await;
    bench.create(json!({ "name": "b" })).await;
    let taken = |error: Error| assert_eq!((error.kind, &*error.code), (ErrorKind::Conflict, "name_taken"));
    taken(call::<CreateImage>(bench.member(), json!({ "name": "a" })).await.unwrap_err());
    taken(call::<UpdateImage>(bench.member(), json!({ "image": "b", "name": "a" })).await.unwrap_err());
    let admin = || bench.by(9, "admin");
    call::<CreateImage>(admin(), json!({ "name": "a", "visibility": "public" })).await.unwrap();
    // A name means one's own image before a public one; two public ones of one name cannot be.
    let a = call::<ShowImage>(bench.member(), json!({ "image": "a" })).await.unwrap();
    assert_eq!(a.project, ProjectId::from_bits(1));
    taken(call::<UpdateImage>(admin(), json!({ "image": a.id, "visibility": "public" })).await.unwrap_err());
    let renamed = json!({ "image": "a", "name": "c", "protected": true, "min_memory_mib": 64, "labels": { "x": "y" } });
    let updated = call::<UpdateImage>(bench.member(), renamed).await.unwrap();
    assert_eq!((updated.name.as_str(), updated.protected, updated.min_memory_mib), ("c", true, 64));
    let a = call::<ShowImage>(bench.member(), json!({ "image": "a" })).await.unwrap();
    assert_eq!(a.project, ProjectId::from_bits(9));
    let refused = call::<DeleteImage>(bench.member(), json!({ "image": "c" })).await.unwrap_err();
    assert_eq!(&*refused.code, "image_protected");
    bench.upload("c", body(&[1; 1000])).await.unwrap();
    let refused = call::<UpdateImage>(bench.member(), json!({ "image": "c", "min_disk_gib": 0 })).await.unwrap_err();
    assert_eq!(&*refused.code, "min_disk_too_small");
    call::<UpdateImage>(bench.member(), json!({ "image": "c", "protected": false, "name": "a" })).await.unwrap();
    call::<DeleteImage>(bench.member(), json!({ "image": "a" })).await.unwrap();
}

#[tokio::test]
async fn lists_are_paged_over_both_own_and_public_images() {
    let bench = Bench::new().await;
    for n in 0..7 {
        let context = if n % 2 == 0 { bench.by(9, "admin") } else { bench.member() };
        let visibility = if n % 2 == 0 { "public" } else { "private" };
        call::<CreateImage>(context, json!({ "name": format!("i{n}"), "visibility": visibility })).await.unwrap();
    }
    let (mut names, mut after) = (vec![], None);
    loop {
        let page = call::<ListImages>(bench.member(), json!({ "limit": 2, "after": after })).await.unwrap();
        assert!(page.items.len() <= 2);
        names.extend(page.items.iter().map(|image| image.name.to_string()));
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let all = call::<ListImages>(bench.member(), json!({})).await.unwrap();
    assert_eq!(names, all.items.iter().map(|image| image.name.to_string()).collect::<Vec<_>>());
    names.sort();
    assert_eq!(names, ["i0", "i1", "i2", "i3", "i4", "i5", "i6"]);
}

#[tokio::test]
async fn a_large_sparse_upload_takes_neither_memory_nor_disk() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk", "format": "raw" })).await;
    let chunk = Bytes::from(vec![0; 1 << 20]);
    let size = 1_u64 << 30;
    // One chunk, over and over: what the upload holds of it at any time is counted by its references.
    let most = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let probe = Arc::new(());
    let seen = (Arc::clone(&most), Arc::clone(&probe));
    let chunks = stream::iter(0..size >> 20).map(move |_| {
        seen.0.fetch_max(Arc::strong_count(&seen.1), std::sync::atomic::Ordering::Relaxed);
        Ok(Bytes::from_owner(Held { chunk: chunk.clone(), _probe: Arc::clone(&seen.1) }))
    });
    let active = bench.upload("disk", Box::pin(chunks)).await.unwrap();
    assert_eq!((active.size, active.virtual_size), (Some(size), Some(size)));
    let most = most.load(std::sync::atomic::Ordering::Relaxed);
    assert!(most < 12, "{most} chunks were held at a time");
    let file = std::fs::metadata(bench.files().pop().unwrap()).unwrap();
    assert_eq!(file.len(), size);
    assert!(file.blocks() * 512 < 1 << 20, "{} blocks", file.blocks());
}

/// A chunk that is counted while it lives.
struct Held {
    chunk: Bytes,
    _probe: Arc<()>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.chunk
    }
}

#[tokio::test]
async fn an_image_that_is_still_to_be_fetched_stays() {
    let bench = Bench::new().await;
    let image = bench.create(json!({ "name": "a" })).await.id;
    let commit = async |change: fn(Transaction, ImageId) -> Transaction| {
        let transaction = Transaction::new(nephos_store::Author::new("test"));
        bench.store.commit(change(transaction, image)).await.unwrap();
    };
    commit(hold).await;
    commit(hold).await;
    let delete = async || call::<DeleteImage>(bench.member(), json!({ "image": "a" })).await;
    let refused = delete().await.unwrap_err();
    assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Conflict, "image_in_use"));
    assert!(refused.detail.starts_with("2 "), "{refused:?}");
    commit(let_go).await;
    assert_eq!(delete().await.unwrap_err().code, "image_in_use");
    commit(let_go).await;
    delete().await.unwrap();
    assert_eq!(bench.store.counter(&wanted_counter(image)), 0);
}
