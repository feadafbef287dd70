//! What an unpacked image says about how it is run.

use nix::libc;
use serde::{Deserialize, Serialize};

/// The first process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Program {
    /// The program and its arguments.
    pub(crate) arguments: Vec<String>,
    /// Environment, `NAME=value`.
    pub(crate) environment: Vec<String>,
    /// Its working folder.
    pub(crate) folder: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// The signal that asks it to end.
    pub(crate) stop_signal: i32,
    /// Whether it is an init, which opens its terminals for its children, rather than a program that people type to.
    pub(crate) is_init: bool,
}

/// What programs find if the image says nothing.
pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

impl Program {
    /// An init; `real` is the file behind its name, which tells what it understands.
    pub(crate) fn init(name: &str, real: &str) -> Self {
        let stop_signal = if real.contains("systemd") {
            // systemd(1): halt, which in a container ends it.
            libc::SIGRTMIN() + 3
        } else if real.contains("busybox") {
            libc::SIGUSR2
        } else {
            // What a power failure is to sysvinit and its likes; containers' inits shut down.
            libc::SIGPWR
        };
        Self { stop_signal, is_init: true, ..Self::shell(&[name]) }
    }

    /// Refuses what cannot be run, or has been a way out of containers.
    pub(crate) fn check(self) -> Result<Self, String> {
        let texts = || self.arguments.iter().chain(&self.environment).chain([&self.folder]);
        if texts().any(|text| text.contains('\0')) || self.arguments.first().is_none_or(String::is_empty) {
            return Err("its command cannot be run".to_owned());
        }
        // A working folder among the runtime's own descriptors is outside of the container.
        if !self.folder.starts_with('/') || self.folder.contains("/proc") || self.folder.contains("..") {
            return Err(format!("its working folder is {:?}", self.folder));
        }
        if !(1..=libc::SIGRTMAX()).contains(&self.stop_signal) {
            return Err(format!("it is stopped by {}, which is no signal", self.stop_signal));
        }
        let ids = || self.groups.iter().chain([&self.uid, &self.gid]);
        if ids().any(|id| *id >= crate::ids::COUNT) {
            return Err("it runs as a user whom containers cannot have".to_owned());
        }
        Ok(self)
    }

    /// Something that people type to.
    pub(crate) fn shell(arguments: &[&str]) -> Self {
        Self {
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: vec![DEFAULT_PATH.to_owned()],
            folder: "/".to_owned(),
            uid: 0,
            gid: 0,
            groups: vec![],
            stop_signal: libc::SIGHUP,
            is_init: false,
        }
    }
}

/// A signal by what images call it: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
pub(crate) fn signal(name: &str) -> Option<i32> {
    let number = if let Ok(number) = name.parse::<i32>() {
        number
    } else {
        let name = name.strip_prefix("SIG").unwrap_or(name);
        match name.strip_prefix("RTMIN") {
            Some("") => libc::SIGRTMIN(),
            Some(more) => libc::SIGRTMIN().checked_add(more.strip_prefix('+')?.parse().ok()?)?,
            None => format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok()? as i32,
        }
    };
    (1..=libc::SIGRTMAX()).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_several_names() {
        assert_eq!(signal("SIGTERM"), Some(15));
        assert_eq!(signal("QUIT"), Some(3));
        assert_eq!(signal("9"), Some(9));
        assert_eq!(signal("SIGRTMIN+3"), Some(libc::SIGRTMIN() + 3));
        for wrong in ["", "0", "-1", "65", "SIGRTMIN+99", "SIGRTMIN-1", "RTMIN+x", "nonsense"] {
            assert_eq!(signal(wrong), None, "{wrong}");
        }
    }
}
