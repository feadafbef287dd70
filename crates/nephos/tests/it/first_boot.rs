//! What the cloud says at the first boot reaches real guests, in either format of the configuration drive.

use nephos_cli::client::{Client, Upload};
use nephos_ops::{
    compute::CreateServer,
    image::{CreateImage, UploadImage},
};
use nephos_testkit::{CloudProcess, Settings};
use serde_json::json;

use crate::{
    NEPHOS,
    help::{delete_server, request, server, succeeded},
    shell::Key,
};

/// What the operator wants done in every server.
const VENDOR_DATA: &str = "#!/bin/sh\necho \"of the \\\"operator\\\"\" > /root/vendor\n";

async fn image(client: &Client, format: &str) {
    let name = format!("micro-{format}");
    let create = json!({ "name": name, "format": "qcow2", "properties": { "config_drive_format": format } });
    client.call(request::<CreateImage>(create)).await.unwrap();
    let file = Upload::file(&crate::help::micro().await.disk).await.unwrap();
    client.call_upload(request::<UploadImage>(json!({ "image": name })), file).await.unwrap();
}

/// A server that is told something in each way there is.
async fn create(client: &Client, format: &str) {
    let script = "#!/bin/sh\necho \"$(hostname) $(cat /etc/greeting)\" > /root/ran.new\nmv /root/ran.new /root/ran\n";
    let create = json!({
        "name": format,
        "image": format!("micro-{format}"),
        "flavor": "tiny",
        "keypair": "me",
        "forward": [22],
        "user_data": script,
        "files": [
            { "path": "/etc/greeting", "content": "hello, \"world\" \\ \u{fc}" },
            { "path": "/srv/some/where/empty", "content": "" },
        ],
        "metadata": { "hostname": "not-this" },
    });
    succeeded(client, client.call(request::<CreateServer>(create)).await.unwrap().workflow).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_becomes_who_the_cloud_says() {
    let mut cloud = CloudProcess::new(NEPHOS, Settings::default());
    let vendor_data = cloud.data().join("vendor-data");
    std::fs::create_dir_all(cloud.data()).unwrap();
    std::fs::write(&vendor_data, VENDOR_DATA).unwrap();
    std::fs::write(cloud.data().join("nephos.toml"), format!("vendor_data_file = {vendor_data:?}\n")).unwrap();
    cloud.start_again().await;
    let demo = cloud.demo().await;
    let key = Key::new(&demo, "me").await;
    for format in ["nocloud", "openstack"] {
        image(&demo, format).await;
    }
    tokio::join!(create(&demo, "nocloud"), create(&demo, "openstack"));
    for (format, label) in [("nocloud", "cidata"), ("openstack", "config-2")] {
        // Who logs in has the right key.
        let shell = key.shell(&demo, format).await;
        shell.until("cat /root/ran 2>/dev/null || true", &format!("{format} hello, \"world\" \\ \u{fc}")).await;
        assert_eq!(shell.run("cat /root/vendor").await, "of the \"operator\"", "{format}");
        assert_eq!(shell.run("ls /srv/some/where; wc -l < /root/.ssh/authorized_keys").await, "empty\n1", "{format}");
        let drive = shell.run(&format!("findfs LABEL={label}")).await;
        assert!(drive.starts_with("/dev/vd"), "{format}: {drive}");
        assert_eq!(server(&demo, format).await.unwrap().metadata.0["hostname"], "not-this");
        delete_server(&demo, format).await;
    }
    assert!(cloud.stop().await.success());
}
