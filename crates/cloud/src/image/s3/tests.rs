//! Against moto's S3, if there is one: `cargo xtask test` puts it where `NEPHOS_TEST_PYTHON` says.

use std::{
    process::{Child, Command, Stdio},
    time::Instant,
};

use nephos_types::ImageId;

use super::*;

/// A server of S3, which ends with the test.
struct Moto {
    process: Child,
    endpoint: String,
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Moto {
    async fn start(scratch: &std::path::Path) -> Option<Self> {
        let Some(python) = std::env::var_os("NEPHOS_TEST_PYTHON") else {
            eprintln!("\n*** NOT TESTED: images in S3 (run by `cargo xtask test`) ***\n");
            return None;
        };
        let log = scratch.join("moto.log");
        let process = Command::new(std::path::Path::new(&python).join("moto_server"))
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut moto = Self { process, endpoint: String::new() };
        let started = Instant::now();
        while moto.endpoint.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(180), "moto does not start");
            let said = std::fs::read_to_string(&log).unwrap();
            let url = said.split_once("Running on ").and_then(|(_, rest)| rest.split_once('\n'));
            moto.endpoint = url.map(|(url, _)| url.trim().to_owned()).unwrap_or_default();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Some(moto)
    }
}

fn content(length: usize) -> Vec<u8> {
    (0..length as u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

async fn read(store: &S3Images, name: &FileName, range: Range<u64>) -> Vec<u8> {
    let chunks: Vec<bytes::Bytes> = store.get(name, range).await.unwrap().try_collect().await.unwrap();
    chunks.concat()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_keeps_images() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(moto) = Moto::start(scratch.path()).await else { return };
    let settings = Settings {
        endpoint: moto.endpoint.clone(),
        bucket: "images".to_owned(),
        region: "us-east-1".to_owned(),
        prefix: "cloud/".to_owned(),
        path_style: true,
        access_key: "key".to_owned(),
        secret_key: "secret".parse().unwrap(),
    };
    let spool = || Spool::open(scratch.path().join("spool")).unwrap();
    let mut store = S3Images::new(spool(), &settings).unwrap();
    // The least that S3 takes, so that a small file has several; and lists of several pages.
    (store.part, store.page) = (5 << 20, 2);
    let name = FileName::new(ImageId::new());
    std::fs::write(store.spool.path(&name), b"x").unwrap();
    assert_eq!(store.publish(&name).await.unwrap_err().code, "image_file_missing", "there is no bucket");
    assert!(store.spool.path(&name).exists(), "what is not sent is kept");
    store.call(&store.bucket.create_bucket(&store.credentials), Payload::Nothing, None).await.unwrap();

    let mut names = vec![];
    for length in [1, 300_000, (5 << 20), (12 << 20) + 7] {
        let (name, bytes) = (FileName::new(ImageId::new()), content(length));
        std::fs::write(store.spool.path(&name), &bytes).unwrap();
        store.publish(&name).await.unwrap();
        assert!(!store.spool.path(&name).exists(), "it is not kept twice");
        store.publish(&name).await.unwrap();
        assert!(read(&store, &name, 0..length as u64).await == bytes, "{length}");
        let middle = length as u64 / 3..length as u64 / 2;
        assert!(read(&store, &name, middle.clone()).await == bytes[middle.start as usize..middle.end as usize]);
        names.push(name);
    }
    // What is somebody else's is left alone.
    let other = store.bucket.put_object(Some(&store.credentials), "cloud/notes");
    store.call(&other, Payload::Text("hello".to_owned()), None).await.unwrap();
    let mut listed = store.list().await.unwrap();
    listed.sort_by_key(ToString::to_string);
    names.sort_by_key(ToString::to_string);
    assert_eq!(listed, names);

    let gone = names.pop().unwrap();
    store.remove(&gone).await.unwrap();
    store.remove(&gone).await.unwrap();
    assert_eq!(store.list().await.unwrap().len(), 3);
    let error = store.get(&gone, 0..1).await.map(drop).unwrap_err();
    assert_eq!(error.code, "image_file_missing");

    // Nobody there.
    drop(moto);
    let error = store.list().await.unwrap_err();
    assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Unavailable, "image_store_unavailable"));
}

#[test]
fn settings_that_name_no_bucket_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let settings = |endpoint: &str| Settings {
        endpoint: endpoint.to_owned(),
        bucket: "images".to_owned(),
        region: "r".to_owned(),
        prefix: String::new(),
        path_style: true,
        access_key: "k".to_owned(),
        secret_key: "s".parse().unwrap(),
    };
    for endpoint in ["", "s3.example.org", "file:///tmp"] {
        let spool = Spool::open(scratch.path().join("spool")).unwrap();
        assert_eq!(S3Images::new(spool, &settings(endpoint)).map(drop).unwrap_err().code, "config", "{endpoint}");
    }
}
