//! What is particular to QEMU: confinement, ports, disks, paths, interrupted work.

use std::{fs, net::TcpListener, os::unix::fs::MetadataExt, time::Duration};

use nephos_driver::{ComputeDriver, Disk, DiskFormat, GuestSpec, Interface, PortForward, Power, Protocol, StopMode};
use nephos_driver_qemu::{Acceleration, Config, QemuDriver};
use nephos_types::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::surroundings::{Machine, empty, log_shows, observed, qemu_is_installed, spec, until};

fn forwarded(host_port: u16) -> GuestSpec {
    let forwards = vec![PortForward { protocol: Protocol::Tcp, host_port, guest_port: 22 }];
    GuestSpec { interfaces: vec![Interface::User { mac: "52:54:00:00:01:02".into(), forwards }], ..empty() }
}

#[tokio::test]
async fn a_port_in_use_is_named_and_can_be_waited_for() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let spec = forwarded(taken.local_addr().unwrap().port());
    driver.define(&spec).await.unwrap();
    assert_eq!(driver.start(spec.id).await.unwrap_err().code, "port_in_use");
    assert_eq!(observed(&driver, spec.id).await.power, Power::Off);
    drop(taken);
    driver.start(spec.id).await.unwrap();
    driver.remove(spec.id).await.unwrap();
    assert_eq!(machine.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_guest_is_confined() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let (one, two) = (empty(), empty());
    for spec in [&one, &two] {
        driver.define(spec).await.unwrap();
        driver.start(spec.id).await.unwrap();
    }
    let mut users = vec![];
    for spec in [&one, &two] {
        let pid = observed(&driver, spec.id).await.pid.unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':').unwrap().1.split_ascii_whitespace().next().unwrap_or_default().to_owned()
        };
        assert_eq!(field("Seccomp"), "2", "system calls are filtered");
        assert_eq!(field("CapEff").trim_start_matches('0'), "", "no capability");
        assert_eq!(field("Groups"), "", "no further group");
        let user: u32 = field("Uid").parse().unwrap();
        if rustix::process::geteuid().is_root() {
            let run = fs::metadata(machine.run_folder(spec.id)).unwrap();
            assert_eq!((run.uid(), run.mode() & 0o777), (user, 0o700), "the folder is its own");
            assert_ne!(user, 0);
            users.push(user);
        }
        // It has no descriptor of anything of the agent's or of another guest's.
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
            let target = target.display().to_string();
            let state = machine.state().display().to_string();
            assert!(!target.starts_with(&state) || target.contains(&spec.id.to_string()), "{target}");
        }
    }
    users.dedup();
    assert!(users.len() != 1, "each guest has a user of its own");
    drop(driver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_grows_and_keeps_what_is_on_it() {
    if !qemu_is_installed() {
        return;
    }
    // Also with a folder whose sockets' paths would be too long.
    let machine = Machine::with_long_path();
    let driver = machine.driver().await;
    let small = spec();
    driver.define(&small).await.unwrap();
    driver.start(small.id).await.unwrap();
    log_shows(&driver, small.id, "login: ").await;
    let mut console = driver.console(small.id).await.unwrap();
    console.write_all(b"root\r").await.unwrap();
    expect(&mut console, "assword: ").await;
    console.write_all(b"nephos\r").await.unwrap();
    expect(&mut console, "# ").await;
    console.write_all(b"echo kept > /root/file && sync && echo on-\"disk\"\r").await.unwrap();
    expect(&mut console, "on-disk").await;
    driver.stop(small.id, StopMode::Hard).await.unwrap();

    let large = GuestSpec { disk: Disk { size: Bytes::mib(300), ..small.disk.clone() }, ..small.clone() };
    driver.define(&large).await.unwrap();
    let started = fs::metadata(machine.run_folder(small.id).join("console.log")).unwrap().len();
    driver.start(large.id).await.unwrap();
    until("another login prompt", async || {
        let log = fs::read(machine.run_folder(small.id).join("console.log")).unwrap();
        String::from_utf8_lossy(log.get(started as usize..).unwrap_or_default()).contains("login: ").then_some(())
    })
    .await;
    let mut console = driver.console(large.id).await.unwrap();
    console.write_all(b"\rroot\r").await.unwrap();
    expect(&mut console, "assword: ").await;
    console.write_all(b"nephos\r").await.unwrap();
    expect(&mut console, "# ").await;
    console.write_all(b"cat /root/file /sys/class/block/vda/size\r").await.unwrap();
    expect(&mut console, "kept\r\n614400\r\n").await;
    assert_eq!(driver.define(&small).await.unwrap_err().code, "disk_cannot_shrink");
    let other = Disk { base: Some(("/another/image".into(), DiskFormat::Qcow2)), ..large.disk.clone() };
    assert!(driver.define(&GuestSpec { disk: other, ..large.clone() }).await.is_err());
    driver.remove(large.id).await.unwrap();
    assert_eq!(machine.processes(), Vec::<u32>::new());
}

async fn expect(console: &mut Box<dyn nephos_driver::Console>, text: &str) {
    let reading = async {
        let mut screen = vec![];
        while !String::from_utf8_lossy(&screen).contains(text) {
            assert_ne!(console.read_buf(&mut screen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&screen));
        }
    };
    tokio::time::timeout(crate::surroundings::PATIENCE, reading).await.unwrap_or_else(|_| panic!("{text:?}"));
}

#[tokio::test]
async fn a_process_is_found_even_if_its_start_was_not_recorded() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let (spec, damaged) = (empty(), empty());
    for spec in [&spec, &damaged] {
        driver.define(spec).await.unwrap();
        driver.start(spec.id).await.unwrap();
    }
    let (pid, damaged_pid) = (observed(&driver, spec.id).await.pid, observed(&driver, damaged.id).await.pid);
    drop(driver);
    // As after a crash of the agent right after the start, and after a power loss in mid-write.
    let record = |spec: &GuestSpec| machine.state().join("guests").join(spec.id.to_string()).join("record.json");
    let starting = r#"{"since":"2026-01-01T00:00:00Z","ended":null,"life":{"state":"starting"}}"#;
    fs::write(record(&spec), starting).unwrap();
    fs::write(record(&damaged), "{").unwrap();
    let driver = machine.driver().await;
    assert_eq!(observed(&driver, spec.id).await.pid, pid);
    assert_eq!(observed(&driver, damaged.id).await.pid, damaged_pid);
    driver.remove(damaged.id).await.unwrap();
    driver.stop(spec.id, StopMode::Hard).await.unwrap();
    drop(driver);
    // And right before it.
    fs::write(record(&spec), starting).unwrap();
    let driver = machine.driver().await;
    let found = observed(&driver, spec.id).await;
    assert_eq!((found.power, found.ended), (Power::Off, None));
    driver.start(spec.id).await.unwrap();
    driver.remove(spec.id).await.unwrap();
    assert_eq!(machine.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_start_that_is_given_up_still_gets_its_watch() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = empty();
    driver.define(&spec).await.unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(1), driver.start(spec.id)).await.is_err());
    let running = async || (observed(&driver, spec.id).await.power == Power::On).then_some(());
    until("the start goes on by itself", running).await;
    driver.remove(spec.id).await.unwrap();
    assert_eq!(machine.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_folder_has_one_driver() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let _first = machine.driver().await;
    let config = Config { acceleration: Acceleration::Emulate, ..Config::new(machine.state()) };
    assert_eq!(QemuDriver::open(config).await.err().unwrap().code, "state_in_use");
}

