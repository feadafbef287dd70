//! Questions to the inside of a guest.

use nephos_types::ServerId;

use super::{Bench, ok, refused};
use crate::{Answer, Feature, Hidden, Question, StopMode};

pub(super) async fn a_running_guest_can_be_asked(bench: &Bench) {
    let driver = bench.driver().await;
    if !driver.capabilities().features.contains(&Feature::Ask) {
        assert_eq!(refused("ask", driver.ask(ServerId::new(), &Question::Info).await), "unsupported");
        return;
    }
    assert_eq!(refused("ask nobody", driver.ask(ServerId::new(), &Question::Info).await), "guest_not_found");
    let id = bench.started(&driver).await.id;
    if !bench.answers() {
        assert_eq!(refused("ask a deaf one", driver.ask(id, &Question::Info).await), "guest_agent_missing");
        bench.removed(&driver, id).await;
        return;
    }
    bench.until("an answer", || async { driver.ask(id, &Question::Info).await.ok() }).await;
    let execute = |command: &[&str], input: &[u8]| Question::Execute {
        command: command.iter().map(ToString::to_string).collect(),
        environment: [].into(),
        input: input.to_vec(),
        limit_ms: u64::try_from(bench.patience().as_millis()).unwrap_or(u64::MAX),
        max_output: 1 << 20,
    };
    let mut short = execute(&["echo", "0123456789"], b"");
    if let Question::Execute { max_output, .. } = &mut short {
        *max_output = 8;
    }
    match ok("a talkative one", driver.ask(id, &short).await) {
        Answer::Ended { code: Some(0), output, truncated: true, .. } => assert_eq!(output, b"01234567", "cut"),
        other => panic!("echo ended as {other:?}"),
    }
    match ok("a program", driver.ask(id, &execute(&["echo", "a b", "$HOME"], b"")).await) {
        Answer::Ended { code: Some(0), output, .. } => assert_eq!(output, b"a b $HOME\n", "no shell in between"),
        other => panic!("echo ended as {other:?}"),
    }
    match ok("a program that reads", driver.ask(id, &execute(&["cat"], b"from outside")).await) {
        Answer::Ended { code: Some(0), output, .. } => assert_eq!(output, b"from outside"),
        other => panic!("cat ended as {other:?}"),
    }
    let write = |content: &[u8], append| Question::WriteFile {
        path: "/root/asked".to_owned(),
        content: content.to_vec(),
        append,
        mode: Some(0o600),
    };
    let every_byte: Vec<u8> = (0..=255).collect();
    assert_eq!(ok("write", driver.ask(id, &write(&every_byte, false)).await), Answer::Done);
    assert_eq!(ok("append", driver.ask(id, &write(b"more", true)).await), Answer::Done);
    let read = |offset, max| Question::ReadFile { path: "/root/asked".to_owned(), offset, max };
    let whole = [&every_byte[..], b"more"].concat();
    assert_eq!(ok("read", driver.ask(id, &read(0, 1 << 20)).await), Answer::Content { content: whole, end: true });
    let part = Answer::Content { content: b"ABC".to_vec(), end: false };
    assert_eq!(ok("read a part", driver.ask(id, &read(65, 3)).await), part);
    let missing = Question::ReadFile { path: "/root/none".to_owned(), offset: 0, max: 1 };
    assert_eq!(refused("read nothing", driver.ask(id, &missing).await), "guest_file_not_found");
    let password = Question::SetPassword { user: "root".to_owned(), password: Hidden("nephos".to_owned()) };
    assert_eq!(ok("set a password", driver.ask(id, &password).await), Answer::Done);
    let nowhere = Question::ReadFile { path: "relative".to_owned(), offset: 0, max: 1 };
    assert_eq!(refused("a path that is none", driver.ask(id, &nowhere).await), "invalid_question");
    ok("stop", driver.stop(id, StopMode::Hard).await);
    assert_eq!(refused("ask what is off", driver.ask(id, &Question::Info).await), "guest_not_running");
    bench.removed(&driver, id).await;
}
