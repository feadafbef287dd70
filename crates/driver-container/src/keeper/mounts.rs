//! The guest's root, mounted where only the keeper and the container see it.
//!
//! ```text
//! lower   the unpacked image, with the container's ids
//! disk    the guest's own file system, as stored
//! upper   the same, with the container's ids
//! rootfs  an overlay of the two: what the container sees
//! ```
//!
//! A guest in rescue has the same once more, for its own root: `own-lower`, …, `own`.
//!
//! All of it is in a mount namespace of its own, so it vanishes with its last process whatever happens.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Read},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::DirBuilderExt,
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::wait::waitpid,
    unistd::{ForkResult, fork, pipe},
};

use crate::{disk, ids};

/// How long to wait for an earlier run's file system to be written back.
const RELEASE_LIMIT: Duration = Duration::from_secs(30);

/// Gives this process, which has one thread, mounts of its own. What is unmounted outside is also unmounted here.
pub(crate) fn separate(hidden: &[PathBuf]) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    for path in hidden {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// What has been read from a block device and written to it.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    /// Sectors of 512 bytes read.
    pub(crate) read: u64,
    /// Sectors written.
    pub(crate) written: u64,
    /// Requests to read.
    pub(crate) reads: u64,
    /// Requests to write.
    pub(crate) writes: u64,
}

/// A loop device with a file behind it. It is detached when its last user is gone.
pub(crate) struct Loop {
    pub(crate) name: String,
    /// What was read and written before.
    pub(crate) counters: Counters,
    _device: File,
}

/// `struct loop_config`, linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

/// `struct loop_info64`.
#[repr(C)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names: [[u8; 64]; 2],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

const LOOP_CONFIGURE: libc::c_ulong = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4C82;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

impl Loop {
    /// Puts this file behind a device. The device keeps the file's lock, so that no second one is made of it, also not
    /// while a killed keeper's is still being written back.
    pub(crate) fn attach(disk: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(disk)?;
        let deadline = Instant::now() + RELEASE_LIMIT;
        disk::lock(&file, deadline)?;
        let control = File::options().read(true).write(true).open("/dev/loop-control")?;
        loop {
            // SAFETY: the descriptor is open, and the call takes no pointer.
            let number = check(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) })?;
            let name = format!("loop{number}");
            let device = File::options().read(true).write(true).open(format!("/dev/{name}"))?;
            let config = LoopConfig {
                fd: file.as_raw_fd().unsigned_abs(),
                block_size: 0,
                info: LoopInfo {
                    device: 0,
                    inode: 0,
                    rdevice: 0,
                    offset: 0,
                    size_limit: 0,
                    number: 0,
                    encrypt_type: 0,
                    encrypt_key_size: 0,
                    flags: LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO,
                    names: [[0; 64]; 2],
                    encrypt_key: [0; 32],
                    init: [0; 2],
                },
                reserved: [0; 8],
            };
            // SAFETY: both descriptors are open, and the structure lives through the call, which only reads it.
            match check(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) }) {
                Ok(_) => return Ok(Self { counters: counters(&name)?, name, _device: device }),
                // Somebody else was quicker.
                Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// What a block device has read and written, from its `stat` in sysfs.
pub(crate) fn counters(device: &str) -> io::Result<Counters> {
    let text = fs::read_to_string(format!("/sys/block/{device}/stat"))?;
    let number =
        |place: usize| text.split_ascii_whitespace().nth(place).and_then(|text| text.parse().ok()).unwrap_or(0);
    Ok(Counters { reads: number(0), read: number(2), writes: number(4), written: number(6) })
}

/// Where the keeper and the runtime find what they mount. Each keeper has its own there, in its own mount namespace. The
/// way to it can be walked by the container's root, which the way to the agent's folders need not be.
pub(crate) const PLACE: &str = "/run/nephos/guest";

/// A path below [`PLACE`].
pub(crate) fn at(name: &str) -> PathBuf {
    Path::new(PLACE).join(name)
}

/// Makes [`PLACE`], empty.
pub(crate) fn make_place() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(PLACE)?;
    mount(Some("tmpfs"), PLACE, Some("tmpfs"), MsFlags::MS_NODEV | MsFlags::MS_NOSUID, Some("mode=711,size=1m"))?;
    for name in ROOT.names().into_iter().chain(OWN_ROOT.names()).chain(["config"]) {
        fs::DirBuilder::new().mode(0o711).create(at(name))?;
    }
    Ok(())
}

/// The guest's own root, where it runs from another.
pub(crate) const OWN: &str = "own";

/// Where the parts of a root are mounted, below [`PLACE`].
struct Names {
    lower: &'static str,
    disk: &'static str,
    upper: &'static str,
    root: &'static str,
}

const ROOT: Names = Names { lower: "lower", disk: "disk", upper: "upper", root: "rootfs" };
const OWN_ROOT: Names = Names { lower: "own-lower", disk: "own-disk", upper: "own-upper", root: OWN };

impl Names {
    /// In the order in which they are unmounted.
    fn names(&self) -> [&'static str; 4] {
        [self.root, self.upper, self.lower, self.disk]
    }

