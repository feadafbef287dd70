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
    // What is shown is in the log soon after, or before.
    bench
        .until("the log to hold what appeared", || async {
            let log = ok("console log", driver.console_log(id, 64 << 10).await);
            let text = String::from_utf8_lossy(&log);
            let whole = text.contains("login: ") && text.contains("the-answer-is-42");
            // The end, not the start; more may have come meanwhile.
            let end = ok("the log's end", driver.console_log(id, 7).await);
            (whole && log.ends_with(&end) && end.len() == 7).then_some(())
        })
        .await;
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
