//! With which rights guests' processes run: as root, each guest gets a user id of its own that owns nothing but the
//! guest's files; without root all run as the agent's user.

use std::{fs, os::unix::fs::MetadataExt};

use nephos_driver::Accelerator;
use nephos_types::{Id, ServerId};
use rustix::fs::{Gid, Uid};

use crate::launch::Rights;

/// The first of the user ids given to guests; far above what systems give to people, services and containers.
const FIRST: u32 = 1_300_000_000;
/// As many as an id has random bits, so that guests made at the same time differ.
const COUNT: u32 = 1 << 22;
/// `nobody`, where a user namespace has no room for [`FIRST`].
const NOBODY: u32 = 65_534;

/// How guests' users are chosen on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Users {
    /// The agent's own.
    Own,
    /// The same powerless one for all.
    Nobody,
    /// One for each.
    PerGuest,
}

impl Users {
    /// What this machine allows.
    pub(crate) fn available() -> Self {
        if !rustix::process::geteuid().is_root() {
            return Self::Own;
        }
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        match (covers(&map, FIRST, COUNT), covers(&map, NOBODY, 1)) {
            (true, _) => Self::PerGuest,
            (false, true) => Self::Nobody,
            (false, false) => Self::Own,
        }
    }

    /// The owner of a guest's files and process; `None` for the agent's own user.
    pub(crate) fn owner(self, id: ServerId) -> Option<(Uid, Gid)> {
        let number = match self {
            Self::Own => return None,
            Self::Nobody => NOBODY,
            Self::PerGuest => FIRST + (id.bits() % u64::from(COUNT)) as u32,
        };
        Some((Uid::from_raw(number), Gid::from_raw(number)))
    }

    /// The rights of a guest's process.
    pub(crate) fn rights(self, id: ServerId, accelerator: &Accelerator) -> Rights {
        let owner = self.owner(id);
        let mut groups = vec![];
        if owner.is_some()
            && *accelerator == Accelerator::Kvm
            && let Ok(device) = fs::metadata("/dev/kvm")
        {
            groups.push(Gid::from_raw(device.gid()));
        }
        Rights { owner, groups }
    }
}

/// Whether a user namespace's map (user_namespaces(7)) knows these ids.
fn covers(map: &str, first: u32, count: u32) -> bool {
    map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [inside, _, length] = numbers[..] else { return false };
        inside <= u64::from(first) && u64::from(first) + u64::from(count) <= inside + length
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_without_room_is_recognised() {
        assert!(covers("         0          0 4294967295\n", FIRST, COUNT));
        assert!(!covers("0 100000 65536", FIRST, COUNT));
        assert!(covers("0 100000 65536", NOBODY, 1));
        assert!(covers("0 1000 1\n1 100000 70000\n", NOBODY, 1));
        for strange in ["", "0 0", "a b c", "0 0 18446744073709551615 7"] {
            assert!(!covers(strange, FIRST, COUNT), "{strange:?}");
        }
    }
}
