//! Copies of disks reach the control plane once, whoever dies on the way.

use nephos_driver::{
    ComputeDriver, Power, Question,
    simulated::{Effect, Rule, SimulatedHost, Verb},
};
use nephos_node_api::{DesiredServer, SnapshotReport, SnapshotState, SnapshotTask, WantedPower};
use nephos_types::{Error, ErrorKind, ImageId, ServerId};

use crate::{
    Running,
    fake::{Fake, server},
    join::until,
};

const ON: WantedPower = WantedPower::On { restart: true };

fn with_copies(web: &DesiredServer, images: &[ImageId]) -> DesiredServer {
    let task = |image: &ImageId| SnapshotTask { image: *image, freeze: true };
    DesiredServer { snapshots: images.iter().map(task).collect(), ..web.clone() }
}

async fn until_done(control: &Fake, id: ServerId, image: ImageId) {
    control
        .until("copied", |state| {
            let report = state.reports.get(&id)?;
            report.snapshots.contains(&SnapshotReport { image, state: SnapshotState::Done }).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_copy_is_made_once_and_sent_until_it_has_arrived() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let folder = tempfile::tempdir().unwrap();
    let agent = Running::start(&control, &host, Some(folder.path()));
    let (web, image) = (server(ON), ImageId::new());
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    let write = Question::WriteFile { path: "/x".to_owned(), content: b"seven".to_vec(), append: false, mode: None };
    host.driver().ask(web.id, &write).await.unwrap();

    control.state.lock().unwrap().break_copies = 2;
    host.order(Rule::nth(Verb::Snapshot, 1, Effect::Fail(Error::new(ErrorKind::Unavailable, "busy", "Busy"))));
    control.want_server(&with_copies(&web, &[image]));
    until_done(&control, web.id, image).await;
    assert_eq!(host.calls(Verb::Snapshot), 2, "one failed, one made it");
    {
        let state = control.state.lock().unwrap();
        let (times, header, bytes) = &state.copies[&image];
        // The simulated disk's form is JSON: bytes as numbers.
        let text = String::from_utf8_lossy(bytes);
        assert!(*times == 1 && header.frozen && text.contains("115,101,118,101,110"), "{times} {text}");
    }
    // An agent that comes back knows that it has arrived.
    agent.kill().await;
    control.state.lock().unwrap().reports.clear();
    let agent = Running::start(&control, &host, Some(folder.path()));
    until_done(&control, web.id, image).await;
    assert_eq!((host.calls(Verb::Snapshot), control.state.lock().unwrap().copies[&image].0), (2, 1));

    // Not asked for any more, nothing of it is left; a running server is none the worse.
    control.want_server(&web);
    control.until("forgotten", |state| state.reports.get(&web.id)?.snapshots.is_empty().then_some(())).await;
    until(|| std::fs::read_dir(folder.path().join("snapshots")).unwrap().count() == 0).await;
    control.until_reached(web.id, 1, Some(Power::On)).await;
    drop(agent);
}

#[tokio::test]
async fn a_copy_that_an_agent_left_behind_is_sent_by_the_next_one() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let folder = tempfile::tempdir().unwrap();
    let agent = Running::start(&control, &host, Some(folder.path()));
    let (web, image) = (server(ON), ImageId::new());
    control.state.lock().unwrap().break_copies = u32::MAX;
    control.want_server(&with_copies(&web, &[image]));
    control
        .until("failing", |state| {
            let report = state.reports.get(&web.id)?;
            report.snapshots.iter().any(|s| matches!(s.state, SnapshotState::Failed { .. })).then_some(())
        })
        .await;
    agent.kill().await;
    control.state.lock().unwrap().break_copies = 0;
    let _agent = Running::start(&control, &host, Some(folder.path()));
    until_done(&control, web.id, image).await;
    assert_eq!(host.calls(Verb::Snapshot), 1);
}

#[tokio::test]
async fn what_cannot_be_copied_is_reported_and_left() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let (web, image) = (server(ON), ImageId::new());
    host.order(Rule::every(Verb::Snapshot, Effect::Fail(Error::conflict("unsupported", "It cannot be copied"))));
    control.want_server(&with_copies(&web, &[image]));
    let error = control
        .until("refused", |state| match &state.reports.get(&web.id)?.snapshots.first()?.state {
            SnapshotState::Failed { error } => Some(error.clone()),
            _ => None,
        })
        .await;
    assert_eq!(error.code, "unsupported");
    control.until_reached(web.id, 1, Some(Power::On)).await;
    assert_eq!(host.calls(Verb::Snapshot), 1);
}
