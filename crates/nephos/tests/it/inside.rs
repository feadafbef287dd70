//! The inside of real servers through the real binary: programs, files, passwords, keys, what they say of themselves,
//! screens, consoles by URL, and what they use.

use std::{path::Path, process::Command};

use futures_util::StreamExt;
use nephos_cli::client::Client;
use nephos_ops::{
    compute::{
        ConsoleUrl, DeleteServer, ExecuteCommand, ListUsage, MakeConsoleUrl, OpenConsoleUrl, RevokeConsoles,
        ServerUsage, ShowGuest, TakeScreenshot,
    },
    identity::RevokeToken,
    system::ListAudit,
};
use nephos_testkit::{CloudProcess, Settings, until};
use nephos_types::{ErrorKind, Result};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    NEPHOS,
    bad_input::KEY,
    guest::read_until,
    help::{blank_image, create_server, delete_server, succeeded, upload_image},
};

async fn url(client: &Client, kind: &str) -> ConsoleUrl {
    let make: MakeConsoleUrl = serde_json::from_value(json!({ "server": "one", "kind": kind })).unwrap();
    client.call(make).await.unwrap()
}

/// Opens what a URL leads to, without a login.
async fn open(cloud: &CloudProcess, path: &str) -> Result<Box<dyn nephos_ops::Duplex>> {
    let token = path.strip_prefix("/v1/consoles/").unwrap().parse().unwrap();
    cloud.anonymous().tunnel(OpenConsoleUrl { token }).await.map(|tunnel| tunnel.0)
}

/// Speaks the remote framebuffer protocol (RFC 6143) until the server says how large its screen is.
async fn screen_size(stream: &mut (impl AsyncReadExt + AsyncWriteExt + Unpin)) -> (u32, u32) {
    let mut version = [0; 12];
    stream.read_exact(&mut version).await.unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    stream.write_all(&version).await.unwrap();
    let count = stream.read_u8().await.unwrap();
    let mut ways = vec![0; count.into()];
    stream.read_exact(&mut ways).await.unwrap();
    assert!(ways.contains(&1), "no authentication: {ways:?}");
    stream.write_all(&[1]).await.unwrap();
    assert_eq!(stream.read_u32().await.unwrap(), 0, "security handshake");
    stream.write_all(&[1]).await.unwrap();
    (stream.read_u16().await.unwrap().into(), stream.read_u16().await.unwrap().into())
}

async fn usage(client: &Client) -> Vec<ServerUsage> {
    let list: ListUsage = serde_json::from_value(json!({ "server": "one", "limit": 10 })).unwrap();
    client.call(list).await.unwrap().items
}

