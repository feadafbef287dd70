//! A backup of a cloud in use becomes a cloud again, or nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::StreamExt;
use nephos_cli::client::Client;
use nephos_ops::{
    compute::{ListServers, ServerState},
    identity::{CreateApplicationCredential, CreateProject, CreateToken, CreateUser, ListProjects, ListUsers},
    image::{DownloadImage, ListImages},
    node::ListNodes,
};
use nephos_testkit::{CloudProcess, Settings, until};
use serde_json::json;

use crate::{
    NEPHOS,
    help::{create_server, delete_server, request, server, succeeded, upload_image},
};

/// What must be the same in the restored cloud.
#[derive(Debug, PartialEq)]
struct State {
    projects: Vec<String>,
    users: Vec<String>,
    images: Vec<String>,
    nodes: Vec<String>,
    servers: Vec<String>,
}

async fn state(cloud: &CloudProcess) -> State {
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);
    // Those named `meanwhile` are being made while the backup is.
    let sorted = |names: Vec<(String, String)>| {
        let mut names: Vec<String> = names
            .into_iter()
            .filter(|(name, _)| !name.starts_with("meanwhile"))
            .map(|(name, id)| format!("{name} {id}"))
            .collect();
        names.sort();
        names
    };
    let projects = admin.call(ListProjects::default()).await.unwrap().items;
    let users = admin.call(ListUsers::default()).await.unwrap().items;
    let images = demo.call(ListImages::default()).await.unwrap().items;
    let nodes = admin.call(ListNodes::default()).await.unwrap().items;
    let servers = demo.call(ListServers::default()).await.unwrap().items;
    State {
        projects: sorted(projects.iter().map(|it| (it.name.to_string(), it.id.to_string())).collect()),
        users: sorted(users.iter().map(|it| (it.name.to_string(), it.id.to_string())).collect()),
        images: sorted(images.iter().map(|it| (it.name.to_string(), format!("{} {:?}", it.id, it.sha256))).collect()),
        nodes: sorted(nodes.iter().map(|it| (it.name.to_string(), it.id.to_string())).collect()),
        servers: sorted(servers.iter().map(|it| (it.name.to_string(), format!("{} {:?}", it.id, it.node))).collect()),
    }
}

