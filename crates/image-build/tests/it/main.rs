//! The micro guest is built and really boots. Needs QEMU (`qemu-system-x86`, `qemu-utils`) and the package mirror.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod guest;

use nephos_image_build::{MicroImage, Options, micro};

use crate::guest::Guest;

/// The image, from the user's cache or built into it.
fn image() -> MicroImage {
    micro(&Options::default(), |progress| eprintln!("{}/{} {}", progress.step, progress.steps, progress.what)).unwrap()
}

#[test]
fn boots_from_its_disk_to_a_login_and_powers_off_by_acpi() {
    let image = image();
    let mut guest = Guest::from_disk(&image);
    guest.wait_for("log in as root with the password nephos");
    guest.log_in("micro");
    // The disk was made without root, and must not show it.
    guest.send("find / -xdev ! -user root | wc -l; echo checked owners\n");
    guest.wait_for("\n0\r\nchecked owners");
    guest.send("awk '$2 == \"/\" { print \"root is on\", $3 }' /proc/mounts\n");
    guest.wait_for("root is on ext4");
    // The disk is larger than the image, and the file system has grown with it.
    guest.send("until df -m / | awk 'END { exit $2 < 400 }'; do sleep 0.1; done; echo it has grown\n");
    guest.wait_for("\nit has grown");
    guest.power_off();
}

#[test]
fn applies_a_configuration_drive() {
    let image = image();
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE+Y0xBrnvhkLbNjEWhkhhPuEcoDPqVcO1ZVgxRSEXnc test@nephos";
    let other = "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTY=";
    let mut guest = Guest::with_config_drive(
        &image,
        &[
            ("meta-data", &format!("instance-id: srv-1\nlocal-hostname: web\npublic-keys:\n  - {key}\n")),
            ("user-data", &format!("#cloud-config\nssh_authorized_keys:\n  - \"{other}\"\n")),
        ],
    );
    guest.log_in("web");
    guest.send("cat /root/.ssh/authorized_keys; echo shown\n");
    guest.wait_for(&format!("{key}\r\n{other}\r\nshown"));
}

#[test]
fn runs_user_data_from_a_json_configuration_drive() {
    let image = image();
    let mut guest = Guest::with_config_drive(
        &image,
        &[
            (
                "meta-data",
                r#"{"instance-id": "srv-2", "local-hostname": "db.example.org", "public-keys": ["ssh-rsa AAAAB3Nz a b"]}"#,
            ),
            ("user-data", "#!/bin/sh\necho \"user data ran on $(hostname)\" > /root/ran\n"),
        ],
    );
    guest.log_in("db");
    // It runs beside the login prompt, which empties the console's buffers: what it says there may be lost.
    guest.send("until [ -s /root/ran ]; do sleep 0.1; done; cat /root/ran\n");
    guest.wait_for("\nuser data ran on db\r\n");
    guest.send("cat /root/.ssh/authorized_keys; echo shown\n");
    guest.wait_for("ssh-rsa AAAAB3Nz a b\r\nshown");
}

#[test]
fn boots_without_a_disk() {
    let mut guest = Guest::from_initrd(&image());
    guest.log_in("micro");
    guest.power_off();
}

#[test]
fn an_image_that_is_there_is_not_built_again() {
    let image = image();
    let before = std::fs::metadata(&image.disk).unwrap().modified().unwrap();
    let mut steps = 0;
    assert_eq!(micro(&Options::default(), |_| steps += 1).unwrap(), image);
    assert_eq!(steps, 0);
    assert_eq!(std::fs::metadata(&image.disk).unwrap().modified().unwrap(), before);
}

#[test]
fn the_micro_container_is_a_root_file_system() {
    let image = nephos_image_build::micro_container(&Options::default(), |_| {}).unwrap();
    let file = std::fs::File::open(&image).unwrap();
    assert!(file.metadata().unwrap().len() < 4 << 20, "it is small");
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut found = std::collections::BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
        found.insert(entry.path().unwrap().display().to_string(), entry.header().mode().unwrap());
    }
    assert_eq!(found["tmp"], 0o1777);
    assert_eq!(found["etc/passwd"], 0o600);
    for path in ["sbin/init", "bin/sh", "bin/login", "sbin/getty", "etc/rc.boot"] {
        assert!(found.contains_key(path), "{path}");
    }
    let mut steps = 0;
    assert_eq!(nephos_image_build::micro_container(&Options::default(), |_| steps += 1).unwrap(), image);
    assert_eq!(steps, 0, "it is not built again");
}
