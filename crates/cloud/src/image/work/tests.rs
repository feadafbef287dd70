//! Every fault at every step: in the end the image has its content, or is as it was, and no file is left over.

use std::collections::BTreeMap;

use futures_util::future::BoxFuture;
use nephos_ops::image::{ImageStatus, Properties, Visibility};
use nephos_store::{Author, Draft, Kinds, Query, Sqlite, Store};
use nephos_types::{Id, ProjectId};
use nephos_workflow::{
    Config,
    faults::{self, End, Scenario},
};
use serde_json::Value;

use super::*;
use crate::{
    core::Handlers,
    image::{Settings, kinds, stores::Stores},
    journal::{Engine, StoreJournal, WorkflowRun},
};

/// An image of which a file has arrived.
struct Arrived {
    content: Vec<u8>,
    id: ImageId,
    file: FileName,
    output: FileName,
}

impl Arrived {
    fn new(content: Vec<u8>) -> Self {
        let id = ImageId::new();
        Self { content, id, file: FileName::new(id), output: FileName::new(id) }
    }
}

struct World {
    folder: tempfile::TempDir,
    store: Store,
    images: Arc<Images>,
}

impl World {
    fn files(&self) -> Vec<String> {
        let images = self.folder.path().join("images");
        let files = [images.clone(), images.join("incoming")].into_iter().flat_map(|folder| folder.read_dir().unwrap());
        files
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.path().is_file())
            .map(|entry| entry.path().display().to_string())
            .collect()
    }
}

impl Scenario for Arrived {
    type Journal = StoreJournal;
    type World = World;

    fn fresh(&self) -> BoxFuture<'_, (StoreJournal, World)> {
        Box::pin(async move {
            let folder = tempfile::tempdir().unwrap();
            let backend = Sqlite::open(folder.path().join("db")).await.unwrap();
            let store = Store::open(backend, kinds(Kinds::new().with::<WorkflowRun>())).await.unwrap();
            let engine = Engine::new(StoreJournal::new(store.clone()), Config::default());
            let settings = Settings::new(folder.path().join("keys"));
            let files = Stores::open(&folder.path().join("images"), true, &settings).unwrap();
            let mut handlers = Handlers::new();
            let images = Images::register_with(&mut handlers, &store, &engine, files, true, settings).await.unwrap();
            let work = Incoming::Work {
                file: self.file.clone(),
                output: self.output.clone(),
                workflow: WorkflowId::new(),
                charged: 0,
            };
            let image = Image {
                claimed: None,
                upload: None,
                incoming: Some(work),
                content: None,
                original: None,
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
            let draft = Draft::new(self.id, image).project(ProjectId::from_bits(1));
            store.commit(Transaction::new(Author::new("test")).create(draft)).await.unwrap();
            std::fs::write(images.files.spool().path(&self.file), &self.content).unwrap();
            (StoreJournal::new(store.clone()), World { folder, store, images })
        })
    }

    fn definitions(&self, _: &StoreJournal, world: &World) -> Vec<Definition<Effects>> {
        vec![definition(CONVERT, &world.images)]
    }

    fn settle<'a>(&'a self, _: &'a StoreJournal, _: &'a World) -> BoxFuture<'a, ()> {
        // The database and the files are real ones, and take real time.
        Box::pin(tokio::time::sleep(Duration::from_millis(5)))
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn input(&self) -> Value {
        let input =
            Input { image: self.id, file: self.file.clone(), output: self.output.clone(), url: None, sha256: None };
        serde_json::to_value(input).unwrap()
    }

    fn check(&self, _: &StoreJournal, world: &World, end: End) -> Result<(), String> {
        let record = world.store.get::<Image>(self.id).ok_or("the image is gone")?;
        let size = world.store.counter(&bytes_counter(ProjectId::from_bits(1)));
        let files = world.files();
        let status = record.body.status();
        let right = match end {
            End::Whole => {
                let content = record.body.content.as_ref().ok_or("it has no content")?;
                status == ImageStatus::Active
                    && i64::try_from(content.size) == Ok(size)
                    && files.len() == 1
                    && files[0].ends_with(&format!("images/{}", content.file))
            }
            End::Nothing => status == ImageStatus::Queued && size == 0 && files.is_empty(),
        };
        let runs = world.store.list::<WorkflowRun>(&Query::all()).items;
        let errors = runs.iter().filter_map(|run| run.body.0.error.as_ref().map(|error| error.chain()));
        let errors: Vec<String> = errors.collect();
        if right {
            Ok(())
        } else {
            Err(format!("it is {status:?}, takes {size} bytes, there is {files:?}, and errors {errors:?}"))
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fault_leaves_half_an_image() {
    let report = faults::check(&Arrived::new(vec![7; 10_000])).await;
    assert!(report.runs > 50, "{report}");
    report.assert();
}
