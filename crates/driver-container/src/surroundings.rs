//! What the driver is made of, and what the machine offers it.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use nephos_types::{Bytes, Error, ErrorKind};
use tokio::{process::Command, time::timeout};

use crate::{
    cgroup, disk, ids,
    keeper::{self, probe::Found, unpack::Limits},
};

/// How long programs may take to say who they are.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// Where system programs are, whatever the agent's own path.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a driver is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of everything that is kept; made if it does not exist.
    pub state: PathBuf,
    /// OCI runtimes, in order of preference; looked for in the system's folders if they have no slash.
    pub runtimes: Vec<PathBuf>,
    /// A program that calls [`keeper`](crate::keeper::keeper()) first in its `main`: usually the one that runs.
    pub keeper: PathBuf,
    /// How long an unpacked image that no guest stands on is kept.
    pub keep_unused: Duration,
    /// The most content of one image, unpacked.
    pub max_unpacked: Bytes,
    /// The most files, folders and links of one image.
    pub max_entries: u64,
}

impl Config {
    /// The usual programs, and this one as the keeper.
    #[must_use]
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            runtimes: vec!["crun".into(), "runc".into()],
            // Stays the same program when its file is replaced by another version.
            keeper: "/proc/self/exe".into(),
            keep_unused: Duration::from_secs(24 * 3600),
            max_unpacked: Bytes::mib(32 << 10),
            max_entries: 2_000_000,
        }
    }

    /// The bounds of unpacking.
    pub(crate) fn limits(&self) -> Limits {
        Limits { bytes: self.max_unpacked.0, entries: self.max_entries, seconds: 900, memory: 1 << 30 }
    }
}

/// What the machine offers.
pub(crate) struct Surroundings {
    /// The runtime that is used.
    pub(crate) runtime: PathBuf,
    /// What it says it is: `crun 1.8.1`.
    pub(crate) version: String,
    pub(crate) keeper: PathBuf,
    /// Whether mounts can show files under other ids.
    pub(crate) mapped: bool,
    /// The CPUs that may be used.
    cpus: Vec<u32>,
}

impl Surroundings {
    /// Looks for all that is needed.
    pub(crate) async fn find(config: &Config) -> Result<Self, Error> {
        let (runtime, version) = runtime(&config.runtimes).await?;
        let made = disk::tool(disk::MAKER).arg("-V").stdin(Stdio::null()).output().await;
        if let Err(error) = made {
            return Err(unavailable(format!("{}: {error}", disk::MAKER))
                .next("install it", Some("apt-get install --no-install-recommends e2fsprogs".to_owned())));
        }
        let missing = cgroup::missing().map_err(|error| unavailable(format!("control groups: {error}")))?;
        if !missing.is_empty() {
            return Err(unavailable(format!("there are no control groups here for {}", missing.join(", ")))
                .next("mount them below /sys/fs/cgroup where the agent runs", None));
        }
        let found = probe(config).await?;
        if !found.mapped {
            tracing::warn!("this kernel has no idmapped mounts here: all containers have the same user ids");
        }
        Ok(Self { runtime, version, keeper: config.keeper.clone(), mapped: found.mapped, cpus: own_cpus() })
    }

    /// The CPUs for a guest that is to see so many: those that the fewest others have. Empty for all that there are.
    pub(crate) fn choose_cpus<'a>(&self, vcpus: u32, taken: impl Iterator<Item = &'a u32>) -> Vec<u32> {
        let wanted = vcpus as usize;
        if wanted >= self.cpus.len() {
            return vec![];
        }
        let mut load: Vec<(usize, u32)> = self.cpus.iter().map(|cpu| (0, *cpu)).collect();
        for cpu in taken {
            for place in load.iter_mut().filter(|(_, other)| other == cpu) {
                place.0 += 1;
            }
        }
        load.sort_unstable();
        let mut chosen: Vec<u32> = load.into_iter().take(wanted).map(|(_, cpu)| cpu).collect();
        chosen.sort_unstable();
        chosen
    }
}

/// Refuses users who cannot run containers.
pub(crate) fn check_user() -> Result<(), Error> {
    if !rustix::process::geteuid().is_root() {
        return Err(unavailable("they need root: for mounts, control groups and users of their own".to_owned())
            .next("run the agent as root", None));
    }
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let covered = map.lines().any(|line| {
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let [inside, _, length] = numbers[..] else { return false };
        inside <= u64::from(ids::STORED) && u64::from(ids::FIRST + ids::COUNT) <= inside.saturating_add(length)
    });
    if covered {
        Ok(())
    } else {
        Err(unavailable("the agent's own user namespace has too few ids to give some away".to_owned())
            .next("run the agent outside of a container", None))
    }
}

fn unavailable(why: String) -> Error {
    Error::new(ErrorKind::Unsupported, "containers_unavailable", "Containers cannot be run on this node").detail(why)
}

/// The first runtime that can be run, and what it says it is.
async fn runtime(candidates: &[PathBuf]) -> Result<(PathBuf, String), Error> {
    let mut tried = vec![];
    for name in candidates {
        let program = if name.components().count() > 1 {
            name.clone()
        } else {
            let folders = PATH.split(':').map(|folder| Path::new(folder).join(name));
            match folders.into_iter().find(|path| path.is_file()) {
                Some(program) => program,
                None => {
                    tried.push(format!("{} is not installed", name.display()));
                    continue;
                }
            }
        };
        match first_line(&program).await {
            Ok(line) => return Ok((program, line.replacen(" version ", " ", 1))),
            Err(why) => tried.push(format!("{}: {why}", program.display())),
        }
    }
    Err(unavailable(tried.join("; "))
        .next("install a runtime", Some("apt-get install --no-install-recommends crun".to_owned())))
}

async fn first_line(program: &Path) -> Result<String, String> {
    let running = Command::new(program).arg("--version").stdin(Stdio::null()).kill_on_drop(true).output();
    match timeout(ANSWER_LIMIT, running).await {
        Ok(Ok(output)) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
        }
        Ok(Ok(output)) => Err(output.status.to_string()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

async fn probe(config: &Config) -> Result<Found, Error> {
    let mut command = Command::new(&config.keeper);
    command.args([keeper::COMMAND, "probe"]).current_dir(&config.state).stdin(Stdio::null()).kill_on_drop(true);
    let output = match timeout(ANSWER_LIMIT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) => return Err(unavailable(format!("{}: {error}", config.keeper.display()))),
        Err(_) => return Err(unavailable("trying it out takes too long".to_owned())),
    };
    if output.status.success()
        && let Ok(found) = serde_json::from_slice(&output.stdout)
    {
        return Ok(found);
    }
    Err(unavailable(String::from_utf8_lossy(&output.stderr).trim().chars().take(2000).collect()))
}

/// The CPUs that this process may use.
fn own_cpus() -> Vec<u32> {
    let set = rustix::thread::sched_getaffinity(None).ok();
    let allowed = |cpu: &u32| set.as_ref().is_some_and(|set| set.is_set(*cpu as usize));
    (0..rustix::thread::CpuSet::MAX_CPU as u32).filter(allowed).collect()
}
