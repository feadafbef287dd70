//! A large image arrives whole over connections that break.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use nephos_cli::client::Upload;
use nephos_ops::image::{CreateImage, Image, ImageStatus, ShowImage, StartUpload, UploadPart};
use nephos_testkit::{CloudProcess, Settings};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use crate::{NEPHOS, help::request};

const MIB: usize = 1 << 20;

/// A way to the cloud on which the first connections that carry much break after so many bytes.
struct Road {
    url: String,
    broken: Arc<AtomicUsize>,
}

impl Road {
    async fn to(cloud: &CloudProcess, breaks_after: &'static [usize]) -> Self {
        let target = cloud.url().trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let broken = Arc::new(AtomicUsize::new(0));
        let count = broken.clone();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let (target, count) = (target.clone(), count.clone());
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let Some(most) = breaks_after.get(count.load(Ordering::SeqCst)) else {
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                        return;
                    };
                    let (mut sent, mut there, mut back) = (0, vec![0; 65536], vec![0; 65536]);
                    loop {
                        tokio::select! {
                            read = near.read(&mut there) => match read {
                                Ok(read @ 1..) if sent + read < *most => {
                                    sent += read;
                                    if far.write_all(&there[..read]).await.is_err() { return }
                                }
                                Ok(1..) => {
                                    count.fetch_add(1, Ordering::SeqCst);
                                    return;
                                }
                                _ => return,
                            },
                            read = far.read(&mut back) => match read {
                                Ok(read @ 1..) => if near.write_all(&back[..read]).await.is_err() { return },
                                _ => return,
                            },
                        }
                    }
                });
            }
        });
        Self { url, broken }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_where_it_broke_off() {
    let mut cloud = CloudProcess::start(NEPHOS, Settings { simulated_nodes: 1, ..Settings::default() }).await;
    let demo = cloud.demo().await;
    let content: Vec<u8> =
        (0..48 * MIB as u32 / 4).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let sum = hex::encode(Sha256::digest(&content));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large.raw");
    std::fs::write(&file, &content).unwrap();
    let road = Road::to(&cloud, &[10 * MIB, 7 * MIB, 20 * MIB]).await;
    let token = cloud.demo_token().await;
    let nephos = |arguments: &[&str]| {
        let mut command = cloud.command(arguments);
        command.arg("--file").arg(&file).env("NEPHOS_URL", &road.url).env("NEPHOS_TOKEN", &token);
        tokio::task::spawn_blocking(move || {
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");
            said
        })
    };
    let show = async |name: &str| -> Image { demo.call(request::<ShowImage>(json!({ "image": name }))).await.unwrap() };

    // As it is created, over connections that break.
    nephos(&["image", "create", "one", "--format", "raw"]).await.unwrap();
    assert_eq!(road.broken.load(Ordering::SeqCst), 3);
    let one = show("one").await;
    assert_eq!((one.status, one.sha256.as_deref()), (ImageStatus::Active, Some(sum.as_str())));

    // What somebody else, or an earlier run, has begun.
    demo.call(request::<CreateImage>(json!({ "name": "two", "format": "raw" }))).await.unwrap();
    demo.call(request::<StartUpload>(json!({ "image": "two", "size": content.len() }))).await.unwrap();
    let begun = folder.path().join("begun");
    std::fs::write(&begun, &content[..5 * MIB]).unwrap();
    let part = request::<UploadPart>(json!({ "image": "two", "offset": 0 }));
    demo.call_upload(part, Upload::file(&begun).await.unwrap()).await.unwrap();
    let said = nephos(&["image", "upload", "two"]).await.unwrap();
    assert!(said.contains("going on from 5 MiB"), "{said}");
    assert_eq!(show("two").await.sha256, Some(sum));
    assert!(cloud.stop().await.success());
}
