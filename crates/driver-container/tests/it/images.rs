//! Images: OCI layouts, copies, and those that are made to do harm.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use nephos_driver::{ComputeDriver, Disk, DiskFormat, GuestSpec, Presence, SnapshotRequest, StopMode};
use nephos_driver_container::{Config, ContainerDriver};
use nephos_types::Error;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::surroundings::{Machine, containers_can_run, image, log_shows, shell, spec};

/// An archive in the making.
struct Archive(Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(Builder::new(vec![]))
    }

    /// An entry as it is said, with whatever name: the builder would refuse some.
    fn raw(mut self, name: &str, kind: EntryType, link: &str, size: u64, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_entry_type(kind);
        header.set_size(size);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        let content = content.as_ref();
        self.raw(name, EntryType::Regular, "", content.len() as u64, content)
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.raw(name, EntryType::Symlink, target, 0, &[])
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

async fn defined(driver: &ContainerDriver, path: &Path, format: DiskFormat) -> (GuestSpec, Result<(), Error>) {
    let disk = Disk { base: Some((path.to_owned(), format)), ..spec().disk };
    let spec = GuestSpec { disk, ..spec() };
    let outcome = driver.define(&spec).await;
    (spec, outcome)
}

/// The tree that the only unpacked image has become.
fn unpacked(machine: &Machine) -> PathBuf {
    let mut entries: Vec<_> = fs::read_dir(machine.state().join("bases")).unwrap().collect();
    assert_eq!(entries.len(), 1);
    entries.pop().unwrap().unwrap().path().join("root")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_archives_are_refused_or_harmless() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let config = Config { max_entries: 1000, max_unpacked: nephos_types::Bytes::mib(8), ..machine.config() };
    let driver = ContainerDriver::open(config).await.unwrap();
    let outside = machine.folder().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let there = outside.display().to_string();
    let deep = format!("{}{there}/made", "../".repeat(9));
    let good = || Archive::new().file("bin/sh", "#!");
    let zip = |bytes: &[u8]| {
        let mut zip = GzEncoder::new(vec![], Compression::fast());
        zip.write_all(bytes).unwrap();
        zip.finish().unwrap()
    };
    let many = (0..1001).fold(good(), |archive, number| archive.file(&format!("f{number}"), ""));
    let refused: BTreeMap<&str, Vec<u8>> = [
        ("a path out of it", good().file(&deep, "x").bytes()),
        ("a path that comes back", good().file("a/../../b", "x").bytes()),
        ("a hard link out of it", good().raw("x", EntryType::Link, &format!("{there}/secret"), 0, &[]).bytes()),
        ("a hard link by a path out of it", good().raw("x", EntryType::Link, &deep, 0, &[]).bytes()),
        ("a file in a file", good().file("a", "").file("a/b", "x").bytes()),
        ("a whiteout of its parent", good().file("a/.wh...", "").bytes()),
        ("more files than allowed", many.bytes()),
        ("more bytes than allowed", zip(&good().file("zeros", vec![0; 9 << 20]).bytes())),
        ("a size that is not there", good().raw("x", EntryType::Regular, "", 1 << 20, b"short").bytes()),
        ("an endless size", good().raw("x", EntryType::Regular, "", 1 << 62, &[]).bytes()),
        ("a link without a target", good().raw("x", EntryType::Symlink, "", 0, &[]).bytes()),
        ("nothing to run", Archive::new().file("etc/passwd", "").bytes()),
        ("no archive", b"certainly not a tar archive".repeat(100)),
        ("broken compression", [&zip(&good().bytes())[..40], b"garbage"].concat()),
        ("nothing", vec![]),
    ]
    .into();
    for (what, bytes) in refused {
        let path = machine.folder().join("image");
        fs::write(&path, bytes).unwrap();
        let (spec, outcome) = defined(&driver, &path, DiskFormat::Tar).await;
        let error = outcome.expect_err(what);
        assert_eq!(error.code, "base_image_unusable", "{what}: {error}");
        assert!(!error.detail.is_empty(), "{what}");
        assert_eq!(driver.observe(spec.id).await, Presence::Gone, "{what}");
        assert_eq!(fs::read_dir(machine.state().join("bases")).unwrap().count(), 0, "{what}: nothing is left");
        assert_eq!(fs::read_dir(machine.state().join("guests")).unwrap().count(), 0, "{what}: nothing is left");
    }
    // What looks like a way out is one in.
    let tricks = good()
        .link("way", &there)
        .file("way/made", "x")
        .link("up", "../../../../..")
        .file(&format!("up{there}/climbed"), "x")
        .raw("disk", EntryType::Block, "", 0, &[])
        .raw("memory", EntryType::Char, "", 0, &[])
        .file("/absolute", "x")
        .link("etc", "/etc")
        .bytes();
    let path = machine.folder().join("tricks");
    fs::write(&path, tricks).unwrap();
    defined(&driver, &path, DiskFormat::Tar).await.1.unwrap();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "nothing was made outside");
    let root = unpacked(&machine);
    assert!(root.join(there.trim_start_matches('/')).join("made").exists(), "but inside");
    assert!(root.join(there.trim_start_matches('/')).join("climbed").exists() && root.join("absolute").exists());
    assert!(!root.join("disk").exists() && !root.join("memory").exists(), "devices are left out");
    for path in walk(&root) {
        let metadata = fs::symlink_metadata(&path).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!(metadata.uid(), 1_500_000_000, "{}: nothing belongs to the machine's root", path.display());
    }
    for id in driver.list().await.unwrap() {
        driver.remove(id).await.unwrap();
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() { found.extend(walk(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

/// An image layout of these layers and this configuration.
fn layout(layers: &[Vec<u8>], config: &Value, platform: &str) -> Vec<u8> {
    let mut archive = Archive::new().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
    let add = |archive: Archive, bytes: &[u8], kind: &str| {
        let digest = hex::encode(Sha256::digest(bytes));
        let descriptor = json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        (archive.file(&format!("blobs/sha256/{digest}"), bytes), descriptor)
    };
    let mut descriptors = vec![];
    for layer in layers {
        let (next, descriptor) = add(archive, layer, "application/vnd.oci.image.layer.v1.tar+gzip");
        archive = next;
        descriptors.push(descriptor);
    }
    let config = json!({ "architecture": platform, "os": "linux", "config": config }).to_string();
    let (archive, config) = add(archive, config.as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": descriptors }).to_string();
    let (archive, mut manifest) = add(archive, manifest.as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["platform"] = json!({ "architecture": platform, "os": "linux" });
    archive.file("index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string()).bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_image_runs_its_own_program() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let mut first = vec![];
    File::open(image()).unwrap().read_to_end(&mut first).unwrap();
    let second = Archive::new()
        .file("app/old", "x")
        .file("app/kept", "x")
        .raw("var/", EntryType::Directory, "", 0, &[])
        .file("etc/passwd", "root::0:0::/root:/bin/sh\napp:x:1000:1001::/app:/bin/sh\n")
        .file("etc/group", "root:x:0:\napp:x:1001:\nmore:x:1002:app\n")
        .bytes();
    // Whiteouts hide what lower layers hold, and nothing of their own.
    let third = Archive::new().file("app/.wh.old", "").file("var/.wh..wh..opq", "").file("var/new", "x").bytes();
    let script =
        "trap 'echo asked to stop; exit 0' QUIT; id; pwd; echo $GREETING; ls /app /var; while :; do sleep 0.1; done";
    let config = json!({
        "User": "app", "Env": ["GREETING=good morning"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": [script],
        "WorkingDir": "/app", "StopSignal": "SIGQUIT",
    });
    let path = machine.folder().join("app");
    fs::write(&path, layout(&[first, second, third], &config, here)).unwrap();
    let (app, outcome) = defined(&driver, &path, DiskFormat::Oci).await;
    outcome.unwrap();
    driver.start(app.id).await.unwrap();
    for text in ["uid=1000(app) gid=1001(app) groups=1002(more)", "/app\r\n", "good morning", "kept\r\n", "new\r\n"] {
        log_shows(&driver, app.id, text).await;
    }
    let log = driver.console_log(app.id, 1 << 20).await.unwrap();
    let log = String::from_utf8_lossy(&log);
    assert!(!log.contains("old") && !log.contains("log\r\n"), "what is deleted is not there: {log}");
    // A copy of it is such an image, too.
    let request = SnapshotRequest { file: machine.folder().join("copy"), freeze: true };
    assert_eq!(shell(&driver, app.id, "echo more > /app/more; ln /app/more /app/again").await.0, Some(0));
    let taken = driver.snapshot(app.id, &request).await.unwrap();
    assert!(taken.frozen);
    driver.stop(app.id, StopMode::Soft(crate::surroundings::PATIENCE)).await.unwrap();
    log_shows(&driver, app.id, "asked to stop").await;
    driver.remove(app.id).await.unwrap();
    let (copy, outcome) = defined(&driver, &request.file, taken.format).await;
    outcome.unwrap();
    driver.start(copy.id).await.unwrap();
    log_shows(&driver, copy.id, "good morning").await;
    log_shows(&driver, copy.id, "uid=1000(app)").await;
    assert_eq!(shell(&driver, copy.id, "cat /app/again; stat -c %h /app/more").await.1, "more\n2\n");
    driver.remove(copy.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_layouts_are_refused() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let layer = || Archive::new().file("bin/sh", "#!").bytes();
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let run = json!({ "Cmd": ["/bin/sh"] });
    let whole = layout(&[layer()], &run, here);
    let mut damaged = whole.clone();
    let at = damaged.windows(2).position(|pair| pair == b"#!").unwrap();
    damaged[at] = b'?';
    let hostile = Archive::new().file("../../escape", "x").bytes();
    for (what, bytes) in [
        ("a damaged layer", damaged),
        ("another machine's image", layout(&[layer()], &run, "sparc")),
        (
            "a folder among the descriptors",
            layout(&[layer()], &json!({ "Cmd": ["sh"], "WorkingDir": "/proc/self/fd/7" }), here),
        ),
        ("an unknown user", layout(&[layer()], &json!({ "Cmd": ["sh"], "User": "nobody-knows" }), here)),
        ("a layer that climbs out", layout(&[hostile], &run, here)),
        ("no layout", layer()),
        ("half of one", whole[..whole.len() / 2].to_vec()),
        ("an index of nonsense", Archive::new().file("index.json", "[{]").bytes()),
        (
            "a digest with a path",
            Archive::new().file("index.json", r#"{"manifests":[{"digest":"sha256:../../../../etc/passwd"}]}"#).bytes(),
        ),
    ] {
        let path = machine.folder().join("image");
        fs::write(&path, bytes).unwrap();
        let error = defined(&driver, &path, DiskFormat::Oci).await.1.expect_err(what);
        assert_eq!(error.code, "base_image_unusable", "{what}: {error}");
        assert_eq!(fs::read_dir(machine.state().join("bases")).unwrap().count(), 0, "{what}: nothing is left");
    }
    fs::write(machine.folder().join("image"), whole).unwrap();
    let (spec, outcome) = defined(&driver, &machine.folder().join("image"), DiskFormat::Oci).await;
    outcome.unwrap();
    // It holds no program that could run, which is found out at its start or right after it.
    match driver.start(spec.id).await {
        Err(error) => assert_eq!(error.code, "start_failed"),
        Ok(()) => {
            let ended = async || crate::surroundings::observed(&driver, spec.id).await.ended;
            let how = crate::surroundings::until("its end", ended).await;
            assert!(how.starts_with("crashed: "), "{how}");
        }
    }
    driver.remove(spec.id).await.unwrap();
    for format in [DiskFormat::Qcow2, DiskFormat::Raw, DiskFormat::Iso] {
        let error = defined(&driver, &machine.folder().join("image"), format).await.1.unwrap_err();
        assert_eq!(error.code, "base_image_unusable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_guest_in_rescue_is_of_its_own_root() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    assert_eq!(shell(&driver, spec.id, "echo own > /root/file; sync").await.0, Some(0));
    driver.stop(spec.id, StopMode::Hard).await.unwrap();
    driver.define(&GuestSpec { rescue: Some((image().to_owned(), DiskFormat::Tar)), ..spec.clone() }).await.unwrap();
    driver.start(spec.id).await.unwrap();
    // Another root, in which its own one can be repaired.
    let repair = "cat /root/file; cat /mnt/root/file; echo foreign > /root/file; echo repaired >> /mnt/root/file; sync";
    let (_, said) = shell(&driver, spec.id, repair).await;
    assert!(said.contains("own\n") && said.contains("No such file"), "{said}");
    let file = machine.folder().join("copy");
    driver.snapshot(spec.id, &SnapshotRequest { file: file.clone(), freeze: false }).await.unwrap();
    // Adopted by another driver, it is still in rescue.
    drop(driver);
    let driver = machine.driver().await;
    assert_eq!(shell(&driver, spec.id, "cat /root/file").await.1, "foreign\n");
    driver.stop(spec.id, StopMode::Hard).await.unwrap();
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    assert_eq!(shell(&driver, spec.id, "cat /root/file").await.1, "own\nrepaired\n");
    driver.remove(spec.id).await.unwrap();
    let (copy, outcome) = defined(&driver, &file, DiskFormat::Tar).await;
    outcome.unwrap();
    driver.start(copy.id).await.unwrap();
    assert_eq!(shell(&driver, copy.id, "cat /root/file").await.1, "own\nrepaired\n");
    driver.remove(copy.id).await.unwrap();
}
