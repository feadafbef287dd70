//! What the tests of this crate have in common: images, servers, and what must be left of them.

use std::{path::Path, time::Duration};

use futures_util::StreamExt;
use nephos_cli::client::{Client, Upload};
use nephos_image_build::MicroImage;
use nephos_ops::{
    compute::{CreateServer, DeleteServer, ReadConsoleLog, Server, ShowServer},
    image::{CreateImage, UploadImage},
    workflow::{ShowWorkflow, Workflow, WorkflowState},
};
use nephos_testkit::{LIMIT, until_within};
use nephos_types::{ErrorKind, WorkflowId};
use serde_json::{Value, json};

/// A request out of JSON.
pub(crate) fn request<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// The micro guest, from the user's cache or built into it.
pub(crate) async fn micro() -> MicroImage {
    let built = tokio::task::spawn_blocking(|| nephos_image_build::micro(&Default::default(), |_| {})).await;
    built.unwrap().expect("the micro image is built")
}

/// Uploads an image that has nothing to boot: enough where only the hypervisor's process counts.
pub(crate) async fn blank_image(client: &Client, name: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("blank.raw");
    std::fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
    upload_image(client, name, "raw", &file).await;
}

/// Uploads an image from a file.
pub(crate) async fn upload_image(client: &Client, name: &str, format: &str, file: &Path) {
    let create: CreateImage = serde_json::from_value(json!({ "name": name, "format": format })).unwrap();
    client.call(create).await.unwrap();
    let upload: UploadImage = serde_json::from_value(json!({ "image": name })).unwrap();
    client.call_upload(upload, Upload::file(file).await.unwrap()).await.unwrap();
}

/// The request for a server.
pub(crate) fn create_server(name: &str, image: &str) -> CreateServer {
    serde_json::from_value(json!({ "name": name, "image": image, "flavor": "tiny" })).unwrap()
}

/// Looks at a server.
pub(crate) async fn server(client: &Client, name: &str) -> Option<Server> {
    match client.call(ShowServer { server: name.parse().unwrap() }).await {
        Ok(server) => Some(server),
        Err(error) if error.kind == ErrorKind::NotFound => None,
        Err(error) => panic!("{name}: {error:?}"),
    }
}

/// The end of what a server has written to its console.
pub(crate) async fn console_log(client: &Client, server: &str) -> Option<String> {
    let request = ReadConsoleLog { server: server.parse().unwrap(), bytes: None };
    let mut log = client.download(request).await.ok()?.body;
    let mut text = vec![];
    while let Some(chunk) = log.next().await {
        text.extend_from_slice(&chunk.ok()?);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// Waits until a workflow has ended, and returns it.
pub(crate) async fn ended(client: &Client, workflow: WorkflowId) -> Workflow {
    ended_within(LIMIT, client, workflow).await
}

async fn ended_within(limit: Duration, client: &Client, workflow: WorkflowId) -> Workflow {
    until_within(limit, "the workflow to end", || async move {
        let run = client.call(ShowWorkflow { workflow }).await.ok()?;
        run.state.is_final().then_some(run)
    })
    .await
}

/// Waits until a workflow has ended well.
pub(crate) async fn succeeded(client: &Client, workflow: WorkflowId) {
    succeeded_within(LIMIT, client, workflow).await;
}

/// The same for what a large guest takes its time for.
pub(crate) async fn succeeded_within(limit: Duration, client: &Client, workflow: WorkflowId) {
    let run = ended_within(limit, client, workflow).await;
    assert_eq!(run.state, WorkflowState::Succeeded, "{run:#?}");
}

/// Deletes a server and waits until it is gone.
pub(crate) async fn delete_server(client: &Client, name: &str) {
    let started =
        client.call(DeleteServer { server: name.parse().unwrap(), now: false, keep_hours: None }).await.unwrap();
    succeeded(client, started.workflow).await;
    assert!(server(client, name).await.is_none(), "{name} is gone");
}
