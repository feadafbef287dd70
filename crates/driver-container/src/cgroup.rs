//! The control groups of one container, version 1 (a hierarchy per controller), version 2, or both side by side.
//!
//! The runtime makes them and sets their limits; here they are read, frozen, emptied and removed.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    time::Duration,
};

/// All containers' groups are below this one, which stays: somebody may just be making one in it.
pub(crate) const PARENT: &str = "nephos";
/// The controllers that limit containers.
const NEEDED: [&str; 5] = ["cpu", "memory", "pids", "freezer", "devices"];
/// How long ended processes may take to leave.
const EMPTY_LIMIT: u32 = 2000;
const FREEZE_LIMIT: u32 = 2000;

/// A container's groups, wherever control groups are mounted.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// The folder in each hierarchy, with the names of its controllers; none for version 2.
    folders: Vec<(Vec<String>, PathBuf)>,
}

/// What a container has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) cpu: Duration,
    pub(crate) memory: u64,
}

impl Group {
    /// The groups of this name. They need not exist.
    pub(crate) fn find(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let folders = hierarchies(&mounts);
        let folders = folders.map(|(controllers, at)| (controllers, at.join(PARENT).join(name))).collect();
        Ok(Self { folders })
    }

    /// The folder of a controller: of version 1, or else of version 2.
    fn folder(&self, controller: &str) -> Option<(&Path, bool)> {
        let of = |wanted: &dyn Fn(&[String]) -> bool| {
            self.folders.iter().find(|(controllers, path)| wanted(controllers) && path.is_dir())
        };
        let first = of(&|controllers| controllers.iter().any(|name| name == controller));
        first
            .map(|(_, path)| (path.as_path(), false))
            .or_else(|| of(&|controllers| controllers.is_empty()).map(|(_, path)| (path.as_path(), true)))
    }

    /// CPU time used.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        Ok(match self.folder("cpuacct") {
            None => Duration::ZERO,
            Some((folder, false)) => Duration::from_nanos(number(&folder.join("cpuacct.usage"))?),
            Some((folder, true)) => Duration::from_micros(field(&folder.join("cpu.stat"), "usage_usec")?),
        })
    }

    /// What is used now. Pages of files that nobody works with are not counted: they are given back when needed.
    pub(crate) fn used(&self) -> io::Result<Used> {
        let memory = match self.folder("memory") {
            None => 0,
            Some((folder, second)) => {
                let (total, unused) = if second {
                    ("memory.current", "inactive_file")
                } else {
                    ("memory.usage_in_bytes", "total_inactive_file")
                };
                number(&folder.join(total))?.saturating_sub(field(&folder.join("memory.stat"), unused)?)
            }
        };
        Ok(Used { cpu: self.cpu()?, memory })
    }

    /// Whether a process was ended because there was no memory left.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let Some((folder, second)) = self.folder("memory") else { return false };
        let file = folder.join(if second { "memory.events" } else { "memory.oom_control" });
        field(&file, "oom_kill").is_ok_and(|count| count > 0)
    }

    /// Whether its processes stand still.
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        match self.folder("freezer") {
            None => Ok(false),
            Some((folder, false)) => Ok(fs::read_to_string(folder.join("freezer.state"))?.trim() != "THAWED"),
            Some((folder, true)) => Ok(number(&folder.join("cgroup.freeze"))? == 1),
        }
    }

    /// Makes its processes stand still; they do when this returns.
    pub(crate) async fn freeze(&self) -> io::Result<()> {
        let Some((folder, second)) = self.folder("freezer") else { return Err(ErrorKind::NotFound.into()) };
        for _ in 0..FREEZE_LIMIT {
            // Of version 1 it may have to be said again: a process that was just forked may have escaped.
            let frozen = if second {
                fs::write(folder.join("cgroup.freeze"), "1")?;
                field(&folder.join("cgroup.events"), "frozen")? == 1
            } else {
                fs::write(folder.join("freezer.state"), "FROZEN")?;
                fs::read_to_string(folder.join("freezer.state"))?.trim() == "FROZEN"
            };
            if frozen {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.thaw()?;
        Err(ErrorKind::TimedOut.into())
    }

    /// Lets its processes go on.
    pub(crate) fn thaw(&self) -> io::Result<()> {
        match self.folder("freezer") {
            None => Ok(()),
            Some((folder, false)) => fs::write(folder.join("freezer.state"), "THAWED"),
            Some((folder, true)) => fs::write(folder.join("cgroup.freeze"), "0"),
        }
    }

    /// Ends all its processes by force and removes it; nothing happens if it does not exist.
    pub(crate) fn end(&self) -> io::Result<()> {
        for _ in 0..EMPTY_LIMIT {
            let mut any = false;
            for (_, folder) in &self.folders {
                for pid in processes(folder)? {
                    any = true;
                    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                    }
                }
            }
            if !any {
                return self.remove();
            }
            self.thaw()?;
            wait_a_little();
        }
        Err(io::Error::new(ErrorKind::TimedOut, "processes of an earlier run do not end"))
    }

    /// Removes it; its processes have ended.
    pub(crate) fn remove(&self) -> io::Result<()> {
        for (_, folder) in &self.folders {
            for attempt in 0.. {
                match remove_tree(folder) {
                    Ok(()) => break,
                    // The last process is still leaving.
                    Err(error) if error.kind() == ErrorKind::ResourceBusy && attempt < EMPTY_LIMIT => wait_a_little(),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }
}

fn wait_a_little() {
    let _ = rustix::thread::nanosleep(&rustix::thread::Timespec { tv_sec: 0, tv_nsec: 1_000_000 });
}

/// Groups within groups first; their files go with them.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    nephos_host::files::gone(fs::remove_dir(folder))
}

/// The processes of a group and of those within it.
fn processes(folder: &Path) -> io::Result<Vec<i32>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(error),
    };
    let list = fs::read_to_string(folder.join("cgroup.procs"))?;
    let mut found: Vec<i32> = list.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).collect();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(processes(&entry.path())?);
        }
    }
    Ok(found)
}

