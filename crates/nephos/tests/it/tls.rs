//! The APIs on an address that others can reach: TLS with the cloud's own authority, from a machine of its own.

use std::{fs, path::Path, process::Output};

use nephos_testkit::{CloudProcess, Machine, PASSWORD, Settings};

use crate::NEPHOS;

async fn listening(machine: &Machine, address: &str) -> CloudProcess {
    let settings = Settings {
        simulated_nodes: 1,
        namespace: Some(machine.namespace().to_owned()),
        listen: Some(address.parse().unwrap()),
        ..Settings::default()
    };
    CloudProcess::start(NEPHOS, settings).await
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Lists servers of the cloud at this URL with a token that is none, trusting this authority: whether TLS worked shows
/// in what is refused.
fn knock(cloud: &CloudProcess, url: &str, authority: Option<&Path>) -> (Option<i32>, String) {
    let nowhere = tempfile::tempdir().unwrap();
    let mut command = cloud.command(&["server", "list"]);
    command.env("NEPHOS_DATA", nowhere.path()).env("NEPHOS_URL", url).env("NEPHOS_TOKEN", "none");
    if let Some(authority) = authority {
        command.env("NEPHOS_CACERT", authority);
    }
    let output = command.output().unwrap();
    (output.status.code(), said(&output))
}

const NOT_LOGGED_IN: Option<i32> = Some(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_on_an_outside_address_is_reached_by_its_own_authority_alone() {
    let Some(machine) = Machine::new(NEPHOS) else { return };
    let there = machine.far_address();
    let mut cloud = listening(&machine, &there.to_string()).await;
    let url = cloud.url();
    assert!(url.starts_with(&format!("https://{there}:")), "{url}");
    let clouds = fs::read_to_string(cloud.data().join("clouds.yaml")).unwrap();
    assert!(clouds.contains(&format!("auth_url: {url}/identity/v3")) && clouds.contains("cacert: "), "{clouds}");

    // From the machine at the other end of the cable: this one. The data folder is all that it takes.
    cloud.nephos(&["server", "list"]);
    // So it does after it was copied.
    let copy = tempfile::tempdir().unwrap();
    for name in ["clouds.yaml", "ca.pem"] {
        fs::copy(cloud.data().join(name), copy.path().join(name)).unwrap();
    }
    let output = cloud.command(&["flavor", "list"]).env("NEPHOS_DATA", copy.path()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));

    let authority = cloud.data().join("ca.pem");
    assert_eq!(knock(&cloud, &url, Some(&authority)).0, NOT_LOGGED_IN);
    // Another cloud's authority, none, and no TLS at all.
    let other = copy.path().join("other.pem");
    fs::write(&other, nephos_auth::Authority::ephemeral().unwrap().certificate()).unwrap();
    for (authority, refusal) in [(Some(other.as_path()), "[wrong_authority]"), (None, "[unknown_authority]")] {
        let (code, text) = knock(&cloud, &url, authority);
        assert!(code == Some(2) && text.contains(refusal), "{code:?} {text}");
    }
    let (code, text) = knock(&cloud, &url.replace("https:", "http:"), None);
    assert!(code == Some(8) && !text.contains("ID"), "nothing is said in the clear: {code:?} {text}");
    // Nobody's password went over the wire to find that out.
    assert!(!cloud.log_text().contains(PASSWORD));
    assert!(cloud.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_on_all_addresses_writes_down_one_that_can_be_dialled() {
    let Some(machine) = Machine::new(NEPHOS) else { return };
    let mut cloud = listening(&machine, "0.0.0.0").await;
    let url = cloud.url();
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let clouds = fs::read_to_string(cloud.data().join("clouds.yaml")).unwrap();
    assert!(clouds.contains(&format!("auth_url: {url}/")), "{clouds}");

    // On the machine itself by what was written down, from elsewhere by the address that it has there.
    let output = cloud.command_within(&["server", "list"]).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let from_here = url.replace("127.0.0.1", &machine.far_address().to_string());
    let authority = cloud.data().join("ca.pem");
    let (code, text) = knock(&cloud, &from_here, Some(&authority));
    assert_eq!(code, NOT_LOGGED_IN, "{text}");

    // Agents, too, are told an address that they can dial.
    let output = cloud.command_within(&["node", "join-token"]).env("NEPHOS_CLOUD", "nephos-admin").output().unwrap();
    let text = said(&output);
    assert!(text.contains(&format!("--join https://{}:", machine.far_address())), "{text}");
    assert!(cloud.stop().await.success());
}
