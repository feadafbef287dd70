//! Content in parts, from elsewhere, and in other formats.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use nephos_ops::image::{CancelUpload, FinishUpload, ImportImage, PartialUpload, ShowUpload, StartUpload, UploadPart};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is on the disk of these tests: 8 MiB, most of it empty.
fn disk_content() -> Vec<u8> {
    let mut content = vec![0; 8 << 20];
    for (at, byte) in content.iter_mut().enumerate().skip(3 << 20).take(200_000) {
        *byte = (at % 251) as u8;
    }
    content
}

/// A disk with [`disk_content`], as `qemu-img` writes it.
fn disk(format: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [raw, made] = ["raw", "made"].map(|name| folder.path().join(name));
    std::fs::write(&raw, disk_content()).unwrap();
    run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", format]).args(options).args([&raw, &made]));
    std::fs::read(made).unwrap()
}

fn raw_of(qcow2: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let [image, raw] = ["image", "raw"].map(|name| folder.path().join(name));
    std::fs::write(&image, qcow2).unwrap();
    run(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args::<_, &Path>([&*image, &*raw]));
    std::fs::read(raw).unwrap()
}

fn appliance(manifest_sum: Option<&str>) -> Vec<u8> {
    let vmdk = disk("vmdk", &["-o", "subformat=streamOptimized"]);
    let description = r#"<Envelope xmlns:ovf="x"><References><File ovf:href="d.vmdk"/></References></Envelope>"#;
    let right = sums_of(&vmdk).0;
    let manifest = format!("SHA256(d.vmdk)= {}\n", manifest_sum.unwrap_or(&right));
    let mut archive = ::tar::Builder::new(vec![]);
    for (name, content) in [("a.ovf", description.as_bytes()), ("a.mf", manifest.as_bytes()), ("d.vmdk", &vmdk)] {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content).unwrap();
    }
    archive.into_inner().unwrap()
}

impl Bench {
    async fn show(&self, image: &str) -> nephos_ops::image::Image {
        call::<ShowImage>(self.member(), json!({ "image": image })).await.unwrap()
    }

