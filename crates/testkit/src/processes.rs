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

/// QEMU processes whose working folder or arguments name a folder.
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
            let here = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(folder));
            let named =
                fs::read(process.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&name));
            qemu && (here || named)
        })
        .collect()
}

/// Ends the guests of a folder.
pub(crate) fn kill_guests_in(folder: &Path) {
    for pid in guests_in(folder) {
        send(pid, Signal::SIGKILL);
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
