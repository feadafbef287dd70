//! Define, start, stop, reboot, remove: idempotent, complete, independent of each other.

use std::time::Duration;

use futures_util::future::join_all;
use nephos_types::{Bytes, ServerId};

use super::{
    Bench, observed, ok, power, refused,
    terminal::{Terminal, log_count, log_shows},
};
use crate::{Power, Presence, StopMode};

pub(super) async fn each_call_may_be_repeated(bench: &Bench) {
    let driver = bench.driver().await;
    let spec = bench.spec();
    let id = spec.id;
    assert_eq!(driver.observe(id).await, Presence::Gone, "before it is defined");
    for _ in 0..2 {
        ok("define", driver.define(&spec).await);
        let defined = observed(&driver, id).await;
        assert_eq!((defined.power, defined.ended), (Power::Off, None), "defined, not started");
        assert!(ok("list", driver.list().await).contains(&id));
    }
    let mut since = None;
    for _ in 0..2 {
        ok("start", driver.start(id).await);
        let running = observed(&driver, id).await;
        assert_eq!(running.power, Power::On);
        assert_eq!(*since.get_or_insert(running.since), running.since, "a second start leaves the guest alone");
    }
    ok("define a running guest", driver.define(&spec).await);
    assert_eq!(observed(&driver, id).await.since, since.unwrap_or_default(), "a definition leaves the guest running");
    for _ in 0..2 {
        ok("stop", driver.stop(id, StopMode::Hard).await);
        let stopped = observed(&driver, id).await;
        assert_eq!((stopped.power, stopped.ended, stopped.pid), (Power::Off, None, None), "stopped as asked");
    }
    ok("start again", driver.start(id).await);
    assert_eq!(power(&driver, id).await, Power::On);
    for _ in 0..2 {
        bench.removed(&driver, id).await;
    }
    // An id may come back, e.g. when a workflow is undone and done again.
    ok("define after remove", driver.define(&spec).await);
    assert_eq!(power(&driver, id).await, Power::Off);
    bench.removed(&driver, id).await;
}

pub(super) async fn what_does_not_exist_is_refused_or_already_so(bench: &Bench) {
    let driver = bench.driver().await;
    let id = ServerId::new();
    for _ in 0..2 {
        ok("stop", driver.stop(id, StopMode::Hard).await);
        ok("soft stop", driver.stop(id, StopMode::Soft(Duration::from_millis(1))).await);
        bench.removed(&driver, id).await;
    }
    assert_eq!(refused("start", driver.start(id).await), "guest_not_found");
    assert_eq!(refused("reboot", driver.reboot(id, StopMode::Hard).await), "guest_not_found");
    assert_eq!(refused("console", driver.console(id).await), "guest_not_found");
    assert_eq!(refused("console log", driver.console_log(id, 10).await), "guest_not_found");
    assert_eq!(refused("usage", driver.usage(id).await), "guest_not_found");
    assert_eq!(driver.observe(id).await, Presence::Gone);
}

pub(super) async fn what_does_not_run_is_refused_or_already_so(bench: &Bench) {
    let driver = bench.driver().await;
    let spec = bench.spec();
    let id = spec.id;
    ok("define", driver.define(&spec).await);
    assert_eq!(refused("reboot", driver.reboot(id, StopMode::Hard).await), "guest_not_running");
    assert_eq!(refused("console", driver.console(id).await), "guest_not_running");
    assert_eq!(ok("console log", driver.console_log(id, 10).await), Vec::<u8>::new(), "nothing was written yet");
    let usage = ok("usage", driver.usage(id).await);
    assert_eq!((usage.cpu, usage.memory), (Duration::ZERO, Bytes(0)), "nothing was used yet");
    ok("stop", driver.stop(id, StopMode::Soft(Duration::from_secs(1))).await);
    bench.removed(&driver, id).await;
}

