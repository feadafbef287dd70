//! Every fault at every step of a move: in the end the image can be read where its record says, and no file is left over.

use std::collections::BTreeMap;

use futures_util::{TryStreamExt, future::BoxFuture};
use nephos_ops::image::{ImageFormat, Properties, Visibility};
use nephos_store::{Author, Draft, Kinds, Sqlite, Store};
use nephos_types::{Id, ProjectId};
use nephos_workflow::{
    Config,
    faults::{self, End, Scenario},
};
use serde_json::Value;

use super::*;
use crate::{
    image::{
        Folder, Settings,
        files::{INCOMING, ImageStore},
        kinds,
        spool::Spool,
        stores::Stores,
    },
    journal::{Engine, StoreJournal, WorkflowRun},
};

/// An image and its original, in the first of two stores.
struct Moved {
    id: ImageId,
    bytes: Vec<u8>,
    files: [FileName; 2],
}

struct World {
    folder: tempfile::TempDir,
    store: Store,
    images: Arc<Images>,
}

impl World {
    fn files(&self) -> Vec<String> {
        let folders = ["images", "bucket", "images/incoming"].map(|name| self.folder.path().join(name));
        let entries = folders.into_iter().flat_map(|folder| folder.read_dir().unwrap()).map(|entry| entry.unwrap());
        let mut files: Vec<String> = entries
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.path().strip_prefix(self.folder.path()).unwrap().display().to_string())
            .collect();
        files.sort();
        files
    }
}

impl Scenario for Moved {
    type Journal = StoreJournal;
    type World = World;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, World)> {
        Box::pin(async move {
            let folder = tempfile::tempdir().unwrap();
            let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
            let store = Store::open(backend, kinds(Kinds::new().with::<WorkflowRun>())).await.unwrap();
            let engine = Engine::new(StoreJournal::new(store.clone()), Config::default());
            let path = folder.path().join("images");
            let first = Folder::open(&path).unwrap();
            let spool = || Spool::join(path.join(INCOMING)).unwrap();
            let second = Folder::beside(folder.path().join("bucket"), spool());
            let all: [(_, Arc<dyn ImageStore>); 2] =
                [(StoreKind::Files, Arc::new(first)), (StoreKind::S3, Arc::new(second))];
            let files = Stores::of(all.into(), StoreKind::Files, spool()).unwrap();
            let settings = Settings::new(folder.path().join("keys"));
            let mut handlers = Handlers::new();
            let images = Images::register_with(&mut handlers, &store, &engine, files, true, settings).await.unwrap();
            let content = |file: &FileName, store| Content {
                file: file.clone(),
                format: ImageFormat::Raw,
                size: self.bytes.len() as u64,
                virtual_size: self.bytes.len() as u64,
                sha256: hex::encode(ring::digest::digest(&ring::digest::SHA256, &self.bytes)),
                md5: String::new(),
                frozen: None,
                store,
            };
            let image = Image {
                claimed: None,
                upload: None,
                incoming: None,
                content: Some(content(&self.files[0], Some(StoreKind::Files))),
                // From before there were several.
                original: Some(content(&self.files[1], None)),
                moving: None,
                deactivated: false,
                fault: None,
                visibility: Visibility::Private,
                shared_with: Default::default(),
                answers: BTreeMap::new(),
                protected: false,
                min_disk_gib: 0,
                min_memory_mib: 0,
                properties: Properties::default(),
                tags: Default::default(),
            };
            for file in &self.files {
                std::fs::write(path.join(file.to_string()), &self.bytes).unwrap();
            }
            let draft = Draft::new(self.id, image).project(ProjectId::from_bits(1));
            store.commit(Transaction::new(Author::new("test")).create(draft)).await.unwrap();
            (StoreJournal::new(store.clone()), World { folder, store, images })
        })
    }

    fn definitions(&self, _: &StoreJournal, world: &World) -> Vec<Definition<Effects>> {
        vec![definition(&world.images)]
    }

    fn settle<'a>(&'a self, _: &'a StoreJournal, _: &'a World) -> BoxFuture<'a, ()> {
        // The database and the files are real ones, and take real time.
        Box::pin(tokio::time::sleep(Duration::from_millis(5)))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn input(&self) -> Value {
        serde_json::to_value(Input { image: self.id, to: StoreKind::S3 }).unwrap()
    }

    fn prepare<'a>(&'a self, _: &'a StoreJournal, world: &'a World, workflow: WorkflowId) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let record = world.store.get::<Image>(self.id).unwrap();
            let edit = record.edit().modify(|image| image.moving = Some(Moving { to: StoreKind::S3, workflow }));
            world.store.commit(Transaction::new(Author::new("test")).save(edit)).await.unwrap();
        })
    }

    fn check(&self, _: &StoreJournal, world: &World, end: End) -> Result<(), String> {
        let record = world.store.get::<Image>(self.id).ok_or("the image is gone")?;
        let (place, store) = match end {
            End::Whole => ("bucket", StoreKind::S3),
            End::Nothing => ("images", StoreKind::Files),
        };
        let mut expected = self.files.each_ref().map(|file| format!("{place}/{file}"));
        expected.sort();
        let files = world.files();
        let body = &record.body;
        let found: Vec<Option<StoreKind>> = contents(body).map(|content| content.store).collect();
        // Finding out where the second one is changes nothing.
        let right = found[0] == Some(store) && found[1].is_none_or(|found| found == store);
        if files == expected && right && body.moving.is_none() {
            Ok(())
        } else {
            Err(format!("{end:?}: it is in {found:?}, moves to {:?}, and there is {files:?}", body.moving))
        }
    }
}

