//! Servers stand still, go on, are rescued, and get another disk.

use nephos_driver::{
    ComputeDriver, DiskFormat, Feature, Power,
    simulated::{SimulatedHost, Verb},
};
use nephos_node_api::{DesiredServer, ImageSource, ServerState, WantedPower};
use nephos_types::{Bytes, ImageId};

use crate::{
    Running,
    fake::{Fake, server},
};

const ON: WantedPower = WantedPower::On { restart: true };

#[tokio::test]
async fn a_server_pauses_suspends_and_goes_on() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let folder = tempfile::tempdir().unwrap();
    let agent = Running::start(&control, &host, Some(folder.path()));
    let mut web = server(ON);
    let wishes = [
        (ON, Power::On),
        (WantedPower::Paused, Power::Paused),
        (ON, Power::On),
        (WantedPower::Suspended, Power::Suspended),
        (WantedPower::Paused, Power::Paused),
        (WantedPower::Suspended, Power::Suspended),
        (ON, Power::On),
    ];
    for (number, (power, is)) in (1..).zip(wishes) {
        web = DesiredServer { generation: number, power, ..web };
        control.want_server(&web);
        let report = control.until_reached(web.id, number, Some(is)).await;
        assert_eq!(report.restarts, 0, "{power:?}");
    }
    assert_eq!((host.calls(Verb::Pause), host.calls(Verb::Suspend), host.calls(Verb::Stop)), (2, 2, 0));

    // A suspended guest is not started anew by an agent that comes back, and can be switched off or rebooted.
    web = DesiredServer { generation: 8, power: WantedPower::Suspended, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 8, Some(Power::Suspended)).await;
    agent.kill().await;
    let _agent = Running::start(&control, &host, Some(folder.path()));
    control.until_reached(web.id, 8, Some(Power::Suspended)).await;
    web = DesiredServer { generation: 9, power: ON, reboots: 1, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 9, Some(Power::On)).await;
    assert_eq!(host.calls(Verb::Reboot), 0, "it was started anew");
    assert_eq!(host.calls(Verb::Stop), 1);
    web = DesiredServer { generation: 10, power: WantedPower::Suspended, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 10, Some(Power::Suspended)).await;
    web = DesiredServer { generation: 11, power: WantedPower::Off { grace_ms: 0 }, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 11, Some(Power::Off)).await;

    // What is off stays off.
    web = DesiredServer { generation: 12, power: WantedPower::Paused, ..web };
    control.want_server(&web);
    control.until_reached(web.id, 12, Some(Power::Off)).await;
}

#[tokio::test]
async fn another_disk_and_a_rescue_image_reach_the_driver() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let source = |sum: char| ImageSource {
        id: ImageId::new(),
        format: DiskFormat::Raw,
        size: Bytes(10),
        sha256: sum.to_string().repeat(64),
    };
    let web = DesiredServer { image: Some(source('a')), ..server(WantedPower::Off { grace_ms: 0 }) };
    control.want_server(&web);
    control.until_reached(web.id, 1, Some(Power::Off)).await;
    let web = DesiredServer { generation: 2, incarnation: 1, rescue: Some(source('b')), ..web };
    control.want_server(&web);
    control.until_reached(web.id, 2, Some(Power::Off)).await;
    let spec = host.spec(web.id).unwrap();
    assert_eq!(spec.disk.incarnation, 1);
    assert!(spec.rescue.unwrap().0.ends_with("b".repeat(64)));
}

#[tokio::test]
async fn a_server_for_another_driver_is_refused() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let _agent = Running::start(&control, &host, None);
    let web = DesiredServer { driver: "other".to_owned(), ..server(ON) };
    control.want_server(&web);
    let refused = control
        .until("refused", |state| {
            let report = state.reports.get(&web.id)?;
            Some((report.error.clone()?, report.state.clone()))
        })
        .await;
    assert_eq!(refused.0.code, "no_such_driver");
    assert!(matches!(refused.1, ServerState::Unknown { .. }) && !refused.0.retryable());
    let named = DesiredServer { driver: host.driver().capabilities().driver, ..server(ON) };
    control.want_server(&named);
    control.until_reached(named.id, 1, Some(Power::On)).await;
    assert!(host.driver().capabilities().features.contains(&Feature::Pause));
}
