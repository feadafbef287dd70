//! Network namespaces that are kept by a file, and what is done inside them.
//!
//! A namespace belongs to a thread. Whoever works in one does so on a thread of its own that ends afterwards, so no other
//! work ever finds itself in the wrong place; sockets and devices that were made there stay there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::Path,
    thread,
};

use rustix::{
    fs::FsWord,
    ioctl::{self, IntegerSetter, Opcode, Setter},
    mount::{UnmountFlags, mount_bind, unmount},
    net::{AddressFamily, SocketType, netdevice::name_to_index, socket},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

/// What `statfs` calls the file system that namespaces are files of.
const NSFS: FsWord = 0x6e73_6673;
/// Longest name of a network device, with the byte that ends it.
const NAME_SIZE: usize = 16;
/// `TUNSETIFF`: makes or opens the device of that name.
const SET_INTERFACE: Opcode = ioctl::opcode::write::<i32>(b'T', 202);
/// `TUNSETPERSIST`: whether the device outlives its descriptors.
const SET_PERSIST: Opcode = ioctl::opcode::write::<i32>(b'T', 203);
/// A device of whole Ethernet frames, without a header of our own, with room for the one of virtio.
const TAP: u16 = 0x0002 | 0x1000 | 0x4000;

/// `struct ifreq`, as far as these calls look at it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; NAME_SIZE],
    flags: u16,
    rest: [u8; 22],
}

/// Whether a network namespace is kept at this path.
pub fn is_kept(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == NSFS)
}

/// Whether this process may make network namespaces.
pub fn probe() -> io::Result<()> {
    // SAFETY: as in `create`.
    on_a_thread(|| Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?))
}

/// Makes a new network namespace and keeps it at this path, until [`remove`]. Its loopback interface is down.
///
/// # Errors
/// `AlreadyExists` if one is kept there; what the kernel says otherwise.
pub fn create(path: &Path) -> io::Result<()> {
    if is_kept(path) {
        return Err(ErrorKind::AlreadyExists.into());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // What a machine that lost its power left is an empty file.
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    let made = on_a_thread(|| {
        // SAFETY: only the network namespace is left, and only by this thread, which does nothing else.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
        mount_bind("/proc/thread-self/ns/net", path)?;
        Ok(())
    });
    if made.is_err() {
        fs::remove_file(path).ok();
    }
    made
}

/// Lets go of the namespace that is kept at this path. It ends when nothing uses it any more. What is not there need not
/// be removed.
pub fn remove(path: &Path) -> io::Result<()> {
    while is_kept(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    crate::files::gone(fs::remove_file(path))
}

/// Opens the namespace that is kept at this path.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(File::open(path)?.into())
}

/// Opens the namespace that this process is in.
pub fn own() -> io::Result<OwnedFd> {
    open(Path::new("/proc/self/ns/net"))
}

/// A number that tells namespaces apart, as long as they are.
pub fn number(namespace: impl AsFd) -> io::Result<u64> {
    Ok(File::from(namespace.as_fd().try_clone_to_owned()?).metadata()?.ino())
}

/// Works inside a namespace, on a thread of its own.
pub fn inside<T: Send>(namespace: impl AsFd + Send, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_a_thread(move || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        work()
    })
}

/// Makes a tap device that stays until it is deleted. To be called [inside] a namespace.
pub fn create_tap(name: &str) -> io::Result<()> {
    let device = tap(name)?;
    // SAFETY: the call takes a number.
    Ok(unsafe { ioctl::ioctl(&device, IntegerSetter::<SET_PERSIST>::new_usize(1)) }?)
}

/// Opens a tap device that is in a namespace, for a hypervisor: what is read from it the network sends to the guest.
///
/// # Errors
/// `NotFound` if there is none of that name.
pub fn open_tap(namespace: impl AsFd + Send, name: &str) -> io::Result<OwnedFd> {
    inside(namespace, || {
        // Opening would make it.
        let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
        name_to_index(socket, name)
            .map_err(|_| io::Error::new(ErrorKind::NotFound, format!("there is no device {name}")))?;
        tap(name)
    })
}

fn tap(name: &str) -> io::Result<OwnedFd> {
    let mut request = InterfaceRequest { name: [0; NAME_SIZE], flags: TAP, rest: [0; 22] };
    if name.is_empty() || name.len() >= NAME_SIZE {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("no device can be called `{name}`")));
    }
    for (place, byte) in request.name.iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    let device = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: the call reads a `struct ifreq`, which this is in layout and size.
    unsafe { ioctl::ioctl(&device, Setter::<SET_INTERFACE, InterfaceRequest>::new(request)) }?;
    Ok(device.into())
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        worker.join().unwrap_or_else(|_| Err(io::Error::other("work in a network namespace ended without a result")))
    })
}
