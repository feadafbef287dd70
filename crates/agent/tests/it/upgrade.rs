//! Another program takes the agent's place, or is refused.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf};

use nephos_agent::{Config, Ended, Program};
use nephos_driver::simulated::SimulatedHost;
use nephos_node_api::AgentProgram;
use nephos_types::Bytes;
use tempfile::TempDir;

use crate::{Running, fake::Fake, quick};

/// A program of which only the size and the exit code matter.
fn script(code: u8) -> Vec<u8> {
    format!("#!/bin/sh\n[ \"$1\" = --check ] || exit 9\necho it ends with {code} >&2\nexit {code}\n").into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

/// An agent whose program is a file in a folder.
struct Installed {
    folder: TempDir,
    config: Config,
}

impl Installed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nephos");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o750)).unwrap();
        let program = Program::new(path, sha256(b"old"), vec!["--check".into()]);
        Self { folder, config: Config { program: Some(program), ..quick() } }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = self.folder.path().read_dir().unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn offer(control: &Fake, program: &[u8], told: &[u8]) {
    control.want(|state| {
        let sha256 = sha256(told);
        state.programs.insert(sha256.clone(), program.to_vec());
        state.program = Some(AgentProgram { sha256, size: Bytes(told.len() as u64) });
    });
}

#[tokio::test]
async fn a_program_that_works_takes_the_place_of_the_old_one() {
    let (control, host, installed) = (Fake::new(), SimulatedHost::new(1), Installed::new());
    let mut agent = Running::with(&control, &host, installed.config.clone());
    offer(&control, &script(0), &script(0));
    assert_eq!((&mut agent.task).await.unwrap().unwrap(), Ended::Replaced);
    assert_eq!(installed.names(), ["nephos", "nephos.old"]);
    assert_eq!(fs::read(installed.file("nephos")).unwrap(), script(0));
    assert_eq!(fs::read(installed.file("nephos.old")).unwrap(), b"old");
    let mode = fs::metadata(installed.file("nephos")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o750, "who may run it stays");
}

#[tokio::test]
async fn a_program_that_does_not_work_is_refused_until_another_one_is_offered() {
    let (control, host, installed) = (Fake::new(), SimulatedHost::new(1), Installed::new());
    let mut agent = Running::with(&control, &host, installed.config.clone());
    offer(&control, &script(3), &script(3));
    let message = control
        .until("the failure to be told", |state| {
            let failure = state.health.iter().find(|condition| condition.code == "upgrade_failed");
            failure.map(|condition| condition.message.clone())
        })
        .await;
    assert!(message.contains("it ends with 3"), "{message}");
    assert_eq!(installed.names(), ["nephos"]);
    assert_eq!(fs::read(installed.file("nephos")).unwrap(), b"old");

    // Taken back, it is forgotten; what the agent is already is no work.
    control.want(|state| state.program = None);
    control.until("no complaint", |state| state.health.is_empty().then_some(())).await;
    offer(&control, b"old", b"old");
    offer(&control, &script(0), &script(0));
    assert_eq!((&mut agent.task).await.unwrap().unwrap(), Ended::Replaced);
}

#[tokio::test]
async fn what_does_not_arrive_whole_is_fetched_again() {
    let (control, host, installed) = (Fake::new(), SimulatedHost::new(1), Installed::new());
    let mut agent = Running::with(&control, &host, installed.config.clone());
    // Of the right size, with other bytes; then something shorter; then the program.
    offer(&control, &script(7), &script(0));
    control.until("an attempt", |state| (state.fetched_programs > 2).then_some(())).await;
    offer(&control, b"short", &script(0));
    assert!(!agent.task.is_finished());
    offer(&control, &script(0), &script(0));
    assert_eq!((&mut agent.task).await.unwrap().unwrap(), Ended::Replaced);
}

#[tokio::test]
async fn a_place_that_cannot_be_written_is_told() {
    let (control, host, installed) = (Fake::new(), SimulatedHost::new(1), Installed::new());
    let nowhere = installed.file("gone").join("nephos");
    let program = Program::new(nowhere, sha256(b"old"), vec![]);
    let _agent = Running::with(&control, &host, Config { program: Some(program), ..quick() });
    offer(&control, &script(0), &script(0));
    control
        .until("the failure to be told", |state| {
            state.health.iter().any(|condition| condition.message.contains("gone")).then_some(())
        })
        .await;
}
