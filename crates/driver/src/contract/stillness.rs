//! Pause and suspend: a guest that does nothing and forgets nothing.

use nephos_types::ServerId;

use super::{Bench, observed, ok, power, refused, terminal::Terminal};
use crate::{Feature, GuestSpec, Power, StopMode};

pub(super) async fn a_paused_guest_stands_still_and_goes_on(bench: &Bench) {
    let driver = bench.driver().await;
    if !driver.capabilities().features.contains(&Feature::Pause) {
        assert_eq!(refused("pause", driver.pause(ServerId::new()).await), "unsupported");
        return;
    }
    assert_eq!(refused("pause nothing", driver.pause(ServerId::new()).await), "guest_not_found");
    let spec = bench.spec();
    let id = spec.id;
    ok("define", driver.define(&spec).await);
    assert_eq!(refused("pause what is off", driver.pause(id).await), "guest_not_running");
    ok("start", driver.start(id).await);
    let mut terminal = Terminal::logged_in(bench, &driver, id).await;
    for _ in 0..2 {
        ok("pause", driver.pause(id).await);
        assert_eq!(power(&driver, id).await, Power::Paused);
    }
    let before = ok("console log", driver.console_log(id, 64 << 10).await);
    terminal.enter("echo paused-\"and\"-back").await;
    drop(driver);
    // A new instance finds it as it is, and defining it does not wake it.
    let driver = bench.driver().await;
    ok("define", driver.define(&spec).await);
    assert_eq!(power(&driver, id).await, Power::Paused, "adopted as it is");
    assert_eq!(ok("console log", driver.console_log(id, 64 << 10).await), before, "it does nothing");
    ok("start", driver.start(id).await);
    assert_eq!(power(&driver, id).await, Power::On);
    bench.until("what was typed meanwhile", || super::terminal::log_shows(&driver, id, "paused-and-back")).await;
    ok("pause", driver.pause(id).await);
    ok("stop", driver.stop(id, StopMode::Hard).await);
    assert_eq!(power(&driver, id).await, Power::Off);
    ok("start", driver.start(id).await);
    ok("pause", driver.pause(id).await);
    bench.removed(&driver, id).await;
}

pub(super) async fn a_suspended_guest_goes_on_from_where_it_was(bench: &Bench) {
    let driver = bench.driver().await;
    if !driver.capabilities().features.contains(&Feature::Suspend) {
        assert_eq!(refused("suspend", driver.suspend(ServerId::new()).await), "unsupported");
        return;
    }
    assert_eq!(refused("suspend nothing", driver.suspend(ServerId::new()).await), "guest_not_found");
    let spec = bench.spec();
    let id = spec.id;
    ok("define", driver.define(&spec).await);
    assert_eq!(refused("suspend what is off", driver.suspend(id).await), "guest_not_running");
    ok("start", driver.start(id).await);
    let terminal = Terminal::logged_in(bench, &driver, id).await;
    for _ in 0..2 {
        ok("suspend", bench.within("suspend", driver.suspend(id)).await);
        let suspended = observed(&driver, id).await;
        assert_eq!((suspended.power, suspended.ended, suspended.pid), (Power::Suspended, None, None));
    }
    terminal.wait_for_end().await;
    assert_eq!(refused("console", driver.console(id).await), "guest_not_running");
    drop(driver);
    let driver = bench.driver().await;
    assert_eq!(power(&driver, id).await, Power::Suspended, "it is found as it was left");
    ok("define otherwise", driver.define(&GuestSpec { vcpus: 2, ..spec.clone() }).await);
    ok("start", bench.within("start", driver.start(id)).await);
    assert_eq!(power(&driver, id).await, Power::On);
    // Still logged in, on the machine that it was.
    let mut terminal = Terminal::open(bench, &driver, id).await;
    terminal.enter("nproc").await;
    terminal.wait_for("1\r\n").await;
    ok(
        "pause and suspend",
        async {
            if driver.capabilities().features.contains(&Feature::Pause) {
                driver.pause(id).await?;
            }
            driver.suspend(id).await
        }
        .await,
    );
    assert_eq!(power(&driver, id).await, Power::Suspended);
    ok("stop", driver.stop(id, StopMode::Hard).await);
    assert_eq!(power(&driver, id).await, Power::Off, "its memory is gone");
    ok("start", driver.start(id).await);
    let mut terminal = Terminal::logged_in(bench, &driver, id).await;
    terminal.enter("nproc").await;
    terminal.wait_for("2\r\n").await;
    ok("suspend", driver.suspend(id).await);
    bench.removed(&driver, id).await;
}