    /// Waits until no workflow has the image any more.
    async fn settled(&self, image: &str) -> nephos_ops::image::Image {
        loop {
            let image = self.show(image).await;
            if image.status != ImageStatus::Importing {
                return image;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until only that many files are left.
    async fn until_files(&self, count: usize) {
        while self.files().len() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn part(&self, image: &str, offset: usize, body: ByteStream) -> Result<PartialUpload> {
        let context = self.member();
        context.set_upload(body);
        call::<UploadPart>(context, json!({ "image": image, "offset": offset })).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn disks_of_other_makers_become_qcow2_with_the_same_content() {
    let bench = Bench::new().await;
    let cases = [
        ("vmdk", disk("vmdk", &["-o", "subformat=monolithicSparse"])),
        ("vmdk-stream", disk("vmdk", &["-o", "subformat=streamOptimized"])),
        ("vdi", disk("vdi", &[])),
        ("vhd", disk("vpc", &["-o", "force_size=on"])),
        ("vhd-fixed", disk("vpc", &["-o", "subformat=fixed,force_size=on"])),
        ("vhdx", disk("vhdx", &[])),
        ("ova", appliance(None)),
    ];
    let count = cases.len();
    for (name, content) in cases {
        bench.create(json!({ "name": name, "format": name.split('-').next().unwrap() })).await;
        let handed_over = bench.upload(name, body(&content)).await.unwrap();
        assert!(handed_over.status != ImageStatus::Importing || handed_over.workflow.is_some());
        let image = bench.settled(name).await;
        assert_eq!((image.status, &image.fault), (ImageStatus::Active, &None), "{name}");
        assert_eq!((image.format, image.virtual_size), (Some(ImageFormat::Qcow2), Some(8 << 20)), "{name}");
        let stored = content_of(bench.member(), json!({ "image": name })).await.unwrap();
        assert_eq!((image.sha256.unwrap(), image.md5.unwrap()), sums_of(&stored));
        assert!(raw_of(&stored) == disk_content(), "{name}");
        let no_original = content_of(bench.member(), json!({ "image": name, "original": true })).await.unwrap_err();
        assert_eq!(no_original.code, "original_not_found");
    }
    // The originals are gone.
    bench.until_files(count).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_original_is_kept_where_that_is_wanted() {
    let bench = Bench::with(tempfile::tempdir().unwrap(), |settings| settings.keep_originals = true).await;
    let vdi = disk("vdi", &[]);
    bench.create(json!({ "name": "disk" })).await;
    bench.upload("disk", body(&vdi)).await.unwrap();
    let image = bench.settled("disk").await;
    assert_eq!(image.original_format, Some(ImageFormat::Vdi));
    assert_eq!(content_of(bench.member(), json!({ "image": "disk", "original": true })).await.unwrap(), vdi);
    assert_eq!(bench.counters(), (1, (image.size.unwrap() + vdi.len() as u64).try_into().unwrap()));
    call::<DeleteImage>(bench.member(), json!({ "image": "disk" })).await.unwrap();
    assert_eq!((bench.counters(), bench.files().len()), ((0, 0), 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_converted_leaves_the_image_queued_and_says_why() {
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    // Sound as far as headers go; what is compressed is not: behind the marker of the first grain, 12 bytes long.
    let mut vmdk = disk("vmdk", &["-o", "subformat=streamOptimized"]);
    let grain = usize::try_from(u64::from_le_bytes(vmdk[64..72].try_into().unwrap()) * 512).unwrap();
    vmdk[grain + 12..grain + 44].fill(0xff);
    for (code, content) in
        [("image_not_convertible", vmdk), ("image_checksum_mismatch", appliance(Some(&"0".repeat(64))))]
    {
        bench.upload("disk", body(&content)).await.unwrap();
        let image = bench.settled("disk").await;
        assert_eq!((image.status, image.fault.unwrap().code.as_str()), (ImageStatus::Queued, code));
        bench.until_files(0).await;
    }
    // And what comes next is taken.
    bench.upload("disk", body(&[1; 1000])).await.unwrap();
    assert_eq!((bench.show("disk").await.fault, bench.counters()), (None, (1, 1000)));
}

#[tokio::test]
async fn parts_outlive_broken_connections_and_restarts() {
    let bench = Bench::new().await;
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 253) as u8).collect();
    bench.create(json!({ "name": "disk" })).await;
    let begun = json!({ "image": "disk", "size": 300_000, "sha256": sums_of(&content).0 });
    assert_eq!(call::<StartUpload>(bench.member(), begun.clone()).await.unwrap().offset, 0);
    assert_eq!(bench.status("disk").await, ImageStatus::Saving);
    assert_eq!(call::<StartUpload>(bench.member(), begun).await.unwrap_err().code, "image_upload_goes_on");
    assert_eq!(bench.part("disk", 0, body(&content[..100_000])).await.unwrap().offset, 100_000);
    // Half of a part, then nothing.
    let broken: ByteStream =
        Box::pin(body(&content[100_000..150_000]).chain(stream::iter([Err(std::io::ErrorKind::UnexpectedEof.into())])));
    assert_eq!(bench.part("disk", 100_000, broken).await.unwrap_err().code, "upload_broken_off");
    let image = json!({ "image": "disk" });
    let offset = loop {
        // The writer may still be at it.
        let offset = call::<ShowUpload>(bench.member(), image.clone()).await.unwrap().offset;
        if offset == 150_000 {
            break 150_000;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let bench = bench.restart().await;
    assert_eq!(call::<ShowUpload>(bench.member(), image.clone()).await.unwrap().offset, 150_000);
    assert_eq!(bench.part("disk", 0, body(&content)).await.unwrap_err().code, "upload_offset_wrong");
    assert_eq!(bench.part("disk", 400_000, body(&content)).await.unwrap_err().code, "upload_offset_wrong");
    assert_eq!(call::<FinishUpload>(bench.member(), image.clone()).await.unwrap_err().code, "upload_incomplete");
    assert_eq!(bench.part("disk", offset, body(&content)).await.unwrap_err().kind, ErrorKind::TooLarge);
    // What was too much was not kept, what fitted was.
    let offset = usize::try_from(call::<ShowUpload>(bench.member(), image.clone()).await.unwrap().offset).unwrap();
    assert!((150_000..=300_000).contains(&offset), "{offset}");
    // That was not the rest of the content: begin again.
    call::<CancelUpload>(bench.member(), image.clone()).await.unwrap();
    assert_eq!((bench.status("disk").await, bench.files().len()), (ImageStatus::Queued, 0));
    call::<StartUpload>(bench.member(), image.clone()).await.unwrap();
    for (at, part) in content.chunks(130_000).enumerate() {
        bench.part("disk", at * 130_000, body(part)).await.unwrap();
    }
    let wrong = json!({ "image": "disk", "sha256": "0".repeat(64) });
    call::<FinishUpload>(bench.member(), wrong).await.unwrap();
    assert_eq!(bench.settled("disk").await.fault.unwrap().code, "image_checksum_mismatch");
    bench.until_files(0).await;
    call::<StartUpload>(bench.member(), image.clone()).await.unwrap();
    bench.part("disk", 0, body(&content)).await.unwrap();
    let finished = json!({ "image": "disk", "sha256": sums_of(&content).0 });
    call::<FinishUpload>(bench.member(), finished).await.unwrap();
    assert_eq!(bench.settled("disk").await.status, ImageStatus::Active);
    assert_eq!(content_of(bench.member(), image).await.unwrap(), content);
    let project = ProjectId::from_bits(1);
    assert_eq!((bench.counters(), bench.store.counter(&uploads_counter(project))), ((1, 300_000), 0));
}

#[tokio::test]
async fn uploads_in_parts_are_few_and_do_not_stay_for_ever() {
    let bench = Bench::with(tempfile::tempdir().unwrap(), |settings| settings.uploads_at_once = 1).await;
    for name in ["a", "b"] {
        bench.create(json!({ "name": name })).await;
    }
    let too_large = json!({ "image": "a", "size": u64::MAX });
    assert_eq!(call::<StartUpload>(bench.member(), too_large).await.unwrap_err().kind, ErrorKind::TooLarge);
    call::<StartUpload>(bench.member(), json!({ "image": "a" })).await.unwrap();
    bench.part("a", 0, body(&[1; 100])).await.unwrap();
    let second = call::<StartUpload>(bench.member(), json!({ "image": "b" })).await.unwrap_err();
    assert_eq!((second.kind, &*second.code), (ErrorKind::Quota, "too_many_uploads"));
    bench.images.expire_uploads(Timestamp::now()).await.unwrap();
    assert_eq!(bench.status("a").await, ImageStatus::Saving);
    bench.images.expire_uploads(Timestamp::now().plus(Duration::from_secs(25 * 3600))).await.unwrap();
    bench.images.sweep().await.unwrap();
    assert_eq!((bench.status("a").await, bench.files().len()), (ImageStatus::Queued, 0));
    call::<StartUpload>(bench.member(), json!({ "image": "b" })).await.unwrap();
    call::<DeleteImage>(bench.member(), json!({ "image": "b" })).await.unwrap();
    assert_eq!(bench.files().len(), 0);
    call::<StartUpload>(bench.member(), json!({ "image": "a" })).await.unwrap();
}

/// A server that answers each path with what is said here, and counts the requests.
async fn web(answers: Vec<(&'static str, Vec<u8>)>) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap();
            let answer = answers.iter().find(|(known, _)| *known == path).map(|(_, answer)| answer.clone());
            let answer = answer.unwrap_or_else(|| b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec());
            let _ = stream.write_all(&answer).await;
        }
    });
    (url, count)
}

fn ok(content: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len()).as_bytes(), content].concat()
}

fn to(location: &str) -> Vec<u8> {
    format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").into_bytes()
}

#[tokio::test]
async fn imports_fetch_what_they_may_and_check_it() {
    let content: Vec<u8> = (0..300_000_u32).map(|n| (n % 247) as u8).collect();
    let (url, count) = web(vec![
        ("/image", ok(&content)),
        ("/moved", to("/image")),
        ("/round", to("/round")),
        ("/inside", to("http://169.254.169.254/latest/meta-data")),
        ("/file", to("file:///etc/shadow")),
        ("/large", b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n".to_vec()),
        ("/endless", [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &[1; 2_000_000]].concat()),
    ])
    .await;
    let sum = sums_of(&content).0;
    let import = async |bench: &Bench, path: &str, sha256: &str| {
        let input = json!({ "image": "disk", "url": format!("{url}{path}"), "sha256": sha256 });
        call::<ImportImage>(bench.member(), input).await.unwrap();
        bench.settled("disk").await
    };
    // By default nothing inside is reached: no request comes.
    let bench = Bench::new().await;
    bench.create(json!({ "name": "disk" })).await;
    assert_eq!(import(&bench, "/image", &sum).await.fault.unwrap().code, "url_not_allowed");
    let alias = json!({ "image": "disk", "url": url.replace("127.0.0.1", "localhost"), "sha256": sum });
    call::<ImportImage>(bench.member(), alias).await.unwrap();
    assert_eq!(bench.settled("disk").await.fault.unwrap().code, "url_not_allowed");
    assert_eq!(count.load(Ordering::Relaxed), 0);
    let unsure = json!({ "image": "disk", "url": url });
    assert_eq!(call::<ImportImage>(bench.member(), unsure).await.unwrap_err().code, "invalid_url");

    let bench = Bench::with(tempfile::tempdir().unwrap(), |settings| {
        settings.import = fetch::address::Allowed::parse(&["127.0.0.1".to_owned()]).unwrap();
        settings.limits.size = 1_000_000;
    })
    .await;
    bench.create(json!({ "name": "disk" })).await;
    for (path, sha256, code) in [
        ("/image", "0".repeat(64), "image_checksum_mismatch"),
        ("/none", sum.clone(), "url_not_fetched"),
        ("/round", sum.clone(), "url_not_fetched"),
        ("/file", sum.clone(), "url_not_fetched"),
        ("/inside", sum.clone(), "url_not_allowed"),
        ("/large", sum.clone(), "image_too_large"),
        ("/endless", sum.clone(), "image_too_large"),
    ] {
        let image = import(&bench, path, &sha256).await;
        assert_eq!((image.status, image.fault.unwrap().code.as_str()), (ImageStatus::Queued, code), "{path}");
    }
    bench.until_files(0).await;
    let image = import(&bench, "/moved", &sum).await;
    assert_eq!((image.status, image.fault), (ImageStatus::Active, None));
    assert_eq!(content_of(bench.member(), json!({ "image": "disk" })).await.unwrap(), content);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_deleted_while_a_workflow_has_it_leaves_nothing() {
    let bench = Bench::new().await;
    let vmdk = disk("vmdk", &[]);
    for round in 0..4 {
        bench.create(json!({ "name": "disk" })).await;
        bench.upload("disk", body(&vmdk)).await.unwrap();
        tokio::time::sleep(Duration::from_millis(round * 40)).await;
        call::<DeleteImage>(bench.member(), json!({ "image": "disk" })).await.unwrap();
        bench.until_files(0).await;
        assert_eq!(bench.counters(), (0, 0));
    }
}
