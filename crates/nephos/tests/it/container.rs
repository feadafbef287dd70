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
        ConfirmResize, ExecuteCommand, ListUsage, OpenConsole, PauseServer, RebootServer, RebuildServer, RescueServer,
        ResizeServer, Server, ServerState, SnapshotServer, StartServer, StopServer, UnpauseServer, UnrescueServer,
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
    guest::{guest_files, read_until},
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

/// A console of a server at which somebody has logged in, whatever it shows first: nothing yet, a prompt, or a shell that
/// somebody has left. What is typed while a login program starts is thrown away, so it is typed again.
async fn logged_in(client: &Client, name: &str) -> Box<dyn Duplex> {
    let mut console = client.tunnel(OpenConsole { server: name.parse().unwrap() }).await.unwrap().0;
    let (begin, mut screen) = (Instant::now(), String::new());
    loop {
        assert!(begin.elapsed() < nephos_testkit::LIMIT, "nobody can log in: {screen}");
        let mut buffer = [0; 4096];
        let heard = tokio::time::timeout(SILENCE, console.read(&mut buffer)).await;
        if let Ok(count) = &heard {
            let count = *count.as_ref().expect("the console is open");
            assert!(count > 0, "the console ended: {screen}");
            screen.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        // The shell asks where the cursor is.
        let prompt = screen.trim_end_matches("\u{1b}[6n").trim_end();
        let answer = if prompt.ends_with("login:") {
            "root\r"
        } else if prompt.ends_with("assword:") {
            "nephos\r"
        } else if prompt.ends_with('#') {
            return console;
        } else if heard.is_ok() {
            continue;
        } else {
            "\r"
        };
        screen.clear();
        console.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Runs a script in a server; its exit code and what it wrote.
async fn shell(client: &Client, name: &str, script: &str) -> (Option<i32>, String) {
    let command = json!({ "server": name, "command": ["sh", "-c", script] });
    let execute: ExecuteCommand = serde_json::from_value(command).unwrap();
    until(&format!("an answer to `{script}`"), || async {
        match client.call(execute.clone()).await {
            Ok(result) => Some((result.exit_code, format!("{}{}", result.stdout, result.stderr).trim().to_owned())),
            // It is just starting.
            Err(error) if error.code == "guest_agent_missing" => None,
            Err(error) => panic!("{script}: {error:?}"),
        }
    })
    .await
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
    assert_eq!(shell(client, name, KEPT).await, (Some(0), "so far".to_owned()), "{when}");
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

    let mut console = logged_in(&demo, "one").await;
    console.write_all(b"echo so far > /root/kept; sync; echo \"it is\"-written on $(hostname)\r").await.unwrap();
    read_until(&mut console, "it is-written on one").await;
    // The image is not written to: another server of it does not see that.
    created(&demo, "other", "box", "tiny").await;
    assert_ne!(shell(&demo, "other", KEPT).await.0, Some(0));
    delete_server(&demo, "other").await;

    let before = first_process(id).unwrap();
    done::<PauseServer>(&demo, one()).await;
    assert_eq!(server(&demo, "one").await.unwrap().state, ServerState::Paused);
    done::<UnpauseServer>(&demo, one()).await;
    assert_eq!(first_process(id), Some(before), "the same processes go on");
    // The shell that was left is still there.
    console.write_all(b"echo \"after a\" pause: $(cat /root/kept)\r").await.unwrap();
    read_until(&mut console, "after a pause: so far").await;
    drop(console);

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
    let (_, size) = shell(&demo, "one", "df -m / | tail -1 | awk '{ print $2 }'").await;
    assert!(size.parse::<u64>().unwrap() > 5 << 10, "its disk has grown from one GiB to ten: {size} MiB");

    done::<RescueServer>(&demo, one()).await;
    let rescued = shell(&demo, "one", "test ! -e /root/kept && cat /mnt/root/kept").await;
    assert_eq!(rescued, (Some(0), "so far".to_owned()), "in rescue it has another root, and its own one beside it");
    done::<UnrescueServer>(&demo, one()).await;
    expect_kept(&demo, "one", "after a rescue").await;

    done::<RebuildServer>(&demo, one()).await;
    assert_ne!(shell(&demo, "one", KEPT).await.0, Some(0), "a rebuilt server has another disk");
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

    // Memory: what fits is there, what does not ends who asks for it.
    assert_eq!(shell(&demo, "one", "dd if=/dev/zero of=/dev/null bs=16M count=1").await.0, Some(0));
    assert_eq!(shell(&demo, "one", "dd if=/dev/zero of=/dev/null bs=128M count=1").await.0, Some(137));
    // Processes: four per MiB, 256 at least.
    shell(&demo, "one", "n=0; while [ $n -lt 600 ]; do sleep 1000 >/dev/null 2>&1 & n=$((n + 1)); done").await;
    let most = processes(id).len();
    assert!((100..=256).contains(&most), "{most} processes");
    // Even now somebody who is there can end them.
    let init = i32::try_from(first_process(id).unwrap()).unwrap();
    for pid in processes(id).into_iter().map(|pid| pid as i32).filter(|pid| *pid != init) {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "sleep" {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    // Also those who have ended count until somebody has taken notice.
    until("the flood to end", || async move {
        let counts = groups(id).into_iter().map(|group| fs::read_to_string(group.join("pids.current")));
        let count: u32 = counts.flatten().next()?.trim().parse().ok()?;
        (count < 20).then_some(())
    })
    .await;
    // CPUs: four loops have the time of one.
    let busy = "for n in 1 2 3 4; do while :; do :; done >/dev/null 2>&1 & echo $!; done";
    let (code, busy) = shell(&demo, "one", busy).await;
    assert_eq!(code, Some(0), "{busy}");
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
    let rest = format!("kill -9 {}; echo so far > /root/kept; sync", busy.replace('\n', " "));
    assert_eq!(shell(&demo, "one", &rest).await.0, Some(0), "{rest}");
    // That it was busy is in its usage.
    until("samples of what it uses", || async {
        // However thin the machine had to spread its CPUs.
        let usage: ListUsage = serde_json::from_value(json!({ "server": "one", "limit": 3600 })).unwrap();
        let samples = demo.call(usage).await.unwrap().items;
        let busy: f64 = samples.iter().map(|sample| sample.cpu_seconds).sum();
        (busy > 1.0 && samples.iter().any(|sample| sample.memory_bytes.0 > 0)).then_some(())
    })
    .await;

    // Files go in and out by the command line.
    let folder = tempfile::tempdir().unwrap();
    let [there, back] = ["there", "back"].map(|name| folder.path().join(name));
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&there, &content).unwrap();
    let file = |path: &Path| path.display().to_string();
    cloud.nephos(&["server", "push", "one", "/root/pushed", "--file", &file(&there)]);
    cloud.nephos(&["server", "pull", "one", "/root/pushed", "--file", &file(&back)]);
    assert!(fs::read(&back).unwrap() == content, "a file comes back as it went");
    let told = cloud.nephos(&["server", "exec", "one", "--", "sha256sum", "/root/pushed"]);
    assert!(told.starts_with(&hex::encode(Sha256::digest(&content))), "{told}");

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
    logged_in(&demo, "one").await;

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
