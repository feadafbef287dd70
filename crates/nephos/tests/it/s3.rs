//! Images in a bucket: through the whole binary, with an S3 that is nobody's own, and moved out of it and back.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use futures_util::TryStreamExt;
use nephos_cli::client::Client;
use nephos_ops::{
    Started,
    image::{DeleteImage, DownloadImage, Image, MoveImageContent, MoveImages, ShowImage, StoreKind},
};
use nephos_testkit::{CloudProcess, Settings, until};
use nephos_types::ErrorKind;
use serde_json::json;

use crate::{
    NEPHOS,
    help::{create_server, delete_server, request, succeeded, upload_image},
};

/// moto's server of S3, which ends with the test.
struct Moto {
    process: Child,
    address: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    async fn start(python: &Path, scratch: &Path) -> Self {
        let log = scratch.join("moto.log");
        let process = Command::new(python.join("moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut moto = Self { process, address: String::new() };
        moto.address = until("moto to start", || async {
            let said = std::fs::read_to_string(&log).unwrap();
            let (url, _) = said.split_once("Running on http://")?.1.split_once('\n')?;
            Some(url.trim().trim_end_matches('/').to_owned())
        })
        .await;
        moto.ask("PUT /images");
        moto
    }

    /// Sends a request without a signature, which moto does not mind, and gives the whole answer.
    fn ask(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head =
            format!("{request} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", self.address);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{request}: {answer}");
        answer
    }

    fn objects(&self) -> usize {
        self.ask("GET /images?list-type=2").matches("<Key>cloud/img-").count()
    }
}

/// A cloud whose operator changes their mind.
struct Operator {
    cloud: CloudProcess,
    moto: Moto,
    secret: PathBuf,
}

impl Operator {
    /// Starts the cloud anew with these lines and, unless it is taken away, the bucket.
    async fn configure(&mut self, lines: &str, bucket: bool) -> (Client, Client) {
        let bucket = if bucket {
            format!(
                "[image_s3]\nendpoint = \"http://{}\"\nbucket = \"images\"\nprefix = \"cloud/\"\naccess_key = \"key\"\nsecret_key_file = {:?}\n",
                self.moto.address, self.secret
            )
        } else {
            String::new()
        };
        std::fs::create_dir_all(self.cloud.data()).unwrap();
        std::fs::write(self.cloud.data().join("nephos.toml"), format!("{lines}\n{bucket}")).unwrap();
        self.cloud.kill();
        self.cloud.start_again().await;
        (self.cloud.admin().await, self.cloud.demo().await)
    }

    /// Image files in the folder.
    fn files(&self) -> usize {
        let entries = std::fs::read_dir(self.cloud.data().join("images")).unwrap();
        entries.filter(|entry| entry.as_ref().unwrap().file_type().unwrap().is_file()).count()
    }
}

async fn content(client: &Client, image: &str) -> nephos_types::Result<Vec<u8>> {
    let body = client.download(request::<DownloadImage>(json!({ "image": image }))).await?.body;
    Ok(body.try_collect::<Vec<_>>().await.unwrap().concat())
}

/// Which store the administrator is told of.
async fn store(admin: &Client, demo: &Client, image: &str) -> StoreKind {
    let id = demo.call(request::<ShowImage>(json!({ "image": image }))).await.unwrap().id;
    admin.call(request::<ShowImage>(json!({ "image": id }))).await.unwrap().store.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn images_are_served_from_the_store_that_they_are_in() {
    let Some(python) = std::env::var_os("NEPHOS_TEST_PYTHON").map(PathBuf::from) else {
        eprintln!("\n*** NOT TESTED: images in S3 (run by `cargo xtask test`) ***\n");
        return;
    };
    let scratch = tempfile::tempdir().unwrap();
    let secret = scratch.path().join("secret");
    std::fs::write(&secret, "secret\n").unwrap();
    let moto = Moto::start(&python, scratch.path()).await;
    let mut operator = Operator { cloud: CloudProcess::new(NEPHOS, Settings::default()), moto, secret };
    let bytes: Vec<u8> = (0..3_u32 << 20).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let file = scratch.path().join("disk.raw");
    std::fs::write(&file, &bytes).unwrap();

    // Uploaded into the bucket, a server is made from there, also after a restart.
    let (_, demo) = operator.configure("", true).await;
    upload_image(&demo, "first", "raw", &file).await;
    assert_eq!((operator.moto.objects(), operator.files()), (1, 0));
    succeeded(&demo, demo.call(create_server("one", "first")).await.unwrap().workflow).await;
    delete_server(&demo, "one").await;
    let (admin, demo) = operator.configure("", true).await;
    assert_eq!(store(&admin, &demo, "first").await, StoreKind::S3);
    assert!(content(&demo, "first").await.unwrap() == bytes);

    // New ones go elsewhere; the old one is where it was.
    let (admin, demo) = operator.configure("image_store = \"files\"", true).await;
    upload_image(&demo, "second", "raw", &file).await;
    assert_eq!((operator.moto.objects(), operator.files()), (1, 1));
    assert_eq!(store(&admin, &demo, "second").await, StoreKind::Files);
    for image in ["first", "second"] {
        assert!(content(&demo, image).await.unwrap() == bytes, "{image}");
    }

    // Everything out of the bucket; only administrators may.
    let member = json!({ "to": "files" });
    let refused = operator.cloud.anonymous().call(request::<MoveImages>(member.clone())).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Unauthenticated);
    let moved = admin.call(request::<MoveImages>(member.clone())).await.unwrap();
    assert_eq!((moved.workflows.len(), moved.left), (1, 0));
    succeeded(&admin, moved.workflows[0]).await;
    assert_eq!((operator.moto.objects(), operator.files()), (0, 2));
    assert!(content(&demo, "first").await.unwrap() == bytes);
    assert!(admin.call(request::<MoveImages>(member)).await.unwrap().workflows.is_empty());

    // One back, by the command line, with the power cut in the middle.
    operator.cloud.settings().kill_at = Some("image.move-content/switch/before".to_owned());
    let (admin, _) = operator.configure("image_store = \"files\"", true).await;
    let id = admin.call(request::<ShowImage>(json!({ "image": "second" }))).await;
    assert_eq!(id.unwrap_err().kind, ErrorKind::NotFound, "it is another project's");
    let id = operator.cloud.nephos(&["image", "show", "second", "-o", "value", "-c", "id"]);
    let to = json!({ "image": id.trim(), "to": "s3" });
    let started: Started<Image> = admin.call(request::<MoveImageContent>(to)).await.unwrap();
    assert!(!operator.cloud.ended().await.success(), "it was killed");
    operator.cloud.settings().kill_at = None;
    let (admin, demo) = operator.configure("image_store = \"files\"", true).await;
    succeeded(&admin, started.workflow).await;
    assert_eq!(store(&admin, &demo, "second").await, StoreKind::S3);
    assert_eq!((operator.moto.objects(), operator.files()), (1, 1));
    assert!(content(&demo, "second").await.unwrap() == bytes);

    // With the bucket taken away too early, what is in there is missed, and nothing else.
    let (admin, demo) = operator.configure("", false).await;
    assert!(content(&demo, "first").await.unwrap() == bytes);
    let missed = content(&demo, "second").await.unwrap_err();
    assert_eq!((missed.kind, missed.code.as_ref()), (ErrorKind::Conflict, "image_store_missing"));
    let nowhere = admin.call(request::<MoveImages>(json!({ "to": "s3" }))).await.unwrap_err();
    assert_eq!(nowhere.code, "image_store_missing");

    let (_, demo) = operator.configure("", true).await;
    for image in ["first", "second"] {
        assert!(content(&demo, image).await.unwrap() == bytes, "{image}");
        demo.call(request::<DeleteImage>(json!({ "image": image }))).await.unwrap();
    }
    assert_eq!((operator.moto.objects(), operator.files()), (0, 0));
}
