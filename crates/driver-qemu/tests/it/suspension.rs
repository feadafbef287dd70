//! Suspending and resuming when the agent ends in between: the guest is as before or suspended, never both.

use std::{fs, path::PathBuf};

use nephos_driver::{ComputeDriver, Power, StopMode};
use nephos_driver_qemu::QemuDriver;
use nephos_types::ServerId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
};

use crate::surroundings::{Machine, empty, observed, qemu_is_installed};

/// A guest, its folder, and what an agent that ended would have left there.
struct Scene {
    machine: Machine,
    id: ServerId,
}

impl Scene {
    async fn new() -> (Self, QemuDriver) {
        let machine = Machine::new();
        let driver = machine.driver().await;
        let spec = empty();
        driver.define(&spec).await.unwrap();
        driver.start(spec.id).await.unwrap();
        (Self { machine, id: spec.id }, driver)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.state().join("guests").join(self.id.to_string()).join(name)
    }

    fn record(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file("record.json")).unwrap()).unwrap()
    }

    fn set_life(&self, life: Value) {
        let mut record = self.record();
        record["life"] = life;
        fs::write(self.file("record.json"), record.to_string()).unwrap();
    }

    /// Tells QEMU something behind the driver's back; there must be no driver.
    async fn tell(&self, command: &str) {
        let socket = UnixStream::connect(self.machine.run_folder(self.id).join("qmp.sock")).await.unwrap();
        let (read, mut write) = socket.into_split();
        let mut lines = BufReader::new(read).lines();
        lines.next_line().await.unwrap();
        for command in ["qmp_capabilities", command] {
            write.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await.unwrap();
            while !lines.next_line().await.unwrap().unwrap().contains("\"return\"") {}
        }
    }

    async fn end(self, driver: QemuDriver) {
        driver.remove(self.id).await.unwrap();
        assert_eq!(self.machine.processes(), Vec::<u32>::new());
    }
}

#[tokio::test]
async fn an_interrupted_suspension_leaves_the_guest_as_it_was() {
    if !qemu_is_installed() {
        return;
    }
    let (scene, mut driver) = Scene::new().await;
    let process = scene.record()["life"]["process"].clone();
    for (paused, stopped) in [(false, false), (false, true), (true, true)] {
        drop(driver);
        if stopped {
            scene.tell("stop").await;
        }
        fs::write(scene.file("memory"), "half of it").unwrap();
        scene.set_life(json!({ "state": "suspending", "process": process, "paused": paused }));
        driver = scene.machine.driver().await;
        let expected = if paused { Power::Paused } else { Power::On };
        assert_eq!(observed(&driver, scene.id).await.power, expected, "stopped: {stopped}");
        assert!(!scene.file("memory").exists(), "half a memory is worth nothing");
        driver.start(scene.id).await.unwrap();
        assert_eq!(observed(&driver, scene.id).await.power, Power::On);
    }
    // The process ended as well.
    drop(driver);
    crate::surroundings::kill(process["pid"].as_u64().unwrap() as u32);
    fs::write(scene.file("memory"), "half of it").unwrap();
    scene.set_life(json!({ "state": "suspending", "process": process, "paused": false }));
    let driver = scene.machine.driver().await;
    let found = observed(&driver, scene.id).await;
    assert_eq!(found.power, Power::Off);
    assert!(found.ended.unwrap().starts_with("crashed: "));
    assert!(!scene.file("memory").exists());
    scene.end(driver).await;
}

#[tokio::test]
async fn an_interrupted_resumption_leaves_the_guest_suspended_or_running() {
    if !qemu_is_installed() {
        return;
    }
    let (scene, driver) = Scene::new().await;
    driver.suspend(scene.id).await.unwrap();
    let memory = fs::read(scene.file("memory")).unwrap();
    assert_eq!(scene.machine.processes(), Vec::<u32>::new());

    // Before there was a process.
    drop(driver);
    scene.set_life(json!({ "state": "resuming" }));
    let mut driver = scene.machine.driver().await;
    assert_eq!(observed(&driver, scene.id).await.power, Power::Suspended);
    driver.start(scene.id).await.unwrap();
    assert!(!scene.file("memory").exists(), "a memory is used once");

    // With a process that has not run on; likewise after the memory was saved, before its process ended.
    for state in ["resuming", "suspended"] {
        drop(driver);
        scene.tell("stop").await;
        fs::write(scene.file("memory"), &memory).unwrap();
        scene.set_life(json!({ "state": state }));
        driver = scene.machine.driver().await;
        let found = observed(&driver, scene.id).await;
        assert_eq!((found.power, found.pid), (Power::Suspended, None), "{state}");
        assert_eq!(scene.machine.processes(), Vec::<u32>::new(), "{state}: never both");
        driver.start(scene.id).await.unwrap();
        assert_eq!(observed(&driver, scene.id).await.power, Power::On);
    }

    // When it was written down that it runs, before it did, and before the memory was removed.
    drop(driver);
    scene.tell("stop").await;
    fs::write(scene.file("memory"), &memory).unwrap();
    let driver = scene.machine.driver().await;
    assert_eq!(observed(&driver, scene.id).await.power, Power::On);
    assert!(!scene.file("memory").exists());
    scene.end(driver).await;
}

#[tokio::test]
async fn a_memory_that_cannot_be_used_stays_until_it_is_given_up() {
    if !qemu_is_installed() {
        return;
    }
    let (scene, driver) = Scene::new().await;
    driver.suspend(scene.id).await.unwrap();
    let memory = fs::read(scene.file("memory")).unwrap();
    for spoilt in [&b""[..], b"nonsense", &memory[..memory.len() / 2]] {
        fs::write(scene.file("memory"), spoilt).unwrap();
        let error = driver.start(scene.id).await.unwrap_err();
        assert_eq!(error.code, "resume_failed", "{error:?}");
        assert_eq!(observed(&driver, scene.id).await.power, Power::Suspended);
        assert_eq!(scene.machine.processes(), Vec::<u32>::new());
    }
    fs::write(scene.file("memory"), &memory).unwrap();
    driver.start(scene.id).await.unwrap();
    driver.suspend(scene.id).await.unwrap();
    driver.stop(scene.id, StopMode::Hard).await.unwrap();
    assert_eq!(observed(&driver, scene.id).await.power, Power::Off);
    assert!(!scene.file("memory").exists());
    driver.start(scene.id).await.unwrap();
    scene.end(driver).await;
}
