//! What a confined program can reach, tried by one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use nephos_sandbox::{Given, Limits, Output, Sandbox};
use nephos_types::{Bytes, ErrorKind, Result};

const LIMITS: Limits =
    Limits { cpu_seconds: 20, memory: Bytes::mib(512), file_size: Bytes::mib(1), time: Duration::from_secs(60) };

async fn shell(script: &str, files: &[Given<'_>], limits: Limits) -> Result<Output> {
    let arguments = ["-c".to_owned(), script.to_owned()];
    Sandbox { program: "sh", arguments: &arguments, files, limits }.run().await
}

/// Runs a script of Perl's. (With `-e` it would need `/dev/null`.)
async fn perl(script: &str, limits: Limits) -> Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), script).unwrap();
    let files = [Given { name: "script", path: file.path(), writable: false }];
    let arguments = ["/script".to_owned()];
    Sandbox { program: "perl", arguments: &arguments, files: &files, limits }.run().await.unwrap()
}

async fn printed(script: &str) -> String {
    let output = shell(script, &[], LIMITS).await.unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn the_machine_is_not_there() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "a secret").unwrap();
    fs::set_permissions(secret.path(), fs::Permissions::from_mode(0o644)).unwrap();
    let read = format!("cat {} /etc/passwd /etc/shadow /proc/1/environ /dev/sda", secret.path().display());
    let output = shell(&read, &[], LIMITS).await.unwrap();
    assert!(!output.success && output.stdout.is_empty(), "{output:?}");
    assert_eq!(output.stderr.matches("No such file or directory").count(), 5, "{}", output.stderr);
    let shown = printed("cd / && echo *").await;
    for folder in ["home", "root", "proc", "sys", "dev", "tmp", "var", "run"] {
        assert!(!shown.split(' ').any(|name| name == folder), "{shown}");
    }
    // Nothing of it is left outside.
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains("nephos-sandbox-"), "{mounts}");
}

#[tokio::test]
async fn it_runs_as_nobody_else_and_writes_nowhere() {
    if rustix::process::geteuid().is_root() {
        assert_ne!(printed("id -u").await, "0");
        assert_eq!(printed("id -G").await.split(' ').count(), 1);
    }
    let output = shell("echo x > /x; echo x > /usr/x; echo x > /etc/x; mkdir /y", &[], LIMITS).await.unwrap();
    assert!(!output.success, "{output:?}");
    assert!(!Path::new("/usr/x").exists());
    assert_eq!(printed("mount -t tmpfs none /etc 2>/dev/null && echo mounted").await, "");
}

#[tokio::test]
async fn there_is_no_network() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "use Socket; socket(S, PF_INET, SOCK_STREAM, 0) or exit 3; \
         exit(connect(S, sockaddr_in({port}, inet_aton('127.0.0.1'))) ? 0 : 7)"
    );
    let output = perl(&script, LIMITS).await;
    assert!(output.ended.contains('7'), "{output:?}");
}

#[tokio::test]
async fn what_is_given_is_there_and_no_more_than_that() {
    let folder = tempfile::tempdir().unwrap();
    let [input, output] = ["input", "output"].map(|name| folder.path().join(name));
    fs::write(&input, "what is given").unwrap();
    fs::write(&output, "").unwrap();
    let files =
        [Given { name: "from", path: &input, writable: false }, Given { name: "to", path: &output, writable: true }];
    let done = shell("cat /from > /to", &files, LIMITS).await.unwrap();
    assert!(done.success, "{done:?}");
    assert_eq!(fs::read_to_string(&output).unwrap(), "what is given");
    assert!(!shell("echo changed > /from", &files, LIMITS).await.unwrap().success);
    assert_eq!(fs::read_to_string(&input).unwrap(), "what is given");
    // 4 MiB where 1 MiB is allowed.
    let done = shell(
        "dd if=/usr/bin/perl of=/to bs=1M count=4 conv=notrunc; dd if=/usr/bin/perl of=/to bs=1M count=4 seek=1",
        &files,
        LIMITS,
    )
    .await
    .unwrap();
    assert!(!done.success, "{done:?}");
    assert!(fs::metadata(&output).unwrap().len() <= 1 << 20);
}

#[tokio::test]
async fn bounds_end_it() {
    let error = shell("sleep 1000", &[], Limits { time: Duration::from_millis(200), ..LIMITS }).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Timeout);
    let done = shell("while :; do :; done", &[], Limits { cpu_seconds: 1, ..LIMITS }).await.unwrap();
    assert!(!done.success && done.ended.contains("signal"), "{done:?}");
    let fill = "$x = 'x' x (400 << 20); print length $x";
    assert!(!perl(fill, Limits { memory: Bytes::mib(64), ..LIMITS }).await.success);
    assert!(perl(fill, Limits { memory: Bytes::mib(2048), ..LIMITS }).await.success);
    let done = shell("cat /usr/bin/perl /usr/bin/perl", &[], LIMITS).await.unwrap();
    assert!(done.success && done.stdout.len() == 64 << 10, "{}", done.stdout.len());
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let missing = Sandbox { program: "no-such-program", arguments: &[], files: &[], limits: LIMITS };
    let error = missing.run().await.unwrap_err();
    assert!(error.kind == ErrorKind::Unsupported && error.title.contains("no-such-program"), "{error:?}");
}