async fn bytes_of(client: &Client, image: &str) -> Vec<u8> {
    let mut body = client.download(request::<DownloadImage>(json!({ "image": image }))).await.unwrap().body;
    let mut bytes = vec![];
    while let Some(chunk) = body.next().await {
        bytes.extend_from_slice(&chunk.unwrap());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_cloud_in_use_becomes_the_same_cloud() {
    let settings = Settings { simulated_nodes: 2, ..Settings::default() };
    let mut cloud = CloudProcess::start(NEPHOS, settings.clone()).await;
    let (admin, demo) = (cloud.admin().await, cloud.demo().await);

    // Users, credentials, images with holes and without, servers.
    admin.call(request::<CreateProject>(json!({ "name": "research" }))).await.unwrap();
    let ada = json!({ "name": "ada", "password": "analytical engine no. 1" });
    admin.call(request::<CreateUser>(ada)).await.unwrap();
    let assignment = json!({ "role": "member", "user": "ada", "project": "research" });
    admin.call(request::<nephos_ops::identity::CreateAssignment>(assignment)).await.unwrap();
    let ada = cloud.client("ada", "analytical engine no. 1", Some("research")).await.unwrap();
    let credential = ada.call(request::<CreateApplicationCredential>(json!({ "name": "ci" }))).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("image.raw");
    fs::File::create(&file).unwrap().set_len(3 << 20).unwrap();
    upload_image(&demo, "hollow", "raw", &file).await;
    let pattern: Vec<u8> =
        (0..2_000_000u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&file, &pattern).unwrap();
    upload_image(&demo, "full", "raw", &file).await;
    for name in ["one", "two", "three"] {
        succeeded(&demo, demo.call(create_server(name, "hollow")).await.unwrap().workflow).await;
    }
    let configuration = "# what this cloud is told\nlog = \"info\"\n";
    fs::write(cloud.data().join("nephos.toml"), configuration).unwrap();
    fs::set_permissions(cloud.data().join("nephos.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = state(&cloud).await;
    assert_eq!((before.images.len(), before.servers.len(), before.nodes.len()), (2, 3, 2));

    // The backup is made while others go on writing.
    let done = AtomicBool::new(false);
    let backup = folder.path().join("backup.tar");
    let writing = async {
        let mut count = 0;
        while !done.load(Ordering::Acquire) {
            let name = format!("meanwhile-{count}");
            admin.call(request::<CreateProject>(json!({ "name": name }))).await.unwrap();
            upload_image(&demo, &name, "raw", &file).await;
            demo.call(request::<nephos_ops::image::DeleteImage>(json!({ "image": name }))).await.unwrap();
            count += 1;
        }
        count
    };
    let backing_up = async {
        let mut command = cloud.command(&["system", "backup", "--file"]);
        command.arg(&backup);
        let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        done.store(true, Ordering::Release);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let (written, ()) = tokio::join!(writing, backing_up);
    assert!(written > 0);
    // Made after the backup, so not in it.
    admin.call(request::<CreateProject>(json!({ "name": "too-late" }))).await.unwrap();
    assert!(cloud.stop().await.success());

    // It is the same cloud.
    let mut restored = CloudProcess::restored(NEPHOS, settings, &backup).unwrap();
    let file = restored.data().join("nephos.toml");
    assert_eq!(fs::read_to_string(&file).unwrap(), configuration);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "nobody else reads it here either");
    restored.start_again().await;
    let after = state(&restored).await;
    assert_eq!(after, before);
    restored.client("ada", "analytical engine no. 1", Some("research")).await.unwrap();
    let login = json!({ "application_credential": credential.credential.id, "secret": credential.secret.reveal() });
    let token = restored.anonymous().call(request::<CreateToken>(login)).await.unwrap();
    let ci = restored.anonymous().with_token(Some(token.token.reveal().to_owned())).unwrap();
    assert_eq!(ci.call(ListServers::default()).await.unwrap().items.len(), 0);
    let demo = restored.demo().await;
    assert!(bytes_of(&demo, "full").await == pattern, "the image has the same bytes");
    assert!(bytes_of(&demo, "hollow").await.iter().all(|byte| *byte == 0), "the image has the same bytes");
    assert!(restored.nephos(&["server", "list"]).contains("three"));
    // Images that went while the backup was made are whole or gone, and are not listed without bytes.
    for image in demo.call(ListImages::default()).await.unwrap().items {
        if image.name.as_str().starts_with("meanwhile") && image.size.is_some() {
            assert!(bytes_of(&demo, &image.id.to_string()).await == pattern, "{image:#?}");
        }
    }

    // And it works: guests are not in the backup, the node makes them anew.
    until("the servers to be active", || async {
        (server(&demo, "one").await?.state == ServerState::Active).then_some(())
    })
    .await;
    succeeded(&demo, demo.call(create_server("four", "full")).await.unwrap().workflow).await;
    for name in ["one", "two", "three", "four"] {
        delete_server(&demo, name).await;
    }
    assert!(restored.stop().await.success());

    // A backup that is not whole becomes nothing.
    let whole = fs::read(&backup).unwrap();
    let half = folder.path().join("half.tar");
    let mut changed = whole.clone();
    let database = &mut changed[512 + 4096];
    *database ^= 0x55;
    for (what, bytes) in [
        ("without its end", &whole[..whole.len() - 8192]),
        ("half", &whole[..whole.len() / 2]),
        ("only the database", &whole[..1024]),
        ("changed", &changed[..]),
        ("empty", &[]),
    ] {
        fs::write(&half, bytes).unwrap();
        let data = folder.path().join("nothing");
        let output = restored.command(&["restore", "--data"]).arg(&data).arg(&half).output().unwrap();
        assert!(!output.status.success(), "{what}");
        assert!(!data.exists(), "{what}");
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
        assert_eq!(left.len(), 3, "{what}: {left:?}");
    }
}
