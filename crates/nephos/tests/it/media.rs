//! Media that boot the micro guest as others make them: a CD, and a disk for UEFI.

use std::{fs, io::Write as _, path::Path, process::Command};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use nephos_image_build::MicroImage;

/// The boot loader for CDs of the distribution (packages isolinux, syslinux-common).
const CD_LOADER: [&str; 2] = ["/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"];
/// What the boot loader for UEFI is made of (package grub-efi-amd64-bin).
const UEFI_MODULES: &str = "/usr/lib/grub/x86_64-efi";
/// What UEFI starts of a disk that it knows nothing of.
const UEFI_PROGRAM: &str = "EFI/BOOT/BOOTX64.EFI";
/// Room for GRUB and the file system's own tables.
const ROOM: u64 = 8 << 20;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The micro guest as a CD.
pub(crate) fn cd(micro: &MicroImage, scratch: &Path, file: &Path) {
    let content = scratch.join("cd");
    fs::create_dir(&content).unwrap();
    for (from, to) in [
        (Path::new(CD_LOADER[0]), "isolinux.bin"),
        (Path::new(CD_LOADER[1]), "ldlinux.c32"),
        (&micro.kernel, "vmlinuz"),
        (&micro.initrd, "initrd"),
    ] {
        fs::copy(from, content.join(to)).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }
    let arguments = MicroImage::KERNEL_ARGUMENTS;
    let menu = format!("DEFAULT micro\nPROMPT 0\nLABEL micro\nKERNEL vmlinuz\nINITRD initrd\nAPPEND {arguments}\n");
    fs::write(content.join("isolinux.cfg"), menu).unwrap();
    let boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"];
    run(
        "xorriso",
        &[&["-as", "mkisofs", "-quiet", "-J", "-R", "-o", text(file)], &boot[..], &[text(&content)]].concat(),
    );
}

/// The micro guest on a disk that only UEFI boots: a FAT file system with GRUB, kernel and initramfs.
pub(crate) fn uefi_disk(micro: &MicroImage, scratch: &Path, file: &Path) {
    let (script, grub) = (scratch.join("grub.cfg"), scratch.join("grub.efi"));
    let arguments = MicroImage::KERNEL_ARGUMENTS;
    fs::write(&script, format!("linux /vmlinuz {arguments}\ninitrd /initrd\nboot\n")).unwrap();
    let options = ["-O", "x86_64-efi", "-d", UEFI_MODULES, "-p", "/", "-c", text(&script), "-o", text(&grub)];
    run("grub-mkimage", &[&options[..], &["fat", "linux"]].concat());

    let files =
        [(UEFI_PROGRAM, fs::read(&grub)), ("vmlinuz", fs::read(&micro.kernel)), ("initrd", fs::read(&micro.initrd))]
            .map(|(name, content)| (name, content.unwrap()));
    let size: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    let mut disk = fs::File::options().read(true).write(true).create_new(true).open(file).unwrap();
    disk.set_len((size + ROOM).next_multiple_of(1 << 20)).unwrap();
    fatfs::format_volume(&mut disk, FormatVolumeOptions::new()).unwrap();
    let system = FileSystem::new(&mut disk, FsOptions::new()).unwrap();
    let root = system.root_dir();
    root.create_dir("EFI").unwrap().create_dir("BOOT").unwrap();
    for (name, content) in files {
        let mut target = root.create_file(name).unwrap();
        target.write_all(&content).unwrap();
        target.flush().unwrap();
    }
}
