//! XML-RPC as scripts use it: Python's own client against a whole cloud.

use std::process::Command;

use nephos_testkit::PASSWORD;

use crate::{bad_input::simulated, help::blank_image};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn python_scripts_can_use_the_cloud() {
    let cloud = simulated().await;
    blank_image(&cloud.demo().await, "blank").await;
    let script = crate::beside("xml_rpc.py");
    let mut command = Command::new("/usr/bin/python3");
    command.args([&script, &cloud.url(), PASSWORD]);
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complained}");
    assert_eq!(said.trim(), "ok");
}
