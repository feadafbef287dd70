//! What only a booted guest shows, on one that boots once.

use std::{collections::BTreeMap, time::Instant};

use nephos_driver::{Answer, ComputeDriver, Disk, GuestSpec, Power, Question, SnapshotRequest};
use nephos_driver_qemu::QemuDriver;
use nephos_types::{Bytes, Error, ServerId};

use crate::surroundings::{Machine, PATIENCE, observed, qemu_is_installed, spec, until};

async fn run(driver: &QemuDriver, id: ServerId, command: &[&str], limit_ms: u64) -> Result<String, Error> {
    let question = Question::Execute {
        command: command.iter().map(ToString::to_string).collect(),
        environment: BTreeMap::from([("GREETING".to_owned(), "hello, guest".to_owned())]),
        input: vec![],
        limit_ms,
        max_output: 1 << 20,
    };
    match driver.ask(id, &question).await? {
        Answer::Ended { output, .. } => Ok(String::from_utf8(output).unwrap()),
        other => panic!("{other:?}"),
    }
}

async fn shell(driver: &QemuDriver, id: ServerId, script: &str) -> String {
    let limit = PATIENCE.as_millis() as u64;
    run(driver, id, &["sh", "-c", script], limit).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_booted_guest_is_asked_copied_enlarged_and_suspended() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    let id = spec.id;
    driver.define(&spec).await.unwrap();
    driver.start(id).await.unwrap();
    assert_eq!(driver.ask(id, &Question::Info).await.unwrap_err().code, "guest_agent_missing", "so early");
    let info = until("an answer", async || driver.ask(id, &Question::Info).await.ok()).await;
    let Answer::Info(info) = info else { panic!("{info:?}") };
    assert_eq!(info.host_name.as_deref(), Some("micro"));
    assert!(info.kernel.is_some() && info.agent.is_some(), "{info:?}");
    assert!(info.interfaces.iter().any(|i| i.mac.as_deref() == Some("52:54:00:00:01:01")), "{info:?}");

    // Programs.
    assert_eq!(shell(&driver, id, "echo $GREETING; type cat >/dev/null && echo found").await, "hello, guest\nfound\n");
    assert_eq!(run(&driver, id, &["no-such"], 1000).await.unwrap_err().code, "guest_program_not_found");
    assert_eq!(run(&driver, id, &["sleep", "1234"], 1).await.unwrap_err().code, "guest_command_timeout");
    until("it is killed", async || (!shell(&driver, id, "ps").await.contains("sleep 1234")).then_some(())).await;

    // Keys and permissions.
    let keys = Question::SetKeys { user: "root".to_owned(), keys: vec!["ssh-ed25519 AAAA me".to_owned()] };
    assert_eq!(driver.ask(id, &keys).await.unwrap(), Answer::Done);
    assert_eq!(shell(&driver, id, "cat /root/.ssh/authorized_keys").await, "ssh-ed25519 AAAA me");
    let keys = Question::SetKeys { user: "nobody-here".to_owned(), keys: vec![] };
    assert_eq!(driver.ask(id, &keys).await.unwrap_err().code, "guest_refused");
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n / 251) as u8).collect();
    let write = Question::WriteFile {
        path: "/root/large".to_owned(),
        content: content.clone(),
        append: false,
        mode: Some(0o640),
    };
    assert_eq!(driver.ask(id, &write).await.unwrap(), Answer::Done);
    assert_eq!(shell(&driver, id, "stat -c '%a %s' /root/large").await, "640 1000000\n");
    let read = Question::ReadFile { path: "/root/large".to_owned(), offset: 0, max: 999_999 };
    let whole = content[..999_999].to_vec();
    assert_eq!(driver.ask(id, &read).await.unwrap(), Answer::Content { content: whole, end: false });

    let usage = driver.usage(id).await.unwrap();
    assert!(usage.disk_read > Bytes::mib(1) && usage.disk_written > Bytes(0), "{usage:?}");

    // Its screen shows the login prompt: a PNG of text mode, whose size follows the signature and the chunk's head.
    let picture = driver.screenshot(id).await.unwrap();
    assert_eq!(picture[12..16], *b"IHDR");
    let number = |at: usize| u32::from_be_bytes(picture[at..at + 4].try_into().unwrap());
    assert!(number(16) >= 640 && number(20) >= 400, "{} x {}", number(16), number(20));

    // A larger disk is seen at once.
    let larger = GuestSpec { disk: Disk { size: Bytes::mib(300), ..spec.disk.clone() }, ..spec.clone() };
    driver.define(&larger).await.unwrap();
    assert_eq!(shell(&driver, id, "cat /sys/class/block/vda/size").await, "614400\n");

    // A copy at a moment at which the file systems stand still; they go on afterwards.
    let request = SnapshotRequest { file: machine.state().join("copy.qcow2"), freeze: true };
    let began = Instant::now();
    let taken = driver.snapshot(id, &request).await.unwrap();
    eprintln!("snapshot of a running guest: {:.1?}, {} bytes", began.elapsed(), request.file.metadata().unwrap().len());
    assert!(taken.frozen);
    assert_eq!(shell(&driver, id, "echo on >/root/after; sync; cat /root/after").await, "on\n");
    let check = std::process::Command::new("qemu-img").arg("check").arg(&request.file).output().unwrap();
    assert!(check.status.success(), "{check:?}");

    // Suspended and back, with what was in its memory.
    shell(&driver, id, "echo remembered >/run/only-in-memory").await;
    let began = Instant::now();
    driver.suspend(id).await.unwrap();
    eprintln!("suspend: {:.1?}", began.elapsed());
    assert_eq!(driver.ask(id, &Question::Info).await.unwrap_err().code, "guest_not_running");
    let largest = GuestSpec { disk: Disk { size: Bytes::mib(400), ..spec.disk.clone() }, ..spec.clone() };
    driver.define(&largest).await.unwrap();
    let began = Instant::now();
    driver.start(id).await.unwrap();
    eprintln!("resume: {:.1?}", began.elapsed());
    assert_eq!(observed(&driver, id).await.power, Power::On);
    until("an answer", async || driver.ask(id, &Question::Info).await.ok()).await;
    let seen = shell(&driver, id, "cat /run/only-in-memory /sys/class/block/vda/size").await;
    assert_eq!(seen, "remembered\n819200\n", "its disk has grown meanwhile");
    driver.remove(id).await.unwrap();
    assert_eq!(machine.processes(), Vec::<u32>::new());
}
