//! Disks and their copies when work on them is cut short.

use std::{fs, path::Path, time::Duration};

use nephos_driver::{ComputeDriver, Disk, GuestSpec, Power, SnapshotRequest, StopMode};
use nephos_types::Bytes;

use crate::surroundings::{Machine, empty, observed, qemu_is_installed};

fn files(folder: &Path, ending: &str) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    found.sort_unstable();
    found
}

#[tokio::test]
async fn a_snapshot_that_nobody_waits_for_leaves_nothing() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = empty();
    driver.define(&spec).await.unwrap();
    let request = SnapshotRequest { file: machine.state().join("copy.qcow2"), freeze: false };
    let disk = Bytes::mib(8);
    for running in [false, true] {
        if running {
            driver.start(spec.id).await.unwrap();
        }
        for limit in [0, 1, 5, 20, 60] {
            let _ = tokio::time::timeout(Duration::from_millis(limit), driver.snapshot(spec.id, &request)).await;
        }
        // Waits for what may still go on.
        driver.snapshot(spec.id, &request).await.unwrap();
        assert_eq!(files(&machine.state(), ".qcow2"), ["copy.qcow2"]);
        assert_eq!(files(&machine.state(), ".new"), Vec::<String>::new());
        assert_eq!(machine.processes().len(), usize::from(running), "nothing runs but the guest");
        let header = fs::read(&request.file).unwrap();
        assert_eq!(header[24..32], disk.0.to_be_bytes(), "the size that the guest sees");
        fs::remove_file(&request.file).unwrap();
    }
    // A folder that is not there.
    let nowhere = SnapshotRequest { file: machine.state().join("none/copy.qcow2"), freeze: false };
    assert!(driver.snapshot(spec.id, &nowhere).await.is_err());
    assert_eq!(observed(&driver, spec.id).await.power, Power::On);
    driver.remove(spec.id).await.unwrap();
}

#[tokio::test]
async fn another_disk_takes_the_place_of_the_old_one_whole_or_not_at_all() {
    if !qemu_is_installed() {
        return;
    }
    let machine = Machine::new();
    let driver = machine.driver().await;
    let spec = empty();
    driver.define(&spec).await.unwrap();
    let run = machine.run_folder(spec.id);
    let before = fs::read(run.join("disk.qcow2")).unwrap();
    // As if the agent had ended before the definition of the new disk was written.
    drop(driver);
    fs::write(run.join("disk-1.qcow2"), "half").unwrap();
    fs::write(run.join("disk.qcow2.new"), "half").unwrap();
    let driver = machine.driver().await;
    assert_eq!(files(&run, ""), ["disk.qcow2"], "what was never named is thrown away");
    assert_eq!(fs::read(run.join("disk.qcow2")).unwrap(), before);
    // And behind it.
    let other = GuestSpec { disk: Disk { incarnation: 1, ..spec.disk.clone() }, ..spec.clone() };
    driver.define(&other).await.unwrap();
    assert_eq!(files(&run, ""), ["disk-1.qcow2"]);
    drop(driver);
    fs::write(run.join("disk.qcow2"), before).unwrap();
    let driver = machine.driver().await;
    assert_eq!(files(&run, ""), ["disk-1.qcow2"]);
    // Smaller is allowed for another disk, and what cannot be made leaves the old one.
    driver.start(spec.id).await.unwrap();
    driver.stop(spec.id, StopMode::Hard).await.unwrap();
    let impossible =
        Disk { base: Some(("/no/such/image".into(), nephos_driver::DiskFormat::Raw)), size: Bytes(0), incarnation: 2 };
    assert!(driver.define(&GuestSpec { disk: impossible, ..spec.clone() }).await.is_err());
    let smaller = Disk { size: Bytes::mib(4), incarnation: 3, ..spec.disk.clone() };
    driver.define(&GuestSpec { disk: smaller, ..spec.clone() }).await.unwrap();
    driver.start(spec.id).await.unwrap();
    driver.remove(spec.id).await.unwrap();
}
