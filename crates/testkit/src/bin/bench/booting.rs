//! What the cloud adds to starting a guest: from asking over REST until QEMU says `running`, less what the same QEMU
//! takes by itself with the same arguments and files.

use std::{
    fs,
    fs::File,
    os::{
        fd::{AsRawFd, BorrowedFd, IntoRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nephos_ops::compute::DeleteServer;
use nephos_testkit::{CloudProcess, until};
use nix::unistd::dup2_raw;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    time::{Instant, sleep},
};

use crate::{
    Outcome,
    creating::{active, create, upload},
    figure::{Figure, percentile},
    nephos, settings,
};

const ROUNDS: usize = 5;
/// The driver's name for the socket.
const QMP: &str = "qmp.sock";
const LOOK: Duration = Duration::from_millis(1);

pub(crate) async fn run() -> Outcome {
    let image = tokio::task::spawn_blocking(|| nephos_image_build::micro(&Default::default(), |_| {})).await??;
    let cloud = CloudProcess::start(nephos()?, settings(0)).await;
    let demo = cloud.demo().await;
    upload(&demo, "micro", "qcow2", &image.disk).await?;
    let (mut ours, mut raw) = (vec![], vec![]);
    // The first one brings the image into the node's cache, and does not count.
    for round in 0..=ROUNDS {
        let name = format!("guest-{round}");
        let begin = Instant::now();
        let started = create(&demo, &name, "micro").await?;
        active(&demo, &started.resource).await?;
        let time = begin.elapsed();
        let guest = cloud.guests().first().copied().ok_or("the guest has no process")?;
        let same = Same::of(guest)?;
        demo.call(DeleteServer { server: name.parse()?, now: false, keep_hours: None }).await?;
        until("the guest to be gone", || {
            let gone = cloud.guests().is_empty();
            async move { gone.then_some(()) }
        })
        .await;
        let alone = same.start().await?;
        if round > 0 {
            ours.push(time);
            raw.push(alone);
        }
    }
    let (ours, raw) = (percentile(&mut ours, 0.5), percentile(&mut raw, 0.5));
    Ok(vec![
        Figure::time("time added to a raw QEMU start, image cached, p50", ours.saturating_sub(raw)).under(300.0),
        Figure::time("  server.create to active", ours),
        Figure::time("  the same QEMU alone, until it says running", raw),
    ])
}

/// What it takes to start the same QEMU once more: arguments, disk, and files that it inherits under their numbers.
struct Same {
    program: PathBuf,
    arguments: Vec<String>,
    inherited: Vec<(RawFd, File)>,
    folder: tempfile::TempDir,
}

impl Same {
    fn of(pid: u32) -> Outcome<Self> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(process.join("cmdline"))?;
        let line = String::from_utf8(line)?;
        let arguments: Vec<String> =
            line.split('\0').skip(1).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let run = fs::read_link(process.join("cwd"))?;
        let wanted =
            arguments.iter().filter_map(|argument| argument.strip_prefix("fd=")?.split(',').next()?.parse().ok());
        let inherited = wanted.zip(handed_over(&process, &run)?).collect();
        let folder = tempfile::tempdir()?;
        for entry in fs::read_dir(&run)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                fs::copy(entry.path(), folder.path().join(entry.file_name()))?;
            }
        }
        Ok(Self { program: fs::read_link(process.join("exe"))?, arguments, inherited, folder })
    }

    /// Starts it, and returns how long it took until it said `running`.
    async fn start(&self) -> Outcome<Duration> {
        // Above all numbers that are wanted, so that putting one in its place overwrites none of the others.
        let files: Vec<(RawFd, RawFd)> = self.inherited.iter().map(|(to, file)| (file.as_raw_fd(), *to)).collect();
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        // SAFETY: dup2 is async-signal-safe and touches only the child's own descriptors, which live until it executes.
        unsafe {
            command.pre_exec(move || {
                const ABOVE: RawFd = 200;
                for (place, (from, _)) in files.iter().enumerate() {
                    let _ = dup2_raw(BorrowedFd::borrow_raw(*from), ABOVE + place as RawFd)?.into_raw_fd();
                }
                for (place, (_, to)) in files.iter().enumerate() {
                    let _ = dup2_raw(BorrowedFd::borrow_raw(ABOVE + place as RawFd), *to)?.into_raw_fd();
                }
                Ok(())
            });
        }
        let begin = Instant::now();
        let guest = Guest(command.spawn()?);
        running(&self.folder.path().join(QMP)).await?;
        let time = begin.elapsed();
        drop(guest);
        Ok(time)
    }
}

/// The files that a QEMU was handed over open, in order: those that lie outside its run folder. It keeps copies of them
/// under other numbers.
fn handed_over(process: &Path, run: &Path) -> Outcome<Vec<File>> {
    let mut open: Vec<(RawFd, PathBuf)> = vec![];
    for entry in fs::read_dir(process.join("fd"))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.parse().ok()).ok_or("not a descriptor")?;
        // Not the standard ones.
        if number > 2 {
            open.push((number, fs::read_link(path)?));
        }
    }
    open.sort();
    let mut files: Vec<PathBuf> = vec![];
    for (_, target) in open {
        if target.is_file() && !target.starts_with(run) && !files.contains(&target) {
            files.push(target);
        }
    }
    files.iter().map(|path| Ok(File::open(path)?)).collect()
}

/// Ended when it is dropped.
struct Guest(Child);

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits until QEMU says by its monitor that the guest runs.
async fn running(socket: &Path) -> Outcome<()> {
    let begin = Instant::now();
    let stream = loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => break stream,
            Err(error) if begin.elapsed() > nephos_testkit::LIMIT => return Err(error.into()),
            Err(_) => sleep(LOOK).await,
        }
    };
    let (from, mut to) = stream.into_split();
    let mut lines = BufReader::new(from).lines();
    to.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"cont\"}\n{\"execute\":\"query-status\"}\n")
        .await?;
    while let Some(line) = lines.next_line().await? {
        let said: serde_json::Value = serde_json::from_str(&line)?;
        if said["return"]["status"] == "running" {
            return Ok(());
        }
        if let Some(error) = said.get("error") {
            return Err(format!("QEMU refuses: {error}").into());
        }
    }
    Err("QEMU ended".into())
}
