//! The guest's kernel and those of its modules that the guest uses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nephos_types::{Error, Result};

use crate::{
    command::{command, io_error, run},
    toolbox::Toolbox,
};

/// Needed to find the root disk.
pub(crate) const BOOT: &[&str] =
    &["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "nvme", "ext4", "crc32c_generic"];
/// Needed besides, once the root disk is there.
pub(crate) const GUEST: &[&str] = &[
    "virtio_net",
    "virtio_console",
    "virtio_balloon",
    "virtio-rng",
    "button",
    "evdev",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "nls_iso8859-1",
    "nls_utf8",
    "af_packet",
    "overlay",
];

/// What ends a signed module: the signature's description (12 bytes, the last 4 its length in big-endian), then this.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
const SIGNATURE_INFO: usize = 12;

/// The kernel of the unpacked packages.
pub(crate) struct Kernel {
    /// Its release, e.g. `6.1.0-56-cloud-amd64`.
    pub(crate) release: String,
    /// Its bootable file.
    pub(crate) image: PathBuf,
    /// The folder of its modules.
    modules: PathBuf,
    /// Module name (with `_` for `-`) to its file, relative to `modules`.
    files: BTreeMap<String, String>,
    /// File to the files that it needs.
    needs: BTreeMap<String, Vec<String>>,
}

impl Kernel {
    /// Finds the kernel and reads how its modules depend on each other.
    pub(crate) fn find(tools: &Toolbox) -> Result<Self> {
        let base = ["usr/lib/modules", "lib/modules"]
            .iter()
            .map(|folder| tools.path(folder))
            .find(|folder| folder.is_dir())
            .ok_or_else(|| {
                Error::bug("the kernel's package holds no modules; the builder does not fit this distribution")
            })?;
        let mut releases: Vec<_> = fs::read_dir(&base)
            .map_err(|error| io_error("reading", &base, error))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        releases.sort_unstable();
        let release = releases.pop().ok_or_else(|| Error::bug("the kernel's package holds no modules"))?;
        let modules = base.join(&release);
        let image = tools.path("boot").join(format!("vmlinuz-{release}"));
        run(tools.command("depmod")?.arg("-b").arg(folder_above_lib(&base)).arg(&release))?;
        let mut kernel = Self { release, image, modules, files: BTreeMap::new(), needs: BTreeMap::new() };
        let list = kernel.modules.join("modules.dep");
        let text = fs::read_to_string(&list).map_err(|error| io_error("reading", &list, error))?;
        for (file, needs) in text.lines().filter_map(|line| line.split_once(':')) {
            kernel.files.insert(module_name(file), file.to_owned());
            kernel.needs.insert(file.to_owned(), needs.split_whitespace().map(str::to_owned).collect());
        }
        Ok(kernel)
    }

    /// Puts these modules, and what they need, into `<root>/usr/lib/modules`, so that `modprobe` finds them there.
    /// What the kernel has built in, or does not know at all, is left out.
    pub(crate) fn install(&self, tools: &Toolbox, names: &[&str], root: &Path) -> Result<()> {
        let mut wanted = BTreeSet::new();
        let mut open: Vec<&str> =
            names.iter().filter_map(|name| self.files.get(&module_name(name))).map(String::as_str).collect();
        while let Some(file) = open.pop() {
            if wanted.insert(file) {
                open.extend(self.needs.get(file).into_iter().flatten().map(String::as_str));
            }
        }
        let target = root.join("usr/lib/modules").join(&self.release);
        fs::create_dir_all(&target).map_err(|error| io_error("making", &target, error))?;
        for file in wanted {
            let content = plain(tools, &self.modules.join(file))?;
            let stem = file.find(".ko").map_or(file, |end| &file[..end]);
            write(&target.join(format!("{stem}.ko")), &content)?;
        }
        for index in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
            let from = self.modules.join(index);
            if from.is_file() {
                let to = target.join(index);
                fs::copy(&from, &to).map_err(|error| io_error("copying", &from, error))?;
            }
        }
        run(tools.command("depmod")?.arg("-b").arg(root.join("usr")).arg(&self.release))?;
        // busybox reads the text forms.
        for entry in fs::read_dir(&target).map_err(|error| io_error("reading", &target, error))?.flatten() {
            let path = entry.path();
            let unused = path.extension().is_some_and(|extension| extension == "bin" || extension == "modinfo");
            if unused {
                fs::remove_file(&path).map_err(|error| io_error("removing", &path, error))?;
            }
        }
        Ok(())
    }
}

/// `depmod -b` wants the folder that holds `lib/modules`.
fn folder_above_lib(modules: &Path) -> &Path {
    modules.parent().and_then(Path::parent).unwrap_or(modules)
}

/// `kernel/drivers/char/virtio-rng.ko.xz` and `virtio-rng` are both the module `virtio_rng`.
fn module_name(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.split(".ko").next().unwrap_or(name).replace('-', "_")
}

/// A module without compression (busybox cannot undo it) and without signature (checking it takes time, and the guest
/// does not insist on signatures).
fn plain(tools: &Toolbox, path: &Path) -> Result<Vec<u8>> {
    let decompress = |mut program: Command| {
        let file = fs::File::open(path).map_err(|error| io_error("opening", path, error))?;
        run(program.args(["-d", "-c"]).stdin(Stdio::from(file)))
    };
    let mut content = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => decompress(tools.command("xz")?)?,
        Some("zst") => decompress(tools.command("zstd")?)?,
        Some("gz") => decompress(command("gzip", [] as [&str; 0]))?,
        _ => fs::read(path).map_err(|error| io_error("reading", path, error))?,
    };
    let unsigned = without_signature(&content);
    content.truncate(unsigned);
    Ok(content)
}

/// The length of a module without its signature.
fn without_signature(module: &[u8]) -> usize {
    let Some(rest) = module.strip_suffix(SIGNATURE_MAGIC) else { return module.len() };
    let Some((rest, info)) = rest.split_last_chunk::<SIGNATURE_INFO>() else { return module.len() };
    let [.., a, b, c, d] = *info;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    rest.len().checked_sub(length).unwrap_or(module.len())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| io_error("making", folder, error))?;
    }
    fs::write(path, content).map_err(|error| io_error("writing", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_are_cut_off() {
        let mut module = b"ELF code".to_vec();
        assert_eq!(without_signature(&module), 8);
        module.extend_from_slice(b"signature");
        module.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        module.extend_from_slice(SIGNATURE_MAGIC);
        assert_eq!(without_signature(&module), 8);
        // A length that cannot be is no reason to fail.
        let end = module.len();
        assert_eq!(without_signature(&module[end - 30..]), 30);
    }

    #[test]
    fn modules_are_named_as_modprobe_does() {
        assert_eq!(module_name("kernel/drivers/char/hw_random/virtio-rng.ko.xz"), "virtio_rng");
        assert_eq!(module_name("kernel/fs/isofs/isofs.ko"), "isofs");
        assert_eq!(module_name("virtio-rng"), "virtio_rng");
    }
}