/// Runs the command line; gives its exit code, standard output and standard error.
fn run(cloud: &CloudProcess, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = cloud.command(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_inside_of_a_server_is_within_reach() {
    let image = tokio::task::spawn_blocking(|| nephos_image_build::micro(&Default::default(), &mut |_| {}))
        .await
        .unwrap()
        .expect("the micro image is built");
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    upload_image(&demo, "micro", "qcow2", &image.disk).await;
    let started = demo.call(create_server("one", "micro")).await.unwrap();
    succeeded(&demo, started.workflow).await;

    // What it says of itself, once its agent is up.
    let guest = until("the agent inside to answer", || async {
        match demo.call(ShowGuest { server: "one".parse().unwrap() }).await {
            Ok(guest) => Some(guest),
            Err(error) => {
                assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "guest_agent_missing"));
                None
            }
        }
    })
    .await;
    assert_eq!(guest.host_name.as_deref(), Some("one"));
    assert!(guest.agent.is_some() && guest.kernel.is_some(), "{guest:?}");
    assert!(guest.file_systems.iter().any(|system| system.mount == "/"), "{guest:?}");

    programs(&cloud);
    files(&cloud);
    screen(&cloud, &demo).await;
    accounts(&cloud, &demo).await;
    figures(&demo).await;

    // All that changed it was written down, and no secret with it.
    let trail = demo_trail(&cloud, &started.resource.id.to_string()).await;
    for operation in ["server.exec", "server.push", "server.reset-password", "server.reset-keys"] {
        assert!(trail.contains(operation), "{operation}: {trail}");
    }
    assert!(!trail.contains("chosen by hand"), "{trail}");
    assert!(!cloud.log_text().contains("chosen by hand"));

    // A deleted server's URL leads nowhere.
    let last = url(&demo, "serial").await;
    let mut console = open(&cloud, &last.path).await.unwrap();
    delete_server(&demo, "one").await;
    let ended = async { while !matches!(console.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(nephos_testkit::LIMIT, ended).await.expect("the console ends with its server");
    assert_eq!(open(&cloud, &last.path).await.err().unwrap().code, "console_url_invalid");
}

fn programs(cloud: &CloudProcess) {
    let (code, said, complained) =
        run(cloud, &["server", "exec", "one", "--", "sh", "-c", "uname; echo bad >&2; exit 3"]);
    assert_eq!((code, said.as_str(), complained.as_str()), (Some(3), "Linux\n", "bad\n"));
    let (code, said, _) = run(cloud, &["server", "exec", "one", "--input", "in and out", "--", "cat"]);
    assert_eq!((code, said.as_str()), (Some(0), "in and out"));
    let late = ["server", "exec", "one", "--limit-seconds", "1", "--", "sleep", "1000"];
    assert_eq!(run(cloud, &late).0, Some(124));
    let (code, _, complained) = run(cloud, &["server", "exec", "one", "--", "no-such-program"]);
    assert!(code == Some(3) && complained.contains("guest_program_not_found"), "{code:?} {complained}");
}

fn files(cloud: &CloudProcess) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    // Neither text nor whole pieces.
    let content: Vec<u8> = (0..3_500_001_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    std::fs::write(path("here"), &content).unwrap();
    let pushed =
        cloud.nephos(&["server", "push", "one", "/root/big", "--mode", "0640", "--file", &path("here"), "-o", "json"]);
    let pushed: serde_json::Value = serde_json::from_str(&pushed).unwrap();
    let summed = cloud.nephos(&["server", "exec", "one", "--", "sha256sum", "/root/big"]);
    assert_eq!(summed.split(' ').next(), pushed["sha256"].as_str());
    assert_eq!(cloud.nephos(&["server", "exec", "one", "--", "stat", "-c", "%a", "/root/big"]), "640\n");
    cloud.nephos(&["server", "pull", "one", "/root/big", "--file", &path("back")]);
    assert!(std::fs::read(path("back")).unwrap() == content, "the same bytes come back");
    std::fs::write(path("here"), b"").unwrap();
    cloud.nephos(&["server", "push", "one", "/root/big", "--file", &path("here")]);
    cloud.nephos(&["server", "pull", "one", "/root/big", "--file", &path("back")]);
    assert!(std::fs::read(path("back")).unwrap().is_empty());
    let (code, _, complained) = run(cloud, &["server", "pull", "one", "/root/none", "--file", &path("none")]);
    assert!(code == Some(3) && complained.contains("guest_file_not_found"), "{code:?} {complained}");
    assert!(!Path::new(&path("none")).exists());
}

async fn screen(cloud: &CloudProcess, demo: &Client) {
    let mut vnc = open(cloud, &url(demo, "vnc").await.path).await.unwrap();
    let size = screen_size(&mut vnc).await;
    let mut picture = vec![];
    let mut download = demo.download(TakeScreenshot { server: "one".parse().unwrap() }).await.unwrap().body;
    while let Some(chunk) = download.next().await {
        picture.extend_from_slice(&chunk.unwrap());
    }
    // The size follows the signature and the first chunk's head.
    assert_eq!((&picture[..8], &picture[12..16]), (&b"\x89PNG\r\n\x1a\n"[..], &b"IHDR"[..]));
    let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
    assert_eq!((number(16), number(20)), size);
}

async fn accounts(cloud: &CloudProcess, demo: &Client) {
    // A password of one's own, then a generated one, with which one logs in on the console, by a URL alone.
    cloud.nephos(&["server", "reset-password", "one", "--password", "chosen by hand"]);
    let password = cloud.nephos(&["server", "reset-password", "one", "-o", "value", "-c", "password"]);
    let password = password.trim();
    assert!(password.len() >= 16 && !cloud.log_text().contains(password), "{password}");
    let serial = url(demo, "serial").await;
    let mut console = open(cloud, &serial.path).await.unwrap();
    console.write_all(b"\r").await.unwrap();
    read_until(&mut console, "login:").await;
    console.write_all(b"root\r").await.unwrap();
    read_until(&mut console, "assword:").await;
    console.write_all(format!("{password}\r").as_bytes()).await.unwrap();
    read_until(&mut console, "# ").await;
    console.write_all(b"echo $((6 * 7))-is-it; exit\r").await.unwrap();
    read_until(&mut console, "42-is-it").await;
    python(cloud, demo, password).await;

    // An altered URL, one of an ended login, and one that was revoked are refused; what is open ends.
    let altered =
        serial.path.replace(&serial.path[40..44], if &serial.path[40..44] == "AAAA" { "BBBB" } else { "AAAA" });
    assert_eq!(open(cloud, &altered).await.err().unwrap().code, "console_url_invalid");
    let other = cloud.demo().await;
    let of_other = url(&other, "serial").await;
    drop(open(cloud, &of_other.path).await.unwrap());
    other.call(RevokeToken { token: None }).await.unwrap();
    assert_eq!(open(cloud, &of_other.path).await.err().unwrap().code, "console_url_invalid");
    demo.call(RevokeConsoles { server: "one".parse().unwrap() }).await.unwrap();
    assert_eq!(open(cloud, &serial.path).await.err().unwrap().code, "console_url_invalid");
    let ended = async { while !matches!(console.read(&mut [0; 4096]).await, Ok(0) | Err(_)) {} };
    tokio::time::timeout(nephos_testkit::LIMIT, ended).await.expect("a revoked console ends");

    cloud.nephos(&["keypair", "create", "mine", "--public-key", KEY]);
    cloud.nephos(&["server", "reset-keys", "one", "--keypair", "mine"]);
    let keys = cloud.nephos(&["server", "exec", "one", "--", "cat", "/root/.ssh/authorized_keys"]);
    assert!(keys.contains(KEY.split(' ').nth(1).unwrap()), "{keys}");
}

/// The same by Python's `websockets`, which knows nothing of Nephos.
async fn python(cloud: &CloudProcess, demo: &Client, password: &str) {
    let Some(python) = std::env::var_os("NEPHOS_TEST_PYTHON") else {
        eprintln!("skipped: `cargo xtask test` installs websockets and runs this");
        return;
    };
    let (serial, vnc) = (url(demo, "serial").await.url, url(demo, "vnc").await.url);
    let expired = json!({ "server": "one", "valid_seconds": 1 });
    let expired: MakeConsoleUrl = serde_json::from_value(expired).unwrap();
    let expired = demo.call(expired).await.unwrap().url;
    let script = crate::beside("consoles.py");
    let mut command = Command::new(Path::new(&python).join("python3"));
    command.args([&script, &serial, &vnc, &expired, password]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.trim() == "ok", "{said}{complained}\n{}", cloud.log_text());
}

async fn figures(demo: &Client) {
    until("usage of an idle server", || async { (usage(demo).await.len() >= 3).then_some(()) }).await;
    let load = "(while :; do :; done) > /dev/null 2>&1 & dd if=/dev/zero of=/root/load bs=1M count=8 conv=fsync";
    let load = json!({ "server": "one", "command": ["sh", "-c", load] });
    let load: ExecuteCommand = serde_json::from_value(load).unwrap();
    assert_eq!(demo.call(load).await.unwrap().exit_code, Some(0));
    // What the load wrote is in a sample that is yet to come; of all that are kept, none is missed however slow this is.
    until("what the load uses", || async {
        let all = json!({ "server": "one", "limit": 3600 });
        let all = demo.call(serde_json::from_value::<ListUsage>(all).unwrap()).await.unwrap().items;
        assert!(all.iter().all(|one| one.memory_bytes.0 > 1 << 20 && one.seconds > 0.0), "{all:?}");
        let written: u64 = all.iter().map(|one| one.disk_written_bytes.0).sum();
        let writes: u64 = all.iter().map(|one| one.disk_writes).sum();
        let cpu: f64 = all.iter().rev().take(10).map(|one| one.cpu_seconds).sum();
        (written >= 8 << 20 && writes > 0 && cpu > 1.5).then_some(())
    })
    .await;
}

async fn demo_trail(cloud: &CloudProcess, id: &str) -> String {
    let list: ListAudit = serde_json::from_value(json!({ "id": id, "limit": 1000 })).unwrap();
    serde_json::to_string(&cloud.admin().await.call(list).await.unwrap().items).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_an_agent_says_what_is_missing() {
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    blank_image(&demo, "blank").await;
    let started = demo.call(create_server("one", "blank")).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let (code, _, complained) = run(&cloud, &["server", "exec", "one", "--", "true"]);
    assert_eq!(code, Some(4), "{complained}");
    assert!(complained.contains("guest_agent_missing") && complained.contains("qemu-guest-agent"), "{complained}");
    let delete = DeleteServer { server: "one".parse().unwrap(), now: true, keep_hours: None };
    let started = demo.call(delete).await.unwrap();
    succeeded(&demo, started.workflow).await;
}