fn number(file: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.trim().parse().map_err(|_| io::Error::new(ErrorKind::InvalidData, format!("{}", file.display())))
}

/// A number from lines of `name value`.
fn field(file: &Path, name: &str) -> io::Result<u64> {
    let text = fs::read_to_string(file)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, format!("{} has no {name}", file.display())))
}

/// Where control groups are mounted, with the controllers of each hierarchy, from proc_pid_mountinfo(5).
fn hierarchies(mounts: &str) -> impl Iterator<Item = (Vec<String>, PathBuf)> {
    mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let controllers = match after.next()? {
            "cgroup2" => vec![],
            // The options of the file system name the controllers, among other words.
            "cgroup" => after.nth(1)?.split(',').map(str::to_owned).collect(),
            _ => return None,
        };
        Some((controllers, PathBuf::from(before.split(' ').nth(4)?)))
    })
}

/// Which of the controllers that containers are limited by this machine does not offer here: without them a container
/// would run, and could take all that the machine has.
pub(crate) fn missing() -> io::Result<Vec<&'static str>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut offered = vec![];
    for (controllers, path) in hierarchies(&mounts) {
        offered.extend(controllers.iter().cloned());
        if controllers.is_empty() {
            // Of version 2 these are no controllers; it has them always.
            offered.extend(["freezer", "devices"].map(str::to_owned));
            let list = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
            offered.extend(list.split_ascii_whitespace().map(str::to_owned));
        }
    }
    Ok(NEEDED.into_iter().filter(|name| !offered.iter().any(|other| other == name)).collect())
}

/// Mount points of version 2 beside version 1, which some runtimes cannot bear the sight of.
pub(crate) fn second_beside_first() -> io::Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let (second, first): (Vec<_>, Vec<_>) = hierarchies(&mounts).partition(|(controllers, _)| controllers.is_empty());
    let paths = second.into_iter().map(|(_, path)| path);
    Ok(if first.is_empty() { vec![] } else { paths.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_in_every_layout() {
        let hybrid = "30 24 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs ro,mode=755\n\
                      31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found: Vec<_> = hierarchies(hybrid).collect();
        assert_eq!(found.len(), 2);
        assert!(found[0].0.contains(&"cpuacct".to_owned()) && found[0].1 == Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found[1], (vec![], PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "29 22 0:25 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(hierarchies(unified).count(), 1);
        assert_eq!(hierarchies("garbage\n1 2 - \n - cgroup\n").count(), 0);
    }
}