#[tokio::test]
async fn without_qemu_the_error_says_what_to_install() {
    let machine = Machine::new();
    let error = QemuDriver::open(Config { qemu: "no-such-qemu".into(), ..Config::new(machine.state()) }).await.err();
    let error = error.unwrap();
    assert_eq!(error.code, "qemu_missing");
    assert!(error.next.iter().any(|step| step.cmd.as_deref().unwrap_or_default().contains("qemu-system-x86")));
}

/// On a machine with a usable `/dev/kvm` this finds KVM, elsewhere emulation with a reason; never a hang.
#[tokio::test]
async fn the_accelerator_is_what_a_probe_guest_has_shown() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let image = nephos_image_build::micro(&nephos_image_build::Options::default(), |_| {}).unwrap();
    let driver = machine.driver().await;
    let found = driver.probe(std::slice::from_ref(&image.kernel)).await;
    eprintln!("accelerator: {found:?}");
    assert_eq!(driver.capabilities().accelerator, found);
    assert_eq!(machine.processes(), Vec::<u32>::new(), "the probe guest is gone");
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        assert!(machine.state().join("accelerator.json").exists(), "the outcome is remembered");
        assert_eq!(driver.probe(&["/no/such/kernel".into()]).await, found, "without another probe");
    }
}

/// Not a test of speed: it prints what the driver adds to a boot.
#[tokio::test]
async fn define_and_start_end_with_a_running_qemu() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    let began = std::time::Instant::now();
    driver.define(&spec).await.unwrap();
    let defined = began.elapsed();
    driver.start(spec.id).await.unwrap();
    eprintln!("define {defined:.1?}, define and start {:.1?}", began.elapsed());
    assert_eq!(observed(&driver, spec.id).await.power, Power::On);
    driver.remove(spec.id).await.unwrap();
}