pub(super) async fn guests_do_not_disturb_each_other(bench: &Bench) {
    let driver = bench.driver().await;
    let specs: Vec<_> = (0..4).map(|_| bench.spec()).collect();
    let lives = specs.iter().map(|spec| async {
        ok("define", driver.define(spec).await);
        ok("start", driver.start(spec.id).await);
        assert_eq!(power(&driver, spec.id).await, Power::On);
        ok("stop", driver.stop(spec.id, StopMode::Hard).await);
        assert_eq!(power(&driver, spec.id).await, Power::Off);
        ok("start again", driver.start(spec.id).await);
    });
    bench.within("four guests at once", join_all(lives)).await;
    let listed = ok("list", driver.list().await);
    assert!(specs.iter().all(|spec| listed.contains(&spec.id)), "all guests are listed");
    // One ends; the others do not notice.
    let (first, others) = specs.split_first().unwrap_or_else(|| unreachable!("there are four"));
    bench.removed(&driver, first.id).await;
    for other in others {
        assert_eq!(power(&driver, other.id).await, Power::On);
    }
    bench.within("removing", join_all(others.iter().map(|other| bench.removed(&driver, other.id)))).await;
}

pub(super) async fn a_new_instance_adopts_running_guests(bench: &Bench) {
    let driver = bench.driver().await;
    let running = bench.started(&driver).await;
    let off = bench.spec();
    ok("define", driver.define(&off).await);
    let before = (observed(&driver, running.id).await, observed(&driver, off.id).await);
    drop(driver);

    let driver = bench.driver().await;
    let listed = ok("list", driver.list().await);
    assert!(listed.contains(&running.id) && listed.contains(&off.id), "guests outlive the instance that made them");
    assert_eq!((observed(&driver, running.id).await, observed(&driver, off.id).await), before, "untouched");
    ok("start", driver.start(running.id).await);
    assert_eq!(observed(&driver, running.id).await, before.0, "an adopted guest is not started a second time");
    ok("start a defined one", driver.start(off.id).await);
    // What was adopted is in the new instance's hands.
    let _terminal = Terminal::logged_in(bench, &driver, running.id).await;
    ok("stop an adopted guest", driver.stop(running.id, StopMode::Hard).await);
    assert_eq!(power(&driver, running.id).await, Power::Off);
    bench.removed(&driver, running.id).await;
    bench.removed(&driver, off.id).await;
}

pub(super) async fn usage_grows(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    let first = bench
        .until("usage", || async {
            let usage = ok("usage", driver.usage(id).await);
            (usage.memory > Bytes(0)).then_some(usage)
        })
        .await;
    bench
        .until("more CPU time", || async { (ok("usage", driver.usage(id).await).cpu > first.cpu).then_some(()) })
        .await;
    ok("stop", driver.stop(id, StopMode::Hard).await);
    assert_eq!(ok("usage", driver.usage(id).await).memory, Bytes(0), "what does not run uses nothing");
    bench.removed(&driver, id).await;
}

pub(super) async fn a_soft_stop_ends_in_good_order_or_by_force(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    // So early nobody in the guest listens to the button yet: the power is cut.
    ok("soft stop while booting", driver.stop(id, StopMode::Soft(Duration::from_millis(1))).await);
    assert_eq!(power(&driver, id).await, Power::Off);
    ok("start", driver.start(id).await);
    let terminal = Terminal::logged_in(bench, &driver, id).await;
    let stopping = driver.stop(id, StopMode::Soft(bench.patience()));
    ok("soft stop", bench.within("soft stop", stopping).await);
    terminal.wait_for_end().await;
    let stopped = observed(&driver, id).await;
    assert_eq!((stopped.power, stopped.ended), (Power::Off, None), "asked for, so it did not end by itself");
    bench.removed(&driver, id).await;
}

pub(super) async fn a_reboot_starts_the_guest_again(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    for mode in [StopMode::Hard, StopMode::Soft(bench.patience())] {
        bench.until("login prompt", || log_shows(&driver, id, "login: ")).await;
        let before = log_count(&driver, id, "login: ").await;
        ok("reboot", bench.within("reboot", driver.reboot(id, mode)).await);
        assert_eq!(power(&driver, id).await, Power::On);
        bench
            .until("another login prompt", || async {
                (log_count(&driver, id, "login: ").await > before).then_some(())
            })
            .await;
    }
    assert_eq!(observed(&driver, id).await.ended, None);
    bench.removed(&driver, id).await;
}
