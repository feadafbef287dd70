//! Processes that a test answers for.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// The keepers of containers are this program itself, with this argument.
const KEEPER: &[u8] = b"container-keeper";

/// Processes that run a guest, a QEMU or the keeper of a container, whose working folder or arguments name a folder.
pub(crate) fn guests_in(folder: &Path) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return vec![] };
    let name = folder.to_string_lossy().into_owned();
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let program = fs::read_link(process.join("exe")).unwrap_or_default();
            let qemu = program.file_name().is_some_and(|file| file.to_string_lossy().starts_with("qemu-system"));
            let line = fs::read(process.join("cmdline")).unwrap_or_default();
            let keeper = line.split(|byte| *byte == 0).nth(1) == Some(KEEPER);
            let here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            let named = String::from_utf8_lossy(&line).contains(&name);
            qemu && (here || named) || keeper && here
        })
        .collect()
}

/// Ends the guests of a folder.
pub(crate) fn kill_guests_in(folder: &Path) {
    for pid in guests_in(folder) {
        send(pid, Signal::SIGKILL);
    }
    // What a killed keeper leaves is for the next agent to end, and there is none.
    for container in containers_in(folder) {
        for group in groups_of(&container) {
            end_group(&group);
        }
    }
}

/// The names of the containers that have anything in a folder.
fn containers_in(folder: &Path) -> Vec<String> {
    let places = [folder.join("node/containers/guests"), folder.join("containers/guests")];
    let entries = places.iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| name.starts_with("srv-")).collect()
}

/// The control groups of a container, of either version.
fn groups_of(container: &str) -> Vec<PathBuf> {
    let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let all = hierarchies.chain([PathBuf::from("/sys/fs/cgroup")]);
    all.map(|path| path.join("nephos").join(container)).filter(|path| path.is_dir()).collect()
}

/// Ends the processes of a group and removes it.
fn end_group(group: &Path) {
    for _ in 0..1000 {
        for pid in fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Ok(pid) = pid.parse() {
                send(pid, Signal::SIGKILL);
            }
        }
        // One that stands still does not notice.
        let _ = fs::write(group.join("freezer.state"), "THAWED");
        // Processes need a moment to leave.
        if fs::remove_dir(group).is_ok() || !group.exists() {
            return;
        }
        std::thread::yield_now();
    }
}

/// Sends a signal to a process; it may be gone.
pub(crate) fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// A test that is killed must not leave this child behind.
pub(crate) fn die_with_the_test(command: &mut Command) {
    // SAFETY: prctl is async-signal-safe and touches only the child.
    unsafe {
        command.pre_exec(|| {
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            Ok(())
        });
    }
}

/// The end of a log file.
pub(crate) fn end_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let start = text.len().saturating_sub(20_000);
    text.get(text.ceil_char_boundary(start)..).unwrap_or_default().to_owned()
}