fn moved() -> Moved {
    let id = ImageId::new();
    Moved { id, bytes: vec![7; 10_000], files: [FileName::new(id), FileName::new(id)] }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_loses_an_image_that_moves() {
    let report = faults::check(&moved()).await;
    assert!(report.runs > 30, "{report}");
    report.assert();
}

/// Who reads while the content moves, or after, gets it; a sweep takes nothing that is needed; a deletion leaves nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_can_be_read_swept_and_deleted() {
    let image = moved();
    let (_, world) = image.fresh().await;
    let images = &world.images;
    images.engine.recover().await.unwrap();
    let record = || world.store.get::<Image>(image.id).unwrap();
    let read = async |content: &Content| -> Vec<u8> {
        let body = images.read(content, 0..content.size).await.unwrap();
        body.try_collect::<Vec<bytes::Bytes>>().await.unwrap().concat()
    };
    let before = record().body.clone();
    let run = WorkflowId::new();
    image.prepare(&StoreJournal::new(world.store.clone()), &world, run).await;
    // A copy that is complete, and that nobody has read from yet.
    std::fs::write(world.folder.path().join("bucket").join(image.files[0].to_string()), &image.bytes).unwrap();
    assert_eq!(images.sweep().await.unwrap(), 0, "what is on its way stays");
    let input = Input { image: image.id, to: StoreKind::S3 };
    let prepared = images.engine.prepare(NAME, run, &input).unwrap();
    world.store.commit(journal::start(Transaction::new(Author::new("test")), prepared)).await.unwrap();
    images.engine.kick(run);
    images.engine.wait(run).await.unwrap();
    assert_eq!(contents(&record().body).filter(|content| content.store == Some(StoreKind::S3)).count(), 2);
    // As somebody reads who has looked at the record before.
    for content in contents(&before) {
        assert_eq!(read(content).await, image.bytes);
    }
    // What a crash has left of the old one is not needed.
    std::fs::write(world.folder.path().join("images").join(image.files[0].to_string()), &image.bytes).unwrap();
    assert_eq!(images.sweep().await.unwrap(), 1);
    assert_eq!(world.files().len(), 2);
    for content in contents(&record().body) {
        images.files.remove_content(content, None).await.unwrap();
    }
    assert!(world.files().is_empty());
}
