//! Guests and their keepers: what outlives what, and what comes from outside.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpStream, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::StreamExt;
use nephos_driver::{
    ComputeDriver, ConfigFile, GuestEvent, GuestSpec, Interface, PortForward, Power, Protocol, StopMode,
};
use nephos_driver_container::{Config, ContainerDriver};
use nephos_types::ServerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::surroundings::{
    Machine, PATIENCE, containers_can_run, free_port, groups, kill, log_shows, observed, shell, spec, until,
};

/// An echo service for the guest's port 7.
const ECHO: &str = "while :; do nc -l -p 7 -e /bin/cat; done > /dev/null 2>&1 &";

fn with_forward(protocol: Protocol, host_port: u16) -> GuestSpec {
    let forwards = vec![PortForward { protocol, host_port, guest_port: 7 }];
    GuestSpec { interfaces: vec![Interface::User { mac: "52:54:00:00:02:01".into(), forwards }], ..spec() }
}

/// Says something to a service of a guest; `None` if nobody answers.
fn echoed(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(b"hello\n").ok()?;
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).ok()?;
    String::from_utf8(answer.to_vec()).ok()
}

/// Not a test: a process that holds a driver until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by another test, as a process of its own"]
async fn hold_a_driver() {
    let Ok(settings) = std::env::var("HOLD_A_DRIVER") else { return };
    let (state, port): (std::path::PathBuf, u16) = serde_json::from_str(&settings).unwrap();
    let mut config = Config::new(state);
    config.keeper = env!("CARGO_BIN_EXE_nephos-container-keeper").into();
    let driver = ContainerDriver::open(config).await.unwrap();
    let spec = with_forward(Protocol::Tcp, port);
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    log_shows(&driver, spec.id, "login: ").await;
    shell(&driver, spec.id, ECHO).await;
    println!("\nholding {}", spec.id);
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_outlives_a_killed_agent() {
    if !containers_can_run() {
        return;
    }
    let (machine, port) = (Machine::new(), free_port());
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "life::hold_a_driver", "--ignored", "--nocapture"])
        .env("HOLD_A_DRIVER", serde_json::to_string(&(machine.state(), port)).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let id: ServerId =
        lines.map_while(Result::ok).find_map(|line| line.strip_prefix("holding ")?.parse().ok()).expect("it starts");
    agent.kill().unwrap();
    agent.wait().unwrap();
    // Nobody looks after it, and it goes on; so do its ports.
    until("an echo without an agent", async || echoed(port)).await;

    let driver = machine.driver().await;
    assert_eq!(driver.list().await.unwrap(), [id]);
    let adopted = observed(&driver, id).await;
    assert_eq!((adopted.power, adopted.ended), (Power::On, None));
    let mut console = driver.console(id).await.unwrap();
    console.write_all(b"root\r").await.unwrap();
    let mut screen = vec![];
    while !String::from_utf8_lossy(&screen).contains("assword") {
        assert_ne!(console.read_buf(&mut screen).await.unwrap(), 0);
    }
    until("an echo with another agent", async || echoed(port)).await;
    assert!(driver.usage(id).await.unwrap().network_received.0 >= 6, "forwarded bytes are counted");
    // It restarts while nobody looks: the keeper starts it again.
    let before = observed(&driver, id).await.pid;
    drop((console, driver));
    let init = before.unwrap();
    Command::new("kill").args(["-TERM", &init.to_string()]).status().unwrap();
    let driver = machine.driver().await;
    let again =
        until("another first process", async || observed(&driver, id).await.pid.filter(|pid| *pid != init)).await;
    // It shuts down while nobody looks: that is known afterwards.
    log_shows(&driver, id, "login: ").await;
    drop(driver);
    until("the keeper's end", async || {
        let keepers = machine.keepers();
        // Again and again: an init that has just begun does not hear it.
        let _ = Command::new("kill").args(["-USR2", &again.to_string()]).stderr(Stdio::null()).status();
        keepers.is_empty().then_some(())
    })
    .await;
    let driver = machine.driver().await;
    let off = observed(&driver, id).await;
    assert_eq!((off.power, off.ended.as_deref()), (Power::Off, Some("shutdown")));
    driver.remove(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_keeper_takes_its_guest_along() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    log_shows(&driver, spec.id, "login: ").await;
    assert_eq!(shell(&driver, spec.id, "echo kept > /root/file; sync").await.0, Some(0));
    let mut events = driver.events();
    kill(machine.keepers()[0]);
    match tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap() {
        GuestEvent::Crashed(id, why) => assert!(id == spec.id && why.contains("keeper"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(groups(&spec.id.to_string()), Vec::<std::path::PathBuf>::new(), "nothing of it runs");
    driver.start(spec.id).await.unwrap();
    assert_eq!(shell(&driver, spec.id, "cat /root/file").await.1, "kept\n");
    // The same while nobody looks.
    drop(driver);
    kill(machine.keepers()[0]);
    let driver = machine.driver().await;
    let off = observed(&driver, spec.id).await;
    assert!(off.power == Power::Off && off.ended.unwrap().contains("keeper"));
    assert_eq!(groups(&spec.id.to_string()), Vec::<std::path::PathBuf>::new());
    // And with a record that was lost.
    driver.start(spec.id).await.unwrap();
    let pid = observed(&driver, spec.id).await.pid;
    drop(driver);
    fs::write(machine.state().join("guests").join(spec.id.to_string()).join("record.json"), "{").unwrap();
    let driver = machine.driver().await;
    assert_eq!(observed(&driver, spec.id).await.pid, pid);
    driver.remove(spec.id).await.unwrap();
}

/// A service in the network of this process, until it hears nothing. To be called on a thread of its own.
fn echo_datagrams(init: u32) {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    let network = fs::File::open(format!("/proc/{init}/ns/net")).unwrap();
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&network), Some(LinkNameSpaceType::Network)).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:7").unwrap();
    let mut datagram = [0; 64];
    while let Ok((length @ 1.., from)) = socket.recv_from(&mut datagram) {
        socket.send_to(&datagram[..length], from).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_lead_into_guests() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let (tcp, udp) = (free_port(), free_port());
    let spec = with_forward(Protocol::Tcp, tcp);
    let datagrams = with_forward(Protocol::Udp, udp);
    for spec in [&spec, &datagrams] {
        driver.define(spec).await.unwrap();
        driver.start(spec.id).await.unwrap();
    }
    shell(&driver, spec.id, ECHO).await;
    until("an echo", async || echoed(tcp)).await;
    let init = observed(&driver, datagrams.id).await.pid.unwrap();
    let echo = std::thread::spawn(move || echo_datagrams(init));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    until("a datagram's echo", async || {
        socket.send_to(b"hello", ("127.0.0.1", udp)).unwrap();
        let mut answer = [0; 16];
        let length = socket.recv(&mut answer).ok()?;
        (answer[..length] == *b"hello").then_some(())
    })
    .await;
    until("the echo's end", async || {
        socket.send_to(b"", ("127.0.0.1", udp)).unwrap();
        echo.is_finished().then_some(())
    })
    .await;
    // The port is taken, which stops nobody else.
    let other = with_forward(Protocol::Tcp, tcp);
    driver.define(&other).await.unwrap();
    assert_eq!(driver.start(other.id).await.unwrap_err().code, "port_in_use");
    assert_eq!(observed(&driver, other.id).await.power, Power::Off);
    driver.remove(spec.id).await.unwrap();
    assert_eq!(echoed(tcp), None, "the port is gone with the guest");
    driver.start(other.id).await.unwrap();
    driver.remove(other.id).await.unwrap();
    driver.remove(datagrams.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_drive_is_for_root_only() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let file = |path: &str, content: &str| ConfigFile { path: path.into(), content: content.into() };
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE+Y0xBrnvhkLbNjEWhkhhPuEcoDPqVcO1ZVgxRSEXnc test@nephos";
    let spec = GuestSpec {
        config_drive: vec![
            file("meta-data", &format!("local-hostname: web\npublic-keys:\n  - {key}\n")),
            file("user-data", "#!/bin/sh\necho user data ran on $(hostname) > /dev/console\n"),
            file("openstack/latest/meta_data.json", "{}"),
        ],
        ..spec()
    };
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    log_shows(&driver, spec.id, "user data ran on web").await;
    let script =
        "cat /run/nephos/config/openstack/latest/meta_data.json /root/.ssh/authorized_keys; ls -ld /run/nephos/config";
    let (code, text) = shell(&driver, spec.id, script).await;
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(key) && text.contains("drwx------"), "{text}");
    let (code, _) = shell(&driver, spec.id, "echo x > /run/nephos/config/meta-data").await;
    assert_ne!(code, Some(0), "it is read-only");
    // Other content at the next start.
    let other = GuestSpec { config_drive: vec![file("meta-data", "other")], ..spec.clone() };
    driver.define(&other).await.unwrap();
    driver.reboot(spec.id, StopMode::Soft(PATIENCE)).await.unwrap();
    assert_eq!(shell(&driver, spec.id, "cat /run/nephos/config/*").await.1, "other");
    driver.remove(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpacked_images_are_shared_and_removed_when_they_are_old() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let config = Config { keep_unused: Duration::ZERO, ..machine.config() };
    let driver = ContainerDriver::open(config).await.unwrap();
    let bases = || fs::read_dir(machine.state().join("bases")).unwrap().count();
    let (one, two) = (spec(), spec());
    let (first, second) = tokio::join!(driver.define(&one), driver.define(&two));
    first.unwrap();
    second.unwrap();
    assert_eq!(bases(), 1, "unpacked once");
    driver.remove(one.id).await.unwrap();
    assert_eq!(bases(), 1, "somebody stands on it");
    driver.remove(two.id).await.unwrap();
    assert_eq!(bases(), 0);
}

#[tokio::test]
async fn without_a_runtime_the_error_says_what_to_install() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let config = Config { runtimes: vec!["no-such-runtime".into()], ..machine.config() };
    let error = ContainerDriver::open(config).await.err().unwrap();
    assert_eq!(error.code, "containers_unavailable");
    assert!(error.next.iter().any(|step| step.cmd.as_deref().unwrap_or_default().contains("crun")));
    let driver = machine.driver().await;
    assert!(driver.capabilities().version.starts_with("crun "), "{}", driver.capabilities().version);
    assert_eq!(ContainerDriver::open(machine.config()).await.err().unwrap().code, "state_in_use");
}

/// Not a test of speed: it prints how long a server takes to be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn define_and_start_end_with_a_running_container() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    for image in ["unpacked first", "unpacked already"] {
        let spec = spec();
        let began = Instant::now();
        driver.define(&spec).await.unwrap();
        let defined = began.elapsed();
        driver.start(spec.id).await.unwrap();
        let started = began.elapsed();
        log_shows(&driver, spec.id, "login: ").await;
        eprintln!("image {image}: defined {defined:.0?}, running {started:.0?}, login {:.0?}", began.elapsed());
        assert_eq!(observed(&driver, spec.id).await.power, Power::On);
        driver.remove(spec.id).await.unwrap();
    }
}
