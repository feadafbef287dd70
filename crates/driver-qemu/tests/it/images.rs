//! Images of each format boot.

use std::{fs, path::Path, process::Command};

use nephos_driver::{ComputeDriver, Disk, DiskFormat, GuestSpec};
use nephos_image_build::MicroImage;
use nephos_types::Bytes;

use crate::surroundings::{Machine, log_shows, micro, qemu_is_installed, spec};

/// The boot loader for CDs of the distribution (packages isolinux, syslinux-common).
const LOADER: [&str; 2] = ["/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32"];

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The micro guest as a CD; `false` if there is nothing to make it with.
fn make_cd(folder: &Path, file: &Path) -> bool {
    if LOADER.iter().any(|file| !Path::new(file).exists()) || Command::new("xorriso").arg("-version").output().is_err()
    {
        eprintln!("\n*** NOT TESTED: booting a CD (packages isolinux, syslinux-common and xorriso) ***\n");
        return false;
    }
    let content = folder.join("cd");
    fs::create_dir(&content).unwrap();
    for (from, to) in [(LOADER[0], "isolinux.bin"), (LOADER[1], "ldlinux.c32")] {
        fs::copy(from, content.join(to)).unwrap();
    }
    fs::copy(&micro().kernel, content.join("vmlinuz")).unwrap();
    fs::copy(&micro().initrd, content.join("initrd")).unwrap();
    let arguments = MicroImage::KERNEL_ARGUMENTS;
    let menu = format!("DEFAULT micro\nPROMPT 0\nLABEL micro\nKERNEL vmlinuz\nINITRD initrd\nAPPEND {arguments}\n");
    fs::write(content.join("isolinux.cfg"), menu).unwrap();
    let (file, content) = (file.to_str().unwrap(), content.to_str().unwrap());
    let boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"];
    run("xorriso", &[&["-as", "mkisofs", "-quiet", "-J", "-R", "-o", file], &boot[..], &[content]].concat());
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_image_and_a_cd_boot() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let scratch = tempfile::tempdir().unwrap();
    let (raw, cd) = (scratch.path().join("micro.raw"), scratch.path().join("micro.iso"));
    run("qemu-img", &["convert", "-O", "raw", micro().disk.to_str().unwrap(), raw.to_str().unwrap()]);
    let of = |file: &Path, format| GuestSpec {
        disk: Disk { base: Some((file.to_owned(), format)), size: Bytes(0), incarnation: 0 },
        memory: Bytes::mib(256),
        ..spec()
    };
    let mut guests = vec![of(&raw, DiskFormat::Raw)];
    if make_cd(scratch.path(), &cd) {
        guests.push(of(&cd, DiskFormat::Iso));
    }
    for guest in &guests {
        driver.define(guest).await.unwrap();
        driver.start(guest.id).await.unwrap();
    }
    for guest in &guests {
        log_shows(&driver, guest.id, "login: ").await;
        driver.remove(guest.id).await.unwrap();
    }
    assert_eq!(machine.processes(), Vec::<u32>::new());
}
