//! Containers as servers, through the real binary: their whole life, what stays and what does not, the limits, and
//! everything that must be left of them: nothing.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use nephos_cli::client::Client;
use nephos_ops::{
    Duplex, Operation, Started,
    compute::{
        ConfirmResize, OpenConsole, PauseServer, RebootServer, RebuildServer, RescueServer, ResizeServer, Server,
        ServerState, SnapshotServer, StartServer, StopServer, UnpauseServer, UnrescueServer,
    },
    image::ShowImage,
    node::{ListNodes, Node, NodeState},
};
use nephos_testkit::{CloudProcess, Machine, Settings, until};
use nephos_types::ServerId;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    NEPHOS,
    guest::guest_files,
    help::{console_log, create_server, delete_server, server, succeeded, upload_image},
    nodes::{join_command, set_enabled},
};

/// How long a console may be silent before it is typed to again.
const SILENCE: Duration = Duration::from_secs(2);

/// Whether containers can be run here; if not, it is said loudly.
fn containers_can_run() -> bool {
    let installed = ["/usr/bin/crun", "/usr/sbin/runc", "/usr/bin/runc"].iter().any(|path| Path::new(path).exists());
    let root = nix::unistd::geteuid().is_root();
    if !root || !installed {
        eprintln!("\n*** NOT TESTED: containers need root and crun or runc (root: {root}, runtime: {installed}) ***\n");
    }
    root && installed
}

async fn micro_container() -> PathBuf {
    tokio::task::spawn_blocking(|| nephos_image_build::micro_container(&Default::default(), &mut |_| {}))
        .await
        .unwrap()
        .expect("the micro container is built")
}

/// Has something done to a server, from its fields, and waits until it is.
async fn done<O>(client: &Client, fields: Value)
where
    O: Operation<Output = Started<Server>> + DeserializeOwned,
{
    let started = client.call::<O>(serde_json::from_value(fields).unwrap()).await.unwrap();
    succeeded(client, started.workflow).await;
}

/// Makes a server and waits until it runs.
async fn created(client: &Client, name: &str, image: &str, flavor: &str) -> Server {
    let create = serde_json::from_value(json!({ "name": name, "image": image, "flavor": flavor })).unwrap();
    let started = client.call::<nephos_ops::compute::CreateServer>(create).await.unwrap();
    succeeded(client, started.workflow).await;
    let server = server(client, name).await.unwrap();
    assert_eq!((server.state, server.driver.as_str()), (ServerState::Active, "container"), "{server:#?}");
    server
}

/// A person at a server's console, logged in.
struct Terminal {
    console: Box<dyn Duplex>,
    screen: String,
    lines: u32,
}

impl Terminal {
    /// Logs in, whatever the console shows first: nothing yet, a prompt, or a shell that somebody has left. What is
    /// typed while a login program starts is thrown away, so it is typed again.
    async fn log_in(client: &Client, name: &str) -> Self {
        let console = client.tunnel(OpenConsole { server: name.parse().unwrap() }).await.unwrap().0;
        let mut terminal = Self { console, screen: String::new(), lines: 0 };
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < nephos_testkit::LIMIT, "nobody can log in: {}", terminal.screen);
            let heard = tokio::time::timeout(SILENCE, terminal.read()).await.is_ok();
            // The shell asks where the cursor is.
            let prompt = terminal.screen.trim_end_matches("\u{1b}[6n").trim_end();
            let answer = if prompt.ends_with("login:") {
                "root\r"
            } else if prompt.ends_with("assword:") {
                "nephos\r"
            } else if prompt.ends_with('#') {
                return terminal;
            } else if heard {
                continue;
            } else {
                "\r"
            };
            terminal.screen.clear();
            terminal.console.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    async fn read(&mut self) {
        let mut buffer = [0; 4096];
        let count = self.console.read(&mut buffer).await.expect("the console is open");
        assert!(count > 0, "the console ended: {}", self.screen);
        self.screen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }

