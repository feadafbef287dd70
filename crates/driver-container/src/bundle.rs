//! What the runtime is told: an OCI bundle's `config.json`,
//! <https://github.com/opencontainers/runtime-spec/blob/main/config.md>.

use std::path::Path;

use nephos_driver::{GuestSpec, Interface};
use nephos_types::{MIB, ServerId};
use serde_json::{Value, json};

use crate::{cgroup, folder::Seat, ids, image::Program, keeper, seccomp};

/// What processes inside may ever be allowed: what Docker gives, and to restart or end itself, which in a PID namespace
/// of its own is all that `CAP_SYS_BOOT` allows.
const CAPABILITIES: [&str; 15] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_BOOT",
    "CAP_SYS_CHROOT",
];

/// Parts of the kernel's file systems that say too much about the machine.
const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
];
/// Parts that would change the machine.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Processes and threads of one container: so many for each MiB of its memory, within these bounds. More than ordinary
/// servers have, and a small part of what a machine has.
const PROCESSES_PER_MIB: u64 = 4;
const PROCESSES: (u64, u64) = (256, 4096);
/// Microseconds in which a container may use its CPUs' time.
const PERIOD: u64 = 100_000;
/// Open files that programs may have without asking for more, and after.
const FILES: (u64, u64) = (1024, 65_536);
/// Where a guest in rescue finds its own root.
const OWN: &str = "/mnt";
/// Where the configuration drive's files are.
const CONFIG: &str = "/run/nephos/config";

/// The name of a guest's container and control groups.
pub(crate) fn name(id: ServerId) -> String {
    id.to_string()
}

/// The bundle of a guest. `rootfs` and the terminal are where the keeper puts them.
pub(crate) fn config(spec: &GuestSpec, program: &Program, seat: &Seat) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let mut mounts = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
        mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/run", "tmpfs", &["nosuid", "nodev", "mode=755"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
    ];
    let bind = |destination: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": "bind", "source": keeper::at(source), "options": options });
    if program.is_init {
        mounts.push(bind("/dev/console", keeper::TERMINAL, &["bind", "nosuid", "noexec"]));
    }
    if !spec.config_drive.is_empty() {
        mounts.push(bind(CONFIG, "config", &["rbind", "ro", "nosuid", "noexec", "nodev"]));
    }
    if spec.rescue.is_some() {
        mounts.push(bind(OWN, keeper::OWN, &["rbind", "nosuid", "nodev"]));
    }
    let mut environment = program.environment.clone();
    for (name, value) in [("TERM", "vt100"), ("HOME", "/root"), ("container", "nephos")] {
        if !environment.iter().any(|variable| variable.split_once('=').is_some_and(|(known, _)| known == name)) {
            environment.push(format!("{name}={value}"));
        }
    }
    let map = json!([{ "containerID": 0, "hostID": seat.ids, "size": ids::COUNT }]);
    let mut cpu = json!({ "quota": u64::from(spec.vcpus) * PERIOD, "period": PERIOD });
    if !seat.cpus.is_empty() {
        let list: Vec<String> = seat.cpus.iter().map(ToString::to_string).collect();
        cpu["cpus"] = json!(list.join(","));
    }
    let processes = (spec.memory.0 / MIB).saturating_mul(PROCESSES_PER_MIB).clamp(PROCESSES.0, PROCESSES.1);
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup", "user"];
    let mut namespaces = kinds.map(|kind| json!({ "type": kind })).to_vec();
    namespaces.push(match network(spec) {
        Some(path) => json!({ "type": "network", "path": path }),
        None => json!({ "type": "network" }),
    });
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": !program.is_init,
            "consoleSize": { "width": 80, "height": 24 },
            "user": { "uid": program.uid, "gid": program.gid, "additionalGids": program.groups },
            "args": program.arguments,
            "env": environment,
            "cwd": program.folder,
            "capabilities": capabilities(program.uid),
            "rlimits": limits(),
            "noNewPrivileges": true,
        },
        "root": { "path": keeper::at("rootfs") },
        "hostname": host_name(&spec.name),
        "mounts": mounts,
        "linux": {
            "cgroupsPath": format!("/{}/{}", cgroup::PARENT, name(spec.id)),
            "uidMappings": map,
            "gidMappings": map,
            "namespaces": namespaces,
            "resources": {
                "devices": [{ "allow": false, "access": "rwm" }],
                // No swap beyond the memory.
                "memory": { "limit": spec.memory.0, "swap": spec.memory.0 },
                "cpu": cpu,
                "pids": { "limit": processes },
            },
            "seccomp": seccomp::profile(),
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

/// What a process of this user begins with, and can at most get.
pub(crate) fn capabilities(uid: u32) -> Value {
    let all = json!(CAPABILITIES);
    let effective = if uid == 0 { all.clone() } else { json!([]) };
    json!({ "bounding": all, "permitted": effective, "effective": effective })
}

/// Resource limits of processes. The agent itself may have less than what is usual.
pub(crate) fn limits() -> Value {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let hard = FILES.1.min(own);
    json!([
        { "type": "RLIMIT_NOFILE", "soft": FILES.0.min(hard), "hard": hard },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 },
    ])
}

/// The network namespace that is there for the guest; without one it gets one of its own with nothing in it.
fn network(spec: &GuestSpec) -> Option<&Path> {
    spec.interfaces.iter().rev().find_map(|interface| match interface {
        Interface::Namespace { path } => Some(path.as_path()),
        Interface::User { .. } | Interface::Tap { .. } => None,
    })
}

/// A host name (RFC 1123) from a server's name, which may hold anything.
fn host_name(name: &str) -> String {
    let kept: String = name
        .chars()
        .map(|char| if char.is_ascii_alphanumeric() || char == '.' { char } else { '-' })
        .take(63)
        .collect();
    let kept = kept.trim_matches(['-', '.']);
    if kept.is_empty() { "server".to_owned() } else { kept.to_ascii_lowercase() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_makes_a_host_name() {
        assert_eq!(host_name("web-1"), "web-1");
        assert_eq!(host_name("Web Server"), "web-server");
        assert_eq!(host_name("../../etc"), "etc");
        assert_eq!(host_name("名前"), "server");
        assert_eq!(host_name(&"x".repeat(300)).len(), 63);
    }
}
