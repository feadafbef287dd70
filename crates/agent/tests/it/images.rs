//! The image cache.

use nephos_agent::Config;
use nephos_driver::{DiskFormat, Power, simulated::SimulatedHost};
use nephos_node_api::{DesiredServer, ImageSource, WantedPower};
use nephos_types::{Bytes, ImageId};
use ring::digest;

use crate::{
    Running,
    fake::{Fake, server},
    quick,
};

pub(crate) fn image(control: &Fake, bytes: &[u8]) -> ImageSource {
    let id = ImageId::new();
    control.state.lock().unwrap().images.insert(id, bytes.to_vec());
    ImageSource {
        id,
        format: DiskFormat::Raw,
        size: Bytes(bytes.len() as u64),
        sha256: hex::encode(digest::digest(&digest::SHA256, bytes)),
    }
}

fn from(image: &ImageSource) -> DesiredServer {
    DesiredServer { image: Some(image.clone()), ..server(WantedPower::On { restart: true }) }
}

#[tokio::test]
async fn an_image_is_fetched_once_however_many_want_it() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let source = image(&control, &vec![7; 100_000]);
    let _agent = Running::start(&control, &host, Some(data.path()));
    let servers: Vec<_> = (0..8).map(|_| from(&source)).collect();
    control.want(|state| state.servers.extend(servers.iter().map(|server| (server.id, server.clone()))));
    for server in &servers {
        control.until_reached(server.id, 1, Some(Power::On)).await;
    }
    assert_eq!(control.state.lock().unwrap().fetched, 1);
    let (path, _) = host.spec(servers[0].id).unwrap().disk.base.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![7; 100_000]);
    assert!(std::fs::metadata(&path).unwrap().permissions().readonly());
}

#[tokio::test]
async fn a_corrupt_image_is_noticed_and_fetched_again() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let source = image(&control, b"what it should be");
    control.state.lock().unwrap().images.insert(source.id, b"what it is indeed".to_vec());
    let _agent = Running::start(&control, &host, Some(data.path()));
    let web = from(&source);
    control.want_server(&web);
    let error =
        control.until("an error", |state| state.reports.get(&web.id).and_then(|report| report.error.clone())).await;
    assert_eq!(error.code, "image_corrupt");
    assert!(error.detail.contains(&source.sha256), "{error}");
    assert!(host.spec(web.id).is_none());
    // Shorter than announced in the record is noticed too.
    control.state.lock().unwrap().images.insert(source.id, b"short".to_vec());
    control
        .until("another error", |state| {
            state.reports.get(&web.id)?.error.as_ref().filter(|error| error.detail.contains("5 bytes")).cloned()
        })
        .await;
    control.state.lock().unwrap().images.insert(source.id, b"what it should be".to_vec());
    control.until_reached(web.id, 1, Some(Power::On)).await;
    let left: Vec<_> =
        std::fs::read_dir(data.path().join("images")).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left, [source.sha256.as_str()]);
}

#[tokio::test]
async fn the_least_recently_used_image_makes_room_but_never_one_in_use() {
    let (control, host) = (Fake::new(), SimulatedHost::new(1));
    let data = tempfile::tempdir().unwrap();
    let sources: Vec<_> = (0..4u8).map(|n| image(&control, &vec![n; 1000])).collect();
    let config = Config { data: Some(data.path().to_owned()), image_cache: Bytes(2500), ..quick() };
    let _agent = Running::with(&control, &host, config);
    let kept = from(&sources[0]);
    control.want_server(&kept);
    control.until_reached(kept.id, 1, Some(Power::On)).await;
    for source in &sources[1..] {
        let passing = from(source);
        control.want_server(&passing);
        control.until_reached(passing.id, 1, Some(Power::On)).await;
        control.want_server(&DesiredServer { generation: 2, power: WantedPower::Absent, ..passing.clone() });
        control.until_reached(passing.id, 2, None).await;
        control.want(|state| drop(state.servers.remove(&passing.id)));
    }
    let there = |n: usize| data.path().join("images").join(&sources[n].sha256).exists();
    assert!(there(0), "in use");
    assert!(there(3), "the latest");
    assert!(!there(1), "the least recently used");
}
