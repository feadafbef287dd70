//! Servers come, run, fall over, and go.

use nephos_driver::{
    ComputeDriver, Disk, GuestSpec, Power, Presence,
    simulated::{Effect, Rule, SimulatedHost, Verb},
};
use nephos_node_api::{DesiredServer, ServerState, StreamPurpose, WantedPower};
use nephos_types::{Bytes, Error, ErrorKind, ServerId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    Running,
    fake::{Fake, power_of, server},
};

const ON: WantedPower = WantedPower::On { restart: true };

#[tokio::test]
async fn a_server_is_started_stopped_rebooted_and_removed() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let mut web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;

    web = DesiredServer { generation: 2, reboots: 1, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 2, Some(Power::On)).await;
    assert_eq!(host.calls(Verb::Reboot), 1);

    web = DesiredServer { generation: 3, power: WantedPower::Off { grace_ms: 1000 }, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 3, Some(Power::Off)).await;

    web = DesiredServer { generation: 4, power: ON, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 4, Some(Power::On)).await;
    assert_eq!((host.calls(Verb::Reboot), host.calls(Verb::Start)), (1, 2));

    web = DesiredServer { generation: 5, power: WantedPower::Absent, ..web };
    control.want_server(&web);
    let report = control.until_reached(web.id, 5, None).await;
    assert_eq!(report.state, ServerState::Gone);
    assert!(host.driver().list().await.unwrap().is_empty());
    // Once the control plane has forgotten it too, so does the agent.
    control.want(|state| state.servers.clear());
}

#[tokio::test]
async fn a_server_made_switched_off_exists() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(WantedPower::Off { grace_ms: 0 });
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::Off)).await;
    assert!(host.spec(web.id).is_some());
}

#[tokio::test]
async fn a_newer_wish_cuts_a_soft_stop_short() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    host.order(Rule::every(Verb::Stop, Effect::IgnorePowerButton));
    control.want_server(&DesiredServer {
        generation: 2,
        power: WantedPower::Off { grace_ms: 3_600_000 },
        ..web.clone()
    });
    control
        .until("stopping", |state| {
            state.reports.get(&web.id).filter(|report| matches!(report.state, ServerState::Working { .. })).cloned()
        })
        .await;
    control.want_server(&DesiredServer { generation: 3, power: WantedPower::Absent, ..web.clone() });
    assert_eq!(control.until_reached(web.id, 3, None).await.state, ServerState::Gone);
}

#[tokio::test]
async fn a_crashed_guest_is_started_again_and_one_that_shut_down_is_not() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let (first, second, third) = (server(ON), server(ON), server(WantedPower::On { restart: false }));
    for server in [&first, &second, &third] {
        control.want_server(server);
        control.until_reached(server.id, 1, Some(Power::On)).await;
    }
    host.crash(first.id, "killed by the test");
    control
        .until("restarted", |state| {
            state
                .reports
                .get(&first.id)
                .filter(|report| report.restarts == 1 && power_of(report) == Some(Power::On))
                .cloned()
        })
        .await;

    host.shut_down(second.id);
    host.crash(third.id, "killed by the test");
    for id in [second.id, third.id] {
        let report = control.until_reached(id, 1, Some(Power::Off)).await;
        assert_eq!(report.restarts, 0);
    }
    // Asked for again, it runs again.
    control.want_server(&DesiredServer { generation: 2, ..second.clone() });
    control.until_reached(second.id, 2, Some(Power::On)).await;
}

#[tokio::test]
async fn what_fails_is_reported_and_tried_again() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let full = Error::new(ErrorKind::Capacity, "node_disk_full", "The node's disk is full");
    host.order(Rule::every(Verb::Start, Effect::Fail(full.clone())));
    let _agent = Running::start(&control, &host, None);
    let web = server(ON);
    control.want_server(&web);
    let report = control
        .until("an error", |state| state.reports.get(&web.id).filter(|report| report.error.is_some()).cloned())
        .await;
    assert_eq!((report.error, report.generation), (Some(full), 0));
    host.forget_orders();
    let report = control.until_reached(web.id, 1, Some(Power::On)).await;
    assert_eq!(report.error, None);
}

#[tokio::test]
async fn a_guest_that_cannot_be_seen_is_not_started_again() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    host.order(Rule::every(Verb::Observe, Effect::Unknown("the hypervisor is silent".to_owned())));
    control.want_server(&DesiredServer { generation: 2, ..web.clone() });
    control
        .until("unknown", |state| {
            state.reports.get(&web.id).filter(|report| matches!(report.state, ServerState::Unknown { .. })).cloned()
        })
        .await;
    assert_eq!(host.calls(Verb::Start), 1);
    host.forget_orders();
    control.until_reached(web.id, 2, Some(Power::On)).await;
    assert_eq!(host.calls(Verb::Start), 1);
}

