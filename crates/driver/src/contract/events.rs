//! What guests do by themselves.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt};
use nephos_types::ServerId;

use super::{
    Bench, observed, ok,
    terminal::{Terminal, log_count},
};
use crate::{ComputeDriver, GuestEvent, Power};

type Events = Pin<Box<dyn Stream<Item = GuestEvent> + Send>>;

/// The next event about this guest.
async fn next(bench: &Bench, events: &mut Events, id: ServerId) -> GuestEvent {
    let waiting = async {
        loop {
            match events.next().await {
                Some(
                    event
                    @ (GuestEvent::ShutDown(about) | GuestEvent::Restarted(about) | GuestEvent::Crashed(about, _)),
                ) if about == id => return event,
                Some(_) => {}
                None => panic!("the events ended"),
            }
        }
    };
    bench.within("an event", waiting).await
}

pub(super) async fn a_guest_that_shuts_down_is_reported(bench: &Bench) {
    let driver = bench.driver().await;
    let mut events = driver.events();
    let id = bench.started(&driver).await.id;
    let mut terminal = Terminal::logged_in(bench, &driver, id).await;
    terminal.enter(&bench.power_off_command()).await;
    assert_eq!(next(bench, &mut events, id).await, GuestEvent::ShutDown(id));
    terminal.wait_for_end().await;
    let ended = observed(&driver, id).await;
    assert_eq!((ended.power, ended.ended.as_deref()), (Power::Off, Some("shutdown")));
    ok("start again", driver.start(id).await);
    let again = observed(&driver, id).await;
    assert_eq!((again.power, again.ended), (Power::On, None), "a new run, a new page");
    bench.removed(&driver, id).await;
}

pub(super) async fn a_guest_that_restarts_is_reported(bench: &Bench) {
    let driver = bench.driver().await;
    let mut events = driver.events();
    let id = bench.started(&driver).await.id;
    let mut terminal = Terminal::logged_in(bench, &driver, id).await;
    let before = log_count(&driver, id, "login: ").await;
    terminal.enter(&bench.reboot_command()).await;
    assert_eq!(next(bench, &mut events, id).await, GuestEvent::Restarted(id));
    assert_eq!(observed(&driver, id).await.power, Power::On);
    bench
        .until("another login prompt", || async { (log_count(&driver, id, "login: ").await > before).then_some(()) })
        .await;
    bench.removed(&driver, id).await;
}

async fn crashed(driver: &Arc<dyn ComputeDriver>, id: ServerId) -> Option<()> {
    let observation = observed(driver, id).await;
    (observation.power == Power::Off).then(|| {
        let ended = observation.ended.unwrap_or_default();
        assert!(ended.starts_with("crashed: ") && ended.len() > "crashed: ".len(), "how it ended: {ended:?}");
    })
}

/// Kills a running guest and starts it again.
async fn crash_and_recover(bench: &Bench, driver: &Arc<dyn ComputeDriver>, id: ServerId) {
    let mut events = driver.events();
    bench.kill(id, &observed(driver, id).await);
    match next(bench, &mut events, id).await {
        GuestEvent::Crashed(_, why) => assert!(!why.is_empty(), "why"),
        other => panic!("a crash was reported as {other:?}"),
    }
    assert_eq!(crashed(driver, id).await, Some(()), "seen as soon as it is reported");
    ok("start again", driver.start(id).await);
    let again = observed(driver, id).await;
    assert_eq!((again.power, again.ended), (Power::On, None));
}

pub(super) async fn a_crash_is_reported_and_can_be_recovered_from(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    crash_and_recover(bench, &driver, id).await;
    drop(driver);
    // The same of a guest that another instance has started.
    let driver = bench.driver().await;
    crash_and_recover(bench, &driver, id).await;
    bench.removed(&driver, id).await;
}

pub(super) async fn a_crash_without_anybody_looking_is_found_out(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    let running = observed(&driver, id).await;
    drop(driver);
    bench.kill(id, &running);
    let driver = bench.driver().await;
    bench.until("the crash", || crashed(&driver, id)).await;
    ok("start again", driver.start(id).await);
    assert_eq!(observed(&driver, id).await.power, Power::On);
    bench.removed(&driver, id).await;
}
