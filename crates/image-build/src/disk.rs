//! The guest's disk: an ext4 file system on the whole disk (so that growing it is one `resize2fs`), made without
//! mounting anything and thus without root.

use std::{fs, io::Write as _, path::Path, process::Stdio};

use nephos_types::{Error, Result};

use crate::{
    command::{command, io_error, run},
    grub::{self, Run, SECTOR},
    toolbox::Toolbox,
};

/// What GRUB passes to the kernel.
pub(crate) const BOOT_ARGUMENTS: &str = include_str!("../guest/kernel-arguments");
/// What `initrd-init` looks for.
const LABEL: &str = "micro-root";
/// Size of the disk; sparse, so this costs nothing.
const SIZE_MIB: u32 = 128;
const BLOCK: u64 = 4096;
/// Room for GRUB's core, in bytes; it takes about 130 KiB.
const CORE_ROOM: usize = 256 << 10;
/// Named one by one, because the defaults change with releases and GRUB does not read all that are new. With a journal:
/// guests get their power cut.
const FEATURES: &str = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,\
                        huge_file,dir_nlink,extra_isize";

/// What kind of disk it becomes.
pub(crate) struct Layout {
    /// The file system's label.
    pub(crate) label: &'static str,
    /// Its size; sparse, so this costs nothing.
    pub(crate) size_mib: u32,
    /// Whether files keep the owners that they have in the folder, rather than belong to root.
    pub(crate) keep_owners: bool,
}

/// Where a file in the folder `boot` lies on the disk.
pub(crate) type Locate<'a> = &'a dyn Fn(&str) -> Result<Vec<Run>>;

/// Turns the micro guest's folder into a bootable qcow2.
pub(crate) fn make(tools: &Toolbox, root: &Path, scratch: &Path, out: &Path) -> Result<()> {
    let layout = Layout { label: LABEL, size_mib: SIZE_MIB, keep_owners: false };
    make_with(tools, root, scratch, out, &layout, |locate| {
        let files = grub::BootFiles { kernel: locate("vmlinuz")?, initrd: locate("initrd")? };
        grub::make_core(tools, &files, BOOT_ARGUMENTS.trim(), scratch)
    })
}

/// Turns a folder into a bootable qcow2, with the core of GRUB that `core` makes.
pub(crate) fn make_with(
    tools: &Toolbox,
    root: &Path,
    scratch: &Path,
    out: &Path,
    layout: &Layout,
    core: impl FnOnce(Locate<'_>) -> Result<Vec<u8>>,
) -> Result<()> {
    // Takes the place of GRUB's core, which is made when the others' places are known. Not zeros: they would be a hole.
    let reserved = root.join("boot/core.img");
    fs::write(&reserved, vec![0xff; CORE_ROOM]).map_err(|error| io_error("writing", &reserved, error))?;
    let raw = scratch.join("disk.raw");
    run(tools
        .command("mke2fs")?
        .env("MKE2FS_CONFIG", "/dev/null")
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", layout.label, "-I", "256", "-b"])
        .arg(BLOCK.to_string())
        .args(["-O", FEATURES, "-E", "root_owner=0:0,lazy_itable_init=0", "-J", "size=4", "-d"])
        .arg(root)
        .arg(&raw)
        .arg(format!("{}M", layout.size_mib)))?;
    if !layout.keep_owners {
        give_to_root(tools, root, &raw)?;
    }
    let locate = |name: &str| locate(tools, &raw, root, name);
    let core = core(&locate)?;
    grub::install(tools, &raw, &core, &locate("core.img")?)?;
    // zstd takes a sixth of the time that zlib does, and a little less room.
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"];
    run(command("qemu-img", convert).arg(&raw).arg(out)).map(drop)
}

/// mke2fs keeps the owners of the folder; in the guest everything belongs to root, whoever builds.
fn give_to_root(tools: &Toolbox, root: &Path, raw: &Path) -> Result<()> {
    let mut script = String::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).map_err(|error| io_error("reading", &folder, error))?.flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap_or(&path).display();
            for field in ["uid", "gid"] {
                script.push_str(&format!("set_inode_field \"/{name}\" {field} 0\n"));
            }
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            }
        }
    }
    let mut child = tools
        .command("debugfs")?
        .args(["-w", "-f", "-"])
        .arg(raw)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| Error::internal("`debugfs` could not be started", error))?;
    let written = child.stdin.take().map_or(Ok(()), |mut input| input.write_all(script.as_bytes()));
    let ended = child.wait();
    match (written, ended) {
        (Ok(()), Ok(status)) if status.success() => Ok(()),
        (Err(error), _) | (_, Err(error)) => Err(io_error("writing", raw, error)),
        (_, Ok(status)) => Err(Error::bug(format!("`debugfs` failed while building the image: {status}"))),
    }
}

/// The sectors that a file in `boot` lies in.
fn locate(tools: &Toolbox, raw: &Path, root: &Path, name: &str) -> Result<Vec<Run>> {
    let output = run(tools.command("debugfs")?.arg("-R").arg(format!("blocks /boot/{name}")).arg(raw))?;
    let blocks: Vec<u64> =
        String::from_utf8_lossy(&output).split_whitespace().map_while(|word| word.parse().ok()).collect();
    let sectors = BLOCK / SECTOR;
    let mut runs: Vec<Run> = vec![];
    for block in &blocks {
        let start = block * sectors;
        match runs.last_mut() {
            Some(run) if run.start + run.length == start => run.length += sectors,
            _ => runs.push(Run { start, length: sectors }),
        }
    }
    let path = root.join("boot").join(name);
    let size = fs::metadata(&path).map_err(|error| io_error("reading", &path, error))?.len();
    if blocks.len() as u64 != size.div_ceil(BLOCK) {
        return Err(Error::bug(format!("/boot/{name} has holes, so it cannot be booted from")));
    }
    Ok(runs)
}
