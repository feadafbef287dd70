//! The serial console and its log.

use super::{Bench, ok, terminal::Terminal};

pub(super) async fn a_guest_can_be_logged_in_to(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    let mut terminal = Terminal::logged_in(bench, &driver, id).await;
    terminal.enter("uname -a").await;
    terminal.wait_for("Linux ").await;
    terminal.enter("echo the-\"answer\"-is-42").await;
    terminal.wait_for("the-answer-is-42").await;
    let log = ok("console log", driver.console_log(id, 64 << 10).await);
    let text = String::from_utf8_lossy(&log).into_owned();
    assert!(text.contains("login: ") && text.contains("the-answer-is-42"), "the log holds what appeared: {text:?}");
    assert_eq!(ok("the log's end", driver.console_log(id, 7).await), log[log.len() - 7..], "the end, not the start");
    assert_eq!(ok("nothing", driver.console_log(id, 0).await), Vec::<u8>::new());
    // A console that was closed can be opened again, and the guest did not mind.
    drop(terminal);
    let mut terminal = Terminal::open(bench, &driver, id).await;
    terminal.enter("echo still-\"here\"").await;
    terminal.wait_for("still-here").await;
    // The log outlives the guest's run.
    ok("stop", driver.stop(id, crate::StopMode::Hard).await);
    terminal.wait_for_end().await;
    let log = ok("console log", driver.console_log(id, 64 << 10).await);
    assert!(String::from_utf8_lossy(&log).contains("still-here"), "the log stays when the guest has ended");
    bench.removed(&driver, id).await;
}

pub(super) async fn several_consoles_share_the_line(bench: &Bench) {
    let driver = bench.driver().await;
    let id = bench.started(&driver).await.id;
    let mut one = Terminal::logged_in(bench, &driver, id).await;
    let mut two = Terminal::open(bench, &driver, id).await;
    one.enter("echo from-\"one\"").await;
    one.wait_for("from-one").await;
    two.wait_for("from-one").await;
    two.enter("echo from-\"two\"").await;
    one.wait_for("from-two").await;
    two.wait_for("from-two").await;
    // One that is never read from holds nobody up.
    let idle = Terminal::open(bench, &driver, id).await;
    drop(two);
    one.enter("echo after-\"two\"").await;
    one.wait_for("after-two").await;
    drop(idle);
    bench.removed(&driver, id).await;
    one.wait_for_end().await;
}
