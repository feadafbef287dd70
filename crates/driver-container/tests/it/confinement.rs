//! What a container cannot do, and limits that really limit.

use std::{fs, net::TcpListener, time::Instant};

use nephos_driver::{ComputeDriver, Disk, GuestSpec};
use nephos_driver_container::ContainerDriver;
use nephos_types::Bytes;

use crate::surroundings::{Machine, containers_can_run, groups, log_shows, observed, shell, spec, until};

async fn started(driver: &ContainerDriver, spec: &GuestSpec) {
    driver.define(spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    log_shows(driver, spec.id, "login: ").await;
}

fn status(pid: u32, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_is_alone_and_has_few_rights() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let (one, two) = (spec(), spec());
    started(&driver, &one).await;
    started(&driver, &two).await;
    let mut users = vec![];
    for spec in [&one, &two] {
        let pid = observed(&driver, spec.id).await.pid.unwrap();
        assert_eq!(status(pid, "Seccomp"), "2", "system calls are filtered");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        // The fourteen that Docker gives, and CAP_SYS_BOOT.
        assert_eq!(status(pid, "CapBnd"), "00000000a84425fb");
        let user: u32 = status(pid, "Uid").split_ascii_whitespace().next().unwrap().parse().unwrap();
        assert!(user >= 1_500_000_000, "its root is nobody outside: {user}");
        users.push(user);
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let Ok(target) = fs::read_link(entry.unwrap().path()) else { continue };
            let target = target.display().to_string();
            assert!(target.starts_with("/dev/") || target.starts_with("pipe:"), "a descriptor of {target}");
        }
        // Programs that are run in it have no more than it has.
        let (_, inside) = shell(&driver, spec.id, "grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status").await;
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapEff:\t00000000a84425fb"] {
            assert!(inside.contains(line), "{inside}");
        }
    }
    assert_ne!(users[0], users[1], "each has users of its own");

    // A service of the machine's loopback, which a container must not reach.
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    service.set_nonblocking(true).unwrap();
    let port = service.local_addr().unwrap().port();
    let own = std::process::id();
    for (what, script) in [
        ("see a process of the machine", format!("test -e /proc/{own}/comm && grep -q it- /proc/{own}/comm")),
        ("end a process of the machine", format!("kill -0 {own}")),
        ("mount", "mount -t tmpfs none /mnt".to_owned()),
        ("mount over", "mount --bind /root /mnt".to_owned()),
        ("make a disk's device", "mknod /root/disk b 254 0 && dd if=/root/disk bs=512 count=1".to_owned()),
        ("load a module", "insmod /bin/busybox".to_owned()),
        ("reach the machine", format!("echo | nc -w 2 127.0.0.1 {port}")),
        ("set the clock", "date -s 2000-01-01; test $(date +%Y) = 2000".to_owned()),
        ("change kernel settings", "echo 1 > /proc/sys/kernel/panic".to_owned()),
        ("press the magic key", "echo h > /proc/sysrq-trigger".to_owned()),
        ("read the kernel's memory", "test $(head -c 1 /proc/kcore | wc -c) = 1".to_owned()),
        (
            "change its control groups",
            "for f in /sys/fs/cgroup/memory* /sys/fs/cgroup/memory/memory.limit_in_bytes; do \
          echo -1 > $f && exit 0; done; exit 1"
                .to_owned(),
        ),
        ("change devices", "echo 1 > /sys/block/vda/queue/read_ahead_kb".to_owned()),
        ("make namespaces", "unshare -m true".to_owned()),
        ("make a user namespace", "unshare -U true".to_owned()),
        ("read the kernel's log", "dmesg | grep .".to_owned()),
        ("leave its root", "ls /../../../../work /proc/1/root/../../etc/shadow".to_owned()),
    ] {
        let (code, text) = shell(&driver, one.id, &script).await;
        assert_ne!(code, Some(0), "it could {what}: {text}");
    }
    assert!(service.accept().is_err(), "nobody came");
    let (_, processes) = shell(&driver, one.id, "ls -d /proc/[0-9]* | wc -l").await;
    assert!(processes.trim().parse::<u32>().unwrap() < 10, "it sees only its own processes: {processes}");
    let (_, network) = shell(&driver, one.id, "ls /sys/class/net").await;
    assert_eq!(network.trim(), "lo", "and only its own network");
    driver.remove(one.id).await.unwrap();
    driver.remove(two.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_limited() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    started(&driver, &spec).await;
    let (code, _) = shell(&driver, spec.id, "dd if=/dev/zero of=/dev/null bs=16M count=1").await;
    assert_eq!(code, Some(0), "what fits is there");
    let (code, text) = shell(&driver, spec.id, "dd if=/dev/zero of=/dev/null bs=128M count=1").await;
    assert_eq!(code, Some(137), "what does not is ended: {text}");
    // Files in memory count as well.
    let (code, _) = shell(&driver, spec.id, "dd if=/dev/zero of=/dev/shm/large bs=1M count=128").await;
    assert_ne!(code, Some(0));
    let used = driver.usage(spec.id).await.unwrap();
    assert!(used.memory <= spec.memory && used.memory > Bytes(0), "{used:?}");
    assert_eq!(shell(&driver, spec.id, "rm /dev/shm/large; echo alive").await.1, "alive\n", "the others live on");
    driver.remove(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn processors_are_limited() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    started(&driver, &spec).await;
    let busy = "for n in 1 2 3 4; do while :; do :; done > /dev/null 2>&1 & done";
    shell(&driver, spec.id, busy).await;
    let (began, before) = (Instant::now(), driver.usage(spec.id).await.unwrap().cpu);
    let used = until("CPU time", async || {
        let used = driver.usage(spec.id).await.unwrap().cpu - before;
        (used.as_millis() > 1500).then_some(used)
    })
    .await;
    let share = used.as_secs_f64() / began.elapsed().as_secs_f64();
    assert!(share < 1.3, "one CPU's time, not {share:.2} CPUs'");
    driver.remove(spec.id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_processes_ends_in_the_container() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = spec();
    started(&driver, &spec).await;
    let flood = "n=0; while [ $n -lt 2000 ]; do sleep 1000 > /dev/null 2>&1 & n=$((n + 1)); done";
    shell(&driver, spec.id, flood).await;
    let count =
        |group: &std::path::PathBuf| fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines().count();
    let most = groups(&spec.id.to_string()).iter().map(count).max().unwrap();
    assert!((20..=256).contains(&most), "{most} processes");
    let began = Instant::now();
    driver.remove(spec.id).await.unwrap();
    eprintln!("{most} processes were gone after {:.1?}", began.elapsed());
    assert_eq!(groups(&spec.id.to_string()), Vec::<std::path::PathBuf>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_is_limited_grows_and_keeps_what_is_on_it() {
    if !containers_can_run() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let small = spec();
    started(&driver, &small).await;
    let (_, size) = shell(&driver, small.id, "df -m / | tail -1 | awk '{ print $2 }'").await;
    assert!((40..=64).contains(&size.trim().parse::<u32>().unwrap()), "{size}");
    let (code, text) = shell(&driver, small.id, "dd if=/dev/zero of=/root/large bs=1M count=100").await;
    assert!(code != Some(0) && text.contains("No space left"), "{text}");
    assert_eq!(shell(&driver, small.id, "rm /root/large; echo kept > /root/file; sync").await.0, Some(0));
    let used = driver.usage(small.id).await.unwrap();
    assert!(used.disk_written > Bytes::mib(10), "{used:?}");
    driver.stop(small.id, nephos_driver::StopMode::Hard).await.unwrap();

    let large = GuestSpec { disk: Disk { size: Bytes::mib(200), ..small.disk.clone() }, ..small.clone() };
    driver.define(&large).await.unwrap();
    driver.start(large.id).await.unwrap();
    let (_, text) =
        shell(&driver, large.id, "cat /root/file; dd if=/dev/zero of=/root/large bs=1M count=100 2>&1; ls /root").await;
    assert!(text.starts_with("kept\n") && !text.contains("No space"), "{text}");
    assert_eq!(driver.define(&small).await.unwrap_err().code, "disk_cannot_shrink");
    let other = Disk { base: Some(("/another/image".into(), nephos_driver::DiskFormat::Tar)), ..large.disk.clone() };
    let refused = driver.define(&GuestSpec { disk: other, ..large.clone() }).await;
    assert_eq!(refused.unwrap_err().code, "disk_in_use");
    driver.remove(large.id).await.unwrap();
}