    fn mount(&self, base: &Path, device: &Loop, ids: u32, mapped: bool) -> io::Result<()> {
        let name = format!("/dev/{}", device.name);
        let (disk, flags) = (at(self.disk), MsFlags::MS_NODEV | MsFlags::MS_NOATIME);
        mount(Some(name.as_str()), &disk, Some("ext4"), flags, Some("discard"))?;
        for (folder, owner) in [("upper", ids::STORED), ("work", 0)] {
            let folder = disk.join(folder);
            match fs::create_dir(&folder) {
                Ok(()) => {
                    fs::set_permissions(&folder, fs::metadata(base)?.permissions())?;
                    std::os::unix::fs::chown(&folder, Some(owner), Some(owner))?;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        let namespace = if mapped { Some(mapping(ids)?) } else { None };
        for (from, to) in [(base, self.lower), (&disk, self.upper)] {
            place(&clone_of(from, namespace.as_ref())?, &at(to))?;
        }
        let (lower, upper) = (self.lower, self.upper);
        let options = format!("lowerdir={PLACE}/{lower},upperdir={PLACE}/{upper}/upper,workdir={PLACE}/{upper}/work");
        mount(Some("overlay"), &at(self.root), Some("overlay"), MsFlags::MS_NODEV, Some(options.as_str()))?;
        Ok(())
    }
}

/// Mounts the container's root on `rootfs`.
pub(crate) fn root(base: &Path, device: &Loop, ids: u32, mapped: bool) -> io::Result<()> {
    ROOT.mount(base, device, ids, mapped)
}

/// Mounts the own root of a guest in rescue on [`OWN`].
pub(crate) fn own(base: &Path, device: &Loop, ids: u32, mapped: bool) -> io::Result<()> {
    OWN_ROOT.mount(base, device, ids, mapped)
}

/// Shows the files of a configuration drive on `config`.
pub(crate) fn config(files: &Path, ids: u32, mapped: bool) -> io::Result<()> {
    let namespace = if mapped { Some(mapping(ids)?) } else { None };
    place(&clone_of(files, namespace.as_ref())?, &at("config"))
}

/// Takes the roots away again and writes the guest's file systems back.
pub(crate) fn release() {
    for folder in OWN_ROOT.names().into_iter().chain(ROOT.names()) {
        if umount2(&at(folder), MntFlags::empty()).is_err() {
            let _ = umount2(&at(folder), MntFlags::MNT_DETACH);
        }
    }
}

/// `struct mount_attr`, linux/mount.h.
#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    namespace: u64,
}

const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const OPEN_TREE_CLONE: libc::c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: libc::c_uint = 4;

/// A mount of what is at `path`, not placed anywhere, with ids as this user namespace maps them.
fn clone_of(path: &Path, namespace: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC.unsigned_abs();
    // SAFETY: the path is a string that lives through the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let tree = RawFd::try_from(check(tree)?).map_err(io::Error::other)?;
    // SAFETY: the call has made this descriptor for us.
    let tree = unsafe { OwnedFd::from_raw_fd(tree) };
    if let Some(namespace) = namespace {
        let attributes = MountAttributes {
            set: MOUNT_ATTR_IDMAP,
            clear: 0,
            propagation: 0,
            namespace: u64::from(namespace.as_raw_fd().unsigned_abs()),
        };
        let size = size_of::<MountAttributes>();
        // SAFETY: the descriptors are open; the structure and the empty path live through the call, which only reads.
        let set = unsafe {
            let (fd, empty) = (tree.as_raw_fd(), c"".as_ptr());
            libc::syscall(libc::SYS_mount_setattr, fd, empty, libc::AT_EMPTY_PATH, &raw const attributes, size)
        };
        check(set)?;
    }
    Ok(tree)
}

fn place(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let at = std::ffi::CString::new(at.as_os_str().as_encoded_bytes())?;
    // SAFETY: the descriptor is open, and both paths live through the call.
    let moved = unsafe {
        let (empty, here) = (c"".as_ptr(), libc::AT_FDCWD);
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), empty, here, at.as_ptr(), MOVE_MOUNT_F_EMPTY_PATH)
    };
    check(moved).map(drop)
}

/// A user namespace that shows stored ids as the container's. The machine's root stays what it is, because the overlay
/// makes its own files with it. The process has one thread.
fn mapping(ids: u32) -> io::Result<OwnedFd> {
    let line = format!("0 0 1\n{} {ids} {}\n", ids::STORED, ids::COUNT);
    with_child(
        || unshare(CloneFlags::CLONE_NEWUSER),
        |child| {
            fs::write(format!("/proc/{child}/uid_map"), &line)?;
            fs::write(format!("/proc/{child}/gid_map"), &line)?;
            Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
        },
    )
}

/// Has a child of this process, which has one thread, do something, and looks at it while it is so.
fn with_child<T>(
    inside: impl FnOnce() -> nix::Result<()>,
    outside: impl FnOnce(nix::unistd::Pid) -> io::Result<T>,
) -> io::Result<T> {
    let ((done, their_done), (release, our_release)) = (pipe()?, pipe()?);
    // SAFETY: the process has one thread, so the child may do whatever its parent could.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop((done, our_release));
            let worked = inside().is_ok();
            if worked {
                let _ = nix::unistd::write(&their_done, b".");
            }
            drop(their_done);
            // Waits until the parent has let go.
            let _ = File::from(release).read(&mut [0]);
            // SAFETY: ends the process without running what the parent has registered for its end.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop((their_done, release));
            let ready = File::from(done).read(&mut [0]);
            let outcome = match ready {
                Ok(1) => outside(child),
                Ok(_) => Err(io::Error::new(ErrorKind::PermissionDenied, "no user namespace can be made")),
                Err(error) => Err(error),
            };
            drop(our_release);
            waitpid(child, None)?;
            outcome
        }
    }
}

/// Whether this machine can have users of their own in containers. The process has one thread.
pub(crate) fn can_make_users() -> io::Result<()> {
    mapping(ids::FIRST).map(drop)
}

/// Whether this machine can show files under other ids where this folder is. The process has one thread.
pub(crate) fn can_map(folder: &Path) -> bool {
    mapping(ids::FIRST).and_then(|namespace| clone_of(folder, Some(&namespace))).is_ok()
}

fn check<T: Into<i64> + Copy>(result: T) -> io::Result<i64> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(result.into()) }
}