    /// Runs a command; its exit code and what it wrote. The quotes keep the echo from looking like the answer.
    async fn run(&mut self, command: &str) -> (i32, String) {
        self.lines += 1;
        let (begin, end) = (format!("begin-{}", self.lines), format!("end-{}=", self.lines));
        let line = format!("echo be\"gin\"-{0}; {command}; echo en\"d\"-{0}=$?.\r", self.lines);
        self.screen.clear();
        self.console.write_all(line.as_bytes()).await.unwrap();
        let reading = async {
            loop {
                let answer = self.screen.split_once(&begin).and_then(|(_, rest)| rest.split_once(&end));
                if let Some((said, rest)) = answer
                    && let Some((code, _)) = rest.split_once('.')
                {
                    return (code.parse().unwrap(), said.trim().to_owned());
                }
                self.read().await;
            }
        };
        tokio::time::timeout(nephos_testkit::LIMIT, reading).await.unwrap_or_else(|_| panic!("{command}: no end"))
    }
}

/// The control groups of a server.
fn groups(id: ServerId) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(|path| path.join("nephos").join(id.to_string())).filter(|path| path.exists()).collect()
}

/// The processes of a server, in any of its groups or below.
fn processes(id: ServerId) -> Vec<u32> {
    let mut found: Vec<u32> = groups(id)
        .iter()
        .flat_map(|group| {
            let list = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            list.lines().filter_map(|line| line.parse().ok()).collect::<Vec<u32>>()
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// The first process of a server: of its processes the one that is number 1 inside.
fn first_process(id: ServerId) -> Option<u32> {
    processes(id).into_iter().find(|pid| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let inside = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        inside.is_some_and(|numbers| numbers.split_whitespace().last() == Some("1"))
    })
}

/// What is left of a server on the machine: groups, processes, mounts wherever they are, devices.
fn left_of(id: ServerId) -> Vec<String> {
    let id_text = id.to_string();
    let mut left: Vec<String> = groups(id).iter().map(|path| path.display().to_string()).collect();
    for process in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd.display().to_string().contains(&id_text)) {
            left.push(format!("process {pid}"));
        }
        let mounts = fs::read_to_string(process.path().join("mountinfo")).unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&id_text)).map(|line| format!("{pid} sees {line}")));
    }
    for device in fs::read_dir("/sys/block").into_iter().flatten().flatten() {
        let file = fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if file.contains(&id_text) {
            left.push(file);
        }
    }
    left
}

async fn this_node(cloud: &CloudProcess) -> Node {
    let admin = cloud.admin().await;
    until("the node to be up", || async {
        let node = admin.call(ListNodes::default()).await.ok()?.items.into_iter().next()?;
        (node.state == NodeState::Up && !node.drivers.is_empty()).then_some(node)
    })
    .await
}

const KEPT: &str = "cat /root/kept";

