//! Visits a running container for a question: `container-keeper visit`, with the question as standard input and the
//! answer as standard output.
//!
//! The visitor enters the container's namespaces except that of its processes, as its root user: so paths mean there
//! what they mean to the container, links lead nowhere else, the kernel decides what may be done, and nobody in there
//! can see or touch the visitor.

mod accounts;

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind, Read, Seek, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
};

use nephos_driver::{Answer, GuestFileSystem, GuestInfo, GuestInterface, MAX_CONTENT, Question};
use nephos_host::process::Identity;
use nephos_types::{Bytes, Error, ErrorKind as Kind};
use nix::{
    ifaddrs::getifaddrs,
    libc,
    sched::{CloneFlags, setns},
    sys::socket::LinkAddr,
    unistd::{setgid, setgroups, setuid},
};

/// A question's content as JSON takes more room than its bytes.
const MAX_QUESTION: u64 = 4 * MAX_CONTENT as u64;
/// What is read of the container's own lists.
const MAX_LIST: u64 = 1 << 20;
/// The most interfaces that are told of, and addresses of one.
const MAX_INTERFACES: usize = 64;

/// Answers a question about the container of this first process.
pub(crate) fn run() -> io::Result<()> {
    let init: Identity = serde_json::from_str(&std::env::args().next_back().unwrap_or_default())?;
    let mut question = vec![];
    io::stdin().take(MAX_QUESTION).read_to_end(&mut question)?;
    let question: Question = serde_json::from_slice(&question)?;
    enter(&init)?;
    let answer = answer(&question);
    io::stdout().write_all(&serde_json::to_vec(&answer)?)
}

fn enter(init: &Identity) -> io::Result<()> {
    let open = |name: &str| File::open(format!("/proc/{}/ns/{name}", init.pid));
    let [user, mounts, names, network] = [open("user")?, open("mnt")?, open("uts")?, open("net")?];
    // Checked after they are held, so that they are those of this process.
    if Identity::of(init.pid)? != *init {
        return Err(ErrorKind::NotFound.into());
    }
    setns(user, CloneFlags::CLONE_NEWUSER)?;
    setns(mounts, CloneFlags::CLONE_NEWNS)?;
    setns(names, CloneFlags::CLONE_NEWUTS)?;
    setns(network, CloneFlags::CLONE_NEWNET)?;
    setgroups(&[])?;
    setgid(0.into())?;
    setuid(0.into())?;
    std::env::set_current_dir("/")
}

fn answer(question: &Question) -> Result<Answer, Error> {
    match question {
        Question::Info => Ok(Answer::Info(info())),
        Question::ReadFile { path, offset, max } => read(path, *offset, *max).map_err(|error| refusal(path, error)),
        Question::WriteFile { path, content, append, mode } => {
            write(path, content, *append, *mode).map_err(|error| refusal(path, error))
        }
        Question::SetKeys { user, keys } => accounts::set_keys(user, keys),
        Question::SetPassword { user, password } => accounts::set_password(user, &password.0),
        Question::Execute { .. } => Err(Error::bug("a visitor was asked for what the runtime does")),
    }
}

/// Why a file cannot be used, as its caller should know it.
fn refusal(path: &str, error: io::Error) -> Error {
    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
        return Error::new(Kind::NotFound, "guest_file_not_found", "The server has no such file").detail(path);
    }
    Error::conflict("guest_refused", "The server refuses").detail(format!("{path}: {error}"))
}

/// Opens a plain file: a pipe would wait for its other end, and a device is none of a caller's business.
fn open(path: &str, options: &mut OpenOptions) -> io::Result<File> {
    let file = options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a plain file"));
    }
    Ok(file)
}

fn read(path: &str, offset: u64, max: u64) -> io::Result<Answer> {
    let mut file = open(path, OpenOptions::new().read(true))?;
    let max = max.min(MAX_CONTENT as u64);
    file.seek(SeekFrom::Start(offset))?;
    let mut content = vec![];
    Read::by_ref(&mut file).take(max).read_to_end(&mut content)?;
    let end = if (content.len() as u64) < max { true } else { file.read(&mut [0])? == 0 };
    Ok(Answer::Content { content, end })
}

fn write(path: &str, content: &[u8], append: bool, mode: Option<u32>) -> io::Result<Answer> {
    let mut options = OpenOptions::new();
    options.create(true).mode(mode.unwrap_or(0o644) & 0o7777);
    // Not emptied before it is known to be a plain file.
    let mut file = open(path, if append { options.append(true) } else { options.write(true) })?;
    if let Some(mode) = mode {
        // Before there is anything to see.
        file.set_permissions(fs::Permissions::from_mode(mode & 0o7777))?;
    }
    if !append {
        file.set_len(0)?;
    }
    file.write_all(content)?;
    file.sync_all()?;
    Ok(Answer::Done)
}

fn list(path: &str) -> io::Result<String> {
    let mut content = vec![];
    open(path, OpenOptions::new().read(true))?.take(MAX_LIST).read_to_end(&mut content)?;
    Ok(String::from_utf8_lossy(&content).into_owned())
}

fn info() -> GuestInfo {
    let name = rustix::system::uname();
    let text = |text: &CStr| Some(text.to_string_lossy().into_owned()).filter(|text| !text.is_empty());
    let system = ["/etc/os-release", "/usr/lib/os-release"].iter().find_map(|path| {
        let release = list(path).ok()?;
        let line = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
        Some(line.trim_matches(['"', '\'']).chars().take(256).filter(|char| !char.is_control()).collect())
    });
    GuestInfo {
        host_name: text(name.nodename()),
        system,
        kernel: text(name.release()),
        agent: None,
        interfaces: interfaces(),
        file_systems: root_file_system().into_iter().collect(),
    }
}

/// The one that holds the container's files; the others belong to the kernel.
fn root_file_system() -> Option<GuestFileSystem> {
    let room = rustix::fs::statvfs("/").ok()?;
    let size = room.f_blocks.saturating_mul(room.f_frsize);
    let used = room.f_blocks.saturating_sub(room.f_bfree).saturating_mul(room.f_frsize);
    Some(GuestFileSystem { mount: "/".to_owned(), kind: None, size: Some(Bytes(size)), used: Some(Bytes(used)) })
}

fn interfaces() -> Vec<GuestInterface> {
    let mut found: Vec<GuestInterface> = vec![];
    for one in getifaddrs().into_iter().flatten() {
        let place = match found.iter().position(|known| known.name == one.interface_name) {
            Some(place) => place,
            None if found.len() == MAX_INTERFACES => continue,
            None => {
                found.push(GuestInterface { name: one.interface_name.clone(), ..GuestInterface::default() });
                found.len() - 1
            }
        };
        let (Some(address), Some(interface)) = (one.address, found.get_mut(place)) else { continue };
        let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(address), _) => Some(address.ip().to_string()),
            (_, Some(address)) => Some(address.ip().to_string()),
            _ => None,
        };
        if let Some(ip) = ip {
            if interface.addresses.len() < MAX_INTERFACES {
                interface.addresses.push(ip);
            }
        } else if let Some(mac) = address.as_link_addr().and_then(LinkAddr::addr) {
            interface.mac = Some(mac.map(|byte| format!("{byte:02x}")).join(":"));
        }
    }
    found
}
