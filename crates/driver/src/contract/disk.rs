//! The root disk: kept, thrown away, copied.

use std::sync::Arc;

use super::{Bench, ok, power, refused, terminal::Terminal};
use crate::{ComputeDriver, Disk, Feature, GuestSpec, Power, SnapshotRequest, StopMode};

const WRITE: &str = "echo kept-\"so\"-far >/root/kept; sync; echo it-\"is\"-written";
const DONE: &str = "it-is-written";
const WRITTEN: &str = "kept-so-far";
const READ: &str = "cat /root/kept";

pub(super) async fn what_is_written_stays_until_the_disk_is_another(bench: &Bench) {
    let driver = bench.driver().await;
    let spec = bench.started(&driver).await;
    let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
    terminal.enter(WRITE).await;
    terminal.wait_for(DONE).await;
    ok("stop", driver.stop(spec.id, StopMode::Hard).await);
    if driver.capabilities().features.contains(&Feature::Rescue) {
        rescued(bench, &driver, &spec).await;
    }
    ok("define again", driver.define(&spec).await);
    ok("start", driver.start(spec.id).await);
    let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
    terminal.enter(READ).await;
    terminal.wait_for(WRITTEN).await;
    terminal.enter("cat /root/scribble").await;
    terminal.wait_for("No such file").await;
    let other = GuestSpec { disk: Disk { incarnation: 1, ..spec.disk.clone() }, ..spec.clone() };
    assert_eq!(refused("another disk while it runs", driver.define(&other).await), "guest_running");
    assert_eq!(power(&driver, spec.id).await, Power::On);
    ok("stop", driver.stop(spec.id, StopMode::Hard).await);
    for _ in 0..2 {
        ok("another disk", driver.define(&other).await);
    }
    ok("start", driver.start(spec.id).await);
    let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
    terminal.enter(READ).await;
    terminal.wait_for("No such file").await;
    bench.removed(&driver, spec.id).await;
}

/// In rescue a guest boots from something else, which forgets, and its own disk is there beside it.
async fn rescued(bench: &Bench, driver: &Arc<dyn ComputeDriver>, spec: &GuestSpec) {
    ok("define in rescue", driver.define(&GuestSpec { rescue: bench.base(), ..spec.clone() }).await);
    ok("start", driver.start(spec.id).await);
    let mut terminal = Terminal::logged_in(bench, driver, spec.id).await;
    terminal.enter(READ).await;
    terminal.wait_for("No such file").await;
    terminal.enter("echo lost >/root/scribble; sync").await;
    terminal.enter(&bench.mount_command()).await;
    terminal.enter("cat /mnt/root/kept; umount /mnt").await;
    terminal.wait_for(WRITTEN).await;
    ok("stop", driver.stop(spec.id, StopMode::Hard).await);
}

pub(super) async fn a_snapshot_is_a_base_for_others(bench: &Bench) {
    let driver = bench.driver().await;
    let request = |name: &str| SnapshotRequest { file: bench.scratch().join(name), freeze: false };
    if !driver.capabilities().features.contains(&Feature::Snapshot) {
        let nobody = nephos_types::ServerId::new();
        assert_eq!(refused("snapshot", driver.snapshot(nobody, &request("none")).await), "unsupported");
        return;
    }
    let first = bench.started(&driver).await;
    assert_eq!(
        refused("snapshot of nothing", driver.snapshot(bench.spec().id, &request("none")).await),
        "guest_not_found"
    );
    let mut terminal = Terminal::logged_in(bench, &driver, first.id).await;
    terminal.enter(WRITE).await;
    terminal.wait_for(DONE).await;
    let running = request("running");
    let taken = ok("snapshot of a running guest", driver.snapshot(first.id, &running).await);
    assert!(!taken.frozen, "nobody asked for that");
    assert_eq!(power(&driver, first.id).await, Power::On, "it goes on");
    terminal.enter("echo still-\"here\"").await;
    terminal.wait_for("still-here").await;
    ok("stop", driver.stop(first.id, StopMode::Hard).await);
    let off = request("off");
    for _ in 0..2 {
        ok("snapshot of a guest that is off", driver.snapshot(first.id, &off).await);
    }
    // The copies stand by themselves.
    bench.removed(&driver, first.id).await;
    for copy in [&running, &off] {
        let mut spec = bench.spec();
        spec.disk.base = Some((copy.file.clone(), taken.format));
        ok("define from the snapshot", driver.define(&spec).await);
        ok("start", driver.start(spec.id).await);
        let mut terminal = Terminal::logged_in(bench, &driver, spec.id).await;
        terminal.enter(READ).await;
        terminal.wait_for(WRITTEN).await;
        bench.removed(&driver, spec.id).await;
        let _ = std::fs::remove_file(&copy.file);
    }
}