async fn expect_kept(client: &Client, name: &str, when: &str) {
    let (code, said) = Terminal::log_in(client, name).await.run(KEPT).await;
    assert_eq!((code, said.as_str()), (0, "so far"), "{when}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_container_writes_is_there_as_long_as_it_should_be() {
    if !containers_can_run() {
        return;
    }
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let drivers: Vec<String> = this_node(&cloud).await.drivers.into_iter().map(|driver| driver.name).collect();
    assert!(drivers.contains(&"container".to_owned()), "{drivers:?}");
    let demo = cloud.demo().await;
    upload_image(&demo, "box", "tar", &micro_container().await).await;
    let begin = Instant::now();
    let id = created(&demo, "one", "box", "tiny").await.id;
    eprintln!("create to active: {:.2?}", begin.elapsed());
    let one = || json!({ "server": "one" });

    let mut terminal = Terminal::log_in(&demo, "one").await;
    assert_eq!(terminal.run("hostname").await, (0, "one".to_owned()));
    assert_eq!(terminal.run("echo so far > /root/kept; sync").await.0, 0);
    // The image is not written to: another server of it does not see that.
    created(&demo, "other", "box", "tiny").await;
    assert_ne!(Terminal::log_in(&demo, "other").await.run(KEPT).await.0, 0);
    delete_server(&demo, "other").await;

    let before = first_process(id).unwrap();
    done::<PauseServer>(&demo, one()).await;
    assert_eq!(server(&demo, "one").await.unwrap().state, ServerState::Paused);
    done::<UnpauseServer>(&demo, one()).await;
    assert_eq!(first_process(id), Some(before), "the same processes go on");
    // The shell that was left is still there.
    assert_eq!(terminal.run(KEPT).await.1, "so far", "after a pause");

    done::<StopServer>(&demo, one()).await;
    assert_eq!((server(&demo, "one").await.unwrap().state, processes(id)), (ServerState::Stopped, vec![]));
    done::<StartServer>(&demo, one()).await;
    expect_kept(&demo, "one", "after a stop").await;
    for hard in [false, true] {
        let before = first_process(id);
        done::<RebootServer>(&demo, json!({ "server": "one", "hard": hard })).await;
        until("another first process", || async move { first_process(id).filter(|now| Some(*now) != before) }).await;
        expect_kept(&demo, "one", if hard { "after a hard reboot" } else { "after a soft reboot" }).await;
    }

    let snapshot: SnapshotServer = serde_json::from_value(json!({ "server": "one", "name": "copy" })).unwrap();
    let started = demo.call(snapshot).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let copy = demo.call(ShowImage { image: "copy".parse().unwrap() }).await.unwrap();
    assert_eq!(copy.format, Some(nephos_ops::image::ImageFormat::Tar), "{copy:#?}");
    created(&demo, "from-copy", "copy", "tiny").await;
    expect_kept(&demo, "from-copy", "in a server made from the snapshot").await;
    delete_server(&demo, "from-copy").await;

    done::<ResizeServer>(&demo, json!({ "server": "one", "flavor": "small" })).await;
    demo.call(ConfirmResize { server: "one".parse().unwrap() }).await.unwrap();
    expect_kept(&demo, "one", "after a resize").await;
    let mut terminal = Terminal::log_in(&demo, "one").await;
    let (_, size) = terminal.run("df -m / | tail -1 | awk '{ print $2 }'").await;
    assert!(size.parse::<u64>().unwrap() > 5 << 10, "its disk has grown from one GiB to ten: {size} MiB");

    done::<RescueServer>(&demo, one()).await;
    let (code, said) = Terminal::log_in(&demo, "one").await.run("test ! -e /root/kept && cat /mnt/root/kept").await;
    assert_eq!((code, said.as_str()), (0, "so far"), "in rescue it has another root, and its own one beside it");
    done::<UnrescueServer>(&demo, one()).await;
    expect_kept(&demo, "one", "after a rescue").await;

    done::<RebuildServer>(&demo, one()).await;
    assert_ne!(Terminal::log_in(&demo, "one").await.run(KEPT).await.0, 0, "a rebuilt server has another disk");
    assert_eq!(server(&demo, "one").await.unwrap().id, id);

    delete_server(&demo, "one").await;
    assert_eq!(left_of(id), Vec::<String>::new());
    assert_eq!(guest_files(&cloud.data()), Vec::<String>::new());
    assert!(cloud.guests().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_outlives_the_cloud_and_keeps_within_its_limits() {
    if !containers_can_run() {
        return;
    }
    let mut cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    upload_image(&demo, "box", "tar", &micro_container().await).await;
    cloud.nephos(&["--cloud", "nephos-admin", "flavor", "create", "nano", "--vcpus", "1", "--memory-mib", "64"]);
    let id = created(&demo, "one", "box", "nano").await.id;
    let mut terminal = Terminal::log_in(&demo, "one").await;

    // Memory: what fits is there, what does not ends who asks for it.
    assert_eq!(terminal.run("dd if=/dev/zero of=/dev/null bs=16M count=1").await.0, 0);
    assert_eq!(terminal.run("dd if=/dev/zero of=/dev/null bs=128M count=1").await.0, 137);
    // Processes: four per MiB, 256 at least.
    let flood = "n=0; while [ $n -lt 600 ]; do sleep 1000 2>/dev/null & n=$((n + 1)); done; echo made";
    terminal.console.write_all(format!("({flood}) >/dev/null 2>&1; killall sleep\r").as_bytes()).await.unwrap();
    let mut most = 0;
    until("a flood of processes to end", || {
        let now = processes(id).len();
        let over = most > 100 && now < 20;
        most = most.max(now);
        async move { over.then_some(()) }
    })
    .await;
    assert!(most <= 256, "{most} processes");
    // CPUs: four loops have the time of one.
    let mut terminal = Terminal::log_in(&demo, "one").await;
    assert_eq!(terminal.run("for n in 1 2 3 4; do while :; do :; done & done 2>/dev/null").await.0, 0);
    let used = || -> u64 {
        let file = groups(id).into_iter().map(|group| group.join("cpuacct.usage")).find(|file| file.exists());
        match file {
            Some(file) => fs::read_to_string(file).unwrap().trim().parse::<u64>().unwrap() / 1000,
            None => {
                let stat = groups(id).into_iter().map(|group| group.join("cpu.stat")).find(|file| file.exists());
                let text = fs::read_to_string(stat.unwrap()).unwrap();
                text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap().parse().unwrap()
            }
        }
    };
    let (begin, before) = (Instant::now(), used());
    until("CPU time", || {
        let enough = used() - before > 1_500_000;
        async move { enough.then_some(()) }
    })
    .await;
    let share = (used() - before) as f64 / begin.elapsed().as_micros() as f64;
    assert!(share < 1.3, "one CPU's time, not {share:.2} CPUs'");
    terminal.run("kill %1 %2 %3 %4").await;
    terminal.run("echo so far > /root/kept").await;
    drop(terminal);

    // The cloud dies and comes back; the container does not notice.
    let (guests, first) = (cloud.guests(), first_process(id));
    assert_eq!(guests.len(), 1);
    cloud.kill();
    assert_eq!((cloud.guests(), first_process(id)), (guests.clone(), first));
    cloud.start_again().await;
    let demo = cloud.demo().await;
    until("the server to be seen running again", || async {
        (server(&demo, "one").await?.state == ServerState::Active).then_some(())
    })
    .await;
    assert_eq!((cloud.guests(), first_process(id)), (guests, first), "it was adopted, not started again");
    assert_eq!(server(&demo, "one").await.unwrap().restarts, 0);
    expect_kept(&demo, "one", "after the cloud's death").await;

    // Its keeper dies: that is a crash, and it is started again.
    let keeper = cloud.guests()[0];
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper as i32), nix::sys::signal::Signal::SIGKILL).unwrap();
    until("the crashed container to run again", || async {
        let server = server(&demo, "one").await?;
        (server.restarts == 1 && server.state == ServerState::Active).then_some(())
    })
    .await;
    assert_ne!(first_process(id), first);
    expect_kept(&demo, "one", "after a crash").await;

    delete_server(&demo, "one").await;
    assert_eq!(left_of(id), Vec::<String>::new());
    assert_eq!(guest_files(&cloud.data()), Vec::<String>::new());
    assert!(cloud.stop().await.success());
}

/// A tar archive of these files.
fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(vec![]);
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, content.as_slice()).unwrap();
    }
    archive.into_inner().unwrap()
}