#[tokio::test]
async fn a_restarted_agent_adopts_what_runs_and_repeats_nothing() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let agent = Running::start(&control, &host, Some(data.path()));
    let mut web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    web = DesiredServer { generation: 2, reboots: 3, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 2, Some(Power::On)).await;
    agent.kill().await;

    control.want(|state| state.reports.clear());
    let heard = control.state.lock().unwrap().hellos;
    let _agent = Running::start(&control, &host, Some(data.path()));
    control.until_reached(web.id, 2, Some(Power::On)).await;
    control.until("a second hello", |state| (state.hellos > heard).then_some(())).await;
    web = DesiredServer { generation: 3, reboots: 4, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 3, Some(Power::On)).await;
    assert_eq!((host.calls(Verb::Start), host.calls(Verb::Reboot)), (1, 2));
}

#[tokio::test]
async fn while_the_control_plane_is_away_guests_are_kept_so_even_by_a_new_agent() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let agent = Running::start(&control, &host, Some(data.path()));
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    control.state.lock().unwrap().away = true;

    // A crash is repaired …
    host.crash(web.id, "while away");
    wait_for(|| host.calls(Verb::Start) == 2).await;
    // (A restart is counted once it is done, and the count is what the new agent goes on from.)
    let record = data.path().join("servers").join(format!("{}.json", web.id));
    wait_for(|| std::fs::read_to_string(&record).is_ok_and(|text| text.contains("\"restarts\":1"))).await;
    // … and a power cut, after which a new agent finds nothing running and nobody to ask.
    agent.kill().await;
    host.lose_power();
    let _agent = Running::start(&control, &host, Some(data.path()));
    wait_for(|| host.calls(Verb::Start) == 3).await;

    {
        let mut state = control.state.lock().unwrap();
        state.away = false;
        state.heard_hello = false;
    }
    control
        .until("both restarts", |state| state.reports.get(&web.id).filter(|report| report.restarts == 2).cloned())
        .await;
}

#[tokio::test]
async fn lost_and_repeated_reports_cost_a_delay_only() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    for round in 0..10 {
        {
            let mut state = control.state.lock().unwrap();
            state.lose_before = round % 3;
            state.lose_after = round % 2;
        }
        let web = server(ON);
        control.want_server(&web);
        control.until_reached(web.id, 1, Some(Power::On)).await;
    }
}

#[tokio::test]
async fn a_control_plane_that_forgot_the_node_hears_hello_and_everything_again() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    {
        let mut state = control.state.lock().unwrap();
        state.heard_hello = false;
        state.reports.clear();
    }
    control.until_reached(web.id, 1, Some(Power::On)).await;
    assert_eq!(control.state.lock().unwrap().hellos, 2);
}

#[tokio::test]
async fn unknown_guests_are_left_alone_and_reported() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let stranger = GuestSpec {
        id: ServerId::new(),
        name: "stranger".to_owned(),
        vcpus: 1,
        memory: Bytes::mib(64),
        disk: Disk { base: None, size: Bytes::mib(1), incarnation: 0 },
        firmware: nephos_driver::Firmware::Bios,
        boot: nephos_driver::Boot::Disk,
        rescue: None,
        interfaces: vec![],
        config_drive: vec![],
    };
    let driver = host.driver();
    driver.define(&stranger).await.unwrap();
    driver.start(stranger.id).await.unwrap();
    let _agent = Running::start(&control, &host, None);
    let report = control.until("the stranger", |state| state.reports.get(&stranger.id).cloned()).await;
    assert_eq!((report.generation, power_of(&report)), (0, Some(Power::On)));
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;
    // A server that the control plane stops naming becomes one: it is not taken for a wish to remove it.
    control.want(|state| state.servers.clear());
    let other = server(ON);
    control.want_server(&other);
    control.until_reached(other.id, 1, Some(Power::On)).await;
    for id in [stranger.id, web.id] {
        assert!(matches!(driver.observe(id).await, Presence::Present(found) if found.power == Power::On));
    }
}

#[tokio::test]
async fn consoles_and_logs_are_dialled_and_refusals_come_back() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = server(ON);
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::On)).await;

    let asked = control.request(StreamPurpose::Console { server: web.id });
    let mut streams = control.streams.lock().await;
    let (id, console) = streams.recv().await.unwrap();
    assert_eq!(id, asked);
    let mut console = console.unwrap();
    console.write_all(b"root\n").await.unwrap();
    let mut seen = String::new();
    while !seen.contains("assword") {
        let mut buffer = [0; 256];
        let count = console.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the console ended: {seen}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    drop(console);

    control.request(StreamPurpose::ConsoleLog { server: web.id, max: 8 });
    let (_, log) = streams.recv().await.unwrap();
    let mut text = vec![];
    log.unwrap().read_to_end(&mut text).await.unwrap();
    assert_eq!(text.len(), 8);

    control.request(StreamPurpose::Console { server: ServerId::new() });
    let (_, refused) = streams.recv().await.unwrap();
    assert_eq!(refused.err().map(|error| error.kind), Some(ErrorKind::NotFound));
}

/// Waits for something that is not reported.
async fn wait_for(condition: impl Fn() -> bool) {
    tokio::time::timeout(std::time::Duration::from_secs(60), async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
}
