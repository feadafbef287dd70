//! Faults come when ordered, and only then.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use nephos_driver::{
    Boot, ComputeDriver, Disk, Firmware, GuestEvent, GuestSpec, Power, Presence, StopMode,
    simulated::{Behaviour, Effect, Rule, SimulatedHost, Verb},
};
use nephos_types::{Bytes, Error, ErrorKind, ServerId};
use tokio::time::{Instant, timeout};

fn spec() -> GuestSpec {
    GuestSpec {
        id: ServerId::new(),
        name: "web".into(),
        vcpus: 1,
        memory: Bytes::mib(128),
        disk: Disk { base: None, size: Bytes::mib(64), incarnation: 0 },
        firmware: Firmware::Bios,
        boot: Boot::Disk,
        rescue: None,
        interfaces: vec![],
        config_drive: vec![],
    }
}

async fn power(driver: &impl ComputeDriver, id: ServerId) -> Power {
    match driver.observe(id).await {
        Presence::Present(observation) => observation.power,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_second_start_fails_and_changes_nothing() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let (one, two) = (spec(), spec());
    host.order(Rule::nth(Verb::Start, 2, Effect::Fail(Error::new(ErrorKind::Unavailable, "ordered", "As ordered"))));
    for spec in [&one, &two] {
        driver.define(spec).await.unwrap();
    }
    driver.start(one.id).await.unwrap();
    assert_eq!(driver.start(two.id).await.unwrap_err().code, "ordered");
    assert_eq!(power(&driver, two.id).await, Power::Off);
    driver.start(two.id).await.unwrap();
    assert_eq!(host.calls(Verb::Start), 3);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_call_can_be_given_up_and_repeated() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let (spec, other) = (spec(), spec());
    host.order(Rule::first(Verb::Define, 1, Effect::Hang).on(spec.id));
    driver.define(&other).await.unwrap();
    assert!(timeout(Duration::from_secs(3600), driver.define(&spec)).await.is_err());
    assert_eq!(driver.observe(spec.id).await, Presence::Gone);
    driver.define(&spec).await.unwrap();
    assert_eq!(power(&driver, spec.id).await, Power::Off);
}

#[tokio::test(start_paused = true)]
async fn a_guest_crashes_at_the_ordered_time() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let spec = spec();
    driver.define(&spec).await.unwrap();
    let mut events = driver.events();
    host.order(Rule::nth(Verb::Start, 1, Effect::CrashAfter(Duration::from_secs(100))));
    let started = Instant::now();
    driver.start(spec.id).await.unwrap();
    assert!(matches!(events.next().await, Some(GuestEvent::Crashed(id, _)) if id == spec.id));
    assert_eq!(started.elapsed().as_secs(), 100);
    // The order was for the first start only, and an order for a run that has ended is void.
    driver.start(spec.id).await.unwrap();
    assert!(timeout(Duration::from_secs(1000), events.next()).await.is_err());
    assert_eq!(power(&driver, spec.id).await, Power::On);
}

#[tokio::test(start_paused = true)]
async fn a_deaf_guest_takes_the_whole_grace() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let spec = spec();
    driver.define(&spec).await.unwrap();
    host.order(Rule::every(Verb::Stop, Effect::IgnorePowerButton));
    driver.start(spec.id).await.unwrap();
    let asked = Instant::now();
    driver.stop(spec.id, StopMode::Soft(Duration::from_secs(30))).await.unwrap();
    assert_eq!((asked.elapsed().as_secs(), power(&driver, spec.id).await), (30, Power::Off));
    driver.start(spec.id).await.unwrap();
    let asked = Instant::now();
    driver.stop(spec.id, StopMode::Hard).await.unwrap();
    assert_eq!(asked.elapsed().as_secs(), 0);
}

#[tokio::test]
async fn presence_can_be_unknown_for_a_while() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let spec = spec();
    driver.define(&spec).await.unwrap();
    host.order(Rule::every(Verb::Observe, Effect::Unknown("no answer".into())));
    assert_eq!(driver.observe(spec.id).await, Presence::Unknown { reason: "no answer".into() });
    host.forget_orders();
    assert_eq!(power(&driver, spec.id).await, Power::Off);
}

#[tokio::test]
async fn a_power_loss_ends_all_guests_in_silence() {
    let host = SimulatedHost::new(0);
    let driver = host.driver();
    let spec = spec();
    driver.define(&spec).await.unwrap();
    driver.start(spec.id).await.unwrap();
    host.lose_power();
    let Presence::Present(observation) = host.driver().observe(spec.id).await else { panic!("it exists") };
    assert_eq!((observation.power, observation.ended.unwrap()), (Power::Off, "crashed: the machine restarted".into()));
}

/// What chance makes of a hundred calls.
async fn outcomes(seed: u64) -> (Vec<bool>, Duration) {
    let host = SimulatedHost::new(seed);
    host.behave(
        Verb::Define,
        Behaviour { latency: Duration::ZERO, jitter: Duration::from_secs(1), failures_per_million: 300_000 },
    );
    let (driver, started) = (host.driver(), Instant::now());
    let mut succeeded = vec![];
    for _ in 0..100 {
        succeeded.push(driver.define(&spec()).await.is_ok());
    }
    (succeeded, started.elapsed())
}

#[tokio::test(start_paused = true)]
async fn chance_follows_the_seed() {
    let (first, again, other) = (outcomes(7).await, outcomes(7).await, outcomes(8).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
    let failures = first.0.iter().filter(|succeeded| !**succeeded).count();
    assert!((15..=45).contains(&failures), "about three in ten fail: {failures}");
    assert!((30..=70).contains(&first.1.as_secs()), "half a second each on average: {:?}", first.1);
}

#[tokio::test]
async fn ten_thousand_hosts_with_ten_guests_each() {
    let hosts: Vec<SimulatedHost> = (0..10_000).map(SimulatedHost::new).collect();
    let drivers: Vec<Arc<dyn ComputeDriver>> =
        hosts.iter().map(|host| Arc::new(host.driver()) as Arc<dyn ComputeDriver>).collect();
    for driver in &drivers {
        for _ in 0..10 {
            let spec = spec();
            driver.define(&spec).await.unwrap();
            driver.start(spec.id).await.unwrap();
        }
    }
    for driver in &drivers {
        assert_eq!(driver.list().await.unwrap().len(), 10);
    }
}