/// An OCI image layout as an archive (OCI image specification 1.0): a root file system, and one more layer.
fn layout(root: &Path, config: &Value) -> Vec<u8> {
    let mut zip = GzEncoder::new(vec![], Compression::fast());
    zip.write_all(&archive(&[("app/greeting".to_owned(), b"good morning\n".to_vec())])).unwrap();
    let layers = [fs::read(root).unwrap(), zip.finish().unwrap()];
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut add = |bytes: Vec<u8>, kind: &str| {
        let digest = hex::encode(Sha256::digest(&bytes));
        let descriptor = json!({ "mediaType": kind, "digest": format!("sha256:{digest}"), "size": bytes.len() });
        files.push((format!("blobs/sha256/{digest}"), bytes));
        descriptor
    };
    let layers = layers.map(|layer| add(layer, "application/vnd.oci.image.layer.v1.tar+gzip"));
    let here = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let config = json!({ "architecture": here, "os": "linux", "config": config }).to_string();
    let config = add(config.into_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
    let mut manifest = add(manifest.into_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["platform"] = json!({ "architecture": here, "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string();
    files.push(("index.json".to_owned(), index.into_bytes()));
    archive(&files)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_oci_image_runs_its_own_program() {
    if !containers_can_run() {
        return;
    }
    let cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    let script = "cat greeting; echo $MOOD; sleep 100000";
    let config = json!({
        "Env": ["MOOD=cheerful"], "Entrypoint": ["/bin/sh", "-c"], "Cmd": [script], "WorkingDir": "/app",
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("app.tar");
    fs::write(&file, layout(&micro_container().await, &config)).unwrap();
    upload_image(&demo, "app", "oci", &file).await;
    let id = created(&demo, "app", "app", "tiny").await.id;
    for text in ["good morning", "cheerful"] {
        until(&format!("the console log to show {text}"), || async {
            console_log(&demo, "app").await?.contains(text).then_some(())
        })
        .await;
    }
    delete_server(&demo, "app").await;
    assert_eq!(left_of(id), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_goes_on_with_the_drivers_that_it_can_have() {
    if !containers_can_run() {
        return;
    }
    // QEMU is looked for in PATH, runtimes where the system has them.
    let empty = tempfile::tempdir().unwrap();
    let environment = vec![("PATH".to_owned(), empty.path().display().to_string())];
    let cloud = CloudProcess::start(NEPHOS, Settings { environment, ..Settings::default() }).await;
    let node = this_node(&cloud).await;
    let names: Vec<&str> = node.drivers.iter().map(|driver| driver.name.as_str()).collect();
    assert_eq!(names, ["container"]);
    assert_eq!(node.missing_drivers.len(), 1);
    assert!(node.missing_drivers[0].name == "qemu" && node.missing_drivers[0].reason.contains("QEMU"), "{node:#?}");
    assert!(cloud.log_text().contains("goes on without a driver"), "the log says so, too");
    let demo = cloud.demo().await;
    upload_image(&demo, "box", "tar", &micro_container().await).await;
    created(&demo, "one", "box", "tiny").await;
    delete_server(&demo, "one").await;
    // What no node can run is refused, with what to do about it.
    crate::help::blank_image(&demo, "blank").await;
    let error = demo.call(create_server("two", "blank")).await.unwrap_err();
    assert_eq!(error.code, "no_placement");
    assert!(error.detail.contains("raw") && error.next.iter().any(|step| step.action.contains("QEMU")), "{error:?}");
}

/// Another machine's agent runs in a network namespace, where no control groups are to be seen: a container there would
/// have no limits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_control_groups_runs_no_containers_and_says_so() {
    let Some(mut machine) = Machine::new(NEPHOS) else { return };
    let settings = Settings { node_listen: Some(machine.near_address().into()), ..Settings::default() };
    let cloud = CloudProcess::start(NEPHOS, settings).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    let here = this_node(&cloud).await.id;
    let join = join_command(&cloud);
    machine.start_agent(&join.iter().map(String::as_str).collect::<Vec<_>>());
    let there = until("the other node to join", || async {
        let nodes = admin.call(ListNodes::default()).await.ok()?.items;
        nodes.into_iter().find(|node| node.id != here && node.state == NodeState::Up && !node.drivers.is_empty())
    })
    .await;
    let names: Vec<&str> = there.drivers.iter().map(|driver| driver.name.as_str()).collect();
    assert_eq!(names, ["qemu"]);
    assert_eq!(there.missing_drivers.len(), 1, "{there:#?}");
    let missing = &there.missing_drivers[0];
    assert!(missing.name == "container" && missing.reason.contains("control groups"), "{missing:?}");
    set_enabled(&admin, here, false).await;
    upload_image(&demo, "box", "tar", &micro_container().await).await;
    let error = demo.call(create_server("one", "box")).await.unwrap_err();
    assert_eq!(error.code, "no_placement");
    let why: Vec<(&str, &str)> =
        error.reasons.iter().map(|reason| (reason.subject.as_str(), reason.constraint.as_str())).collect();
    assert!(why.contains(&(there.name.as_str(), "format")), "{error:#?}");
    assert!(machine.stop_agent().await.success());
}
