//! Servers boot as their images say: from a CD, by UEFI, with a kernel of the image's own.

use std::path::Path;

use nephos_cli::client::{Client, Upload};
use nephos_image_build::MicroImage;
use nephos_ops::{
    Started,
    compute::{CreateServer, SnapshotServer},
    image::{CreateImage, DeleteImage, Image, PrefetchImage, ShowImage, UpdateImage, UploadImage},
};
use nephos_testkit::{CloudProcess, Settings};
use nephos_types::ErrorKind;
use serde_json::{Value, json};

use crate::{
    NEPHOS,
    help::{delete_server, request, succeeded},
    media,
    shell::{Key, Shell},
};

async fn upload(client: &Client, name: &str, format: &str, properties: Value, file: &Path) {
    let create = json!({ "name": name, "format": format, "properties": properties });
    client.call(request::<CreateImage>(create)).await.unwrap();
    let content = Upload::file(file).await.unwrap();
    let image = client.call_upload(request::<UploadImage>(json!({ "image": name })), content).await.unwrap();
    assert_eq!(json!(image.format), json!(format));
}

fn create(image: &str) -> CreateServer {
    request(json!({ "name": image, "image": image, "flavor": "tiny", "keypair": "me", "forward": [22] }))
}

/// A file of this name somewhere in a folder.
fn find(folder: &Path, name: &str) -> Option<std::path::PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| match entry.path() {
        path if path.is_dir() => find(&path, name),
        path => (entry.file_name().to_str() == Some(name)).then_some(path),
    })
}

/// Boots a server from an image of its name, and gives a shell in it.
async fn boot(client: &Client, key: &Key, image: &str) -> Shell {
    succeeded(client, client.call(create(image)).await.unwrap().workflow).await;
    let shell = key.shell(client, image).await;
    assert_eq!(shell.run("hostname").await, image);
    shell
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_boot_as_their_images_say() {
    let micro = crate::help::micro().await;
    let mut cloud = CloudProcess::start(NEPHOS, Settings::default()).await;
    let demo = cloud.demo().await;
    let key = Key::new(&demo, "me").await;
    let scratch = tempfile::tempdir().unwrap();
    let (cd, disk, blank) =
        (scratch.path().join("cd.iso"), scratch.path().join("uefi.raw"), scratch.path().join("blank"));

    // From a CD beside an empty disk; the image is on the node before anything needs it there, once for all.
    media::cd(&micro, scratch.path(), &cd);
    upload(&demo, "cd", "iso", json!({}), &cd).await;
    let admin = cloud.admin().await;
    for _ in 0..2 {
        let prefetch = json!({ "image": demo.call(request::<ShowImage>(json!({ "image": "cd" }))).await.unwrap().id });
        let started: Started<Image> = admin.call(request::<PrefetchImage>(prefetch)).await.unwrap();
        succeeded(&admin, started.workflow).await;
    }
    let sha256 = demo.call(request::<ShowImage>(json!({ "image": "cd" }))).await.unwrap().sha256.unwrap();
    let cached = find(&cloud.data(), &sha256).expect("the image is in the node's cache");
    assert_eq!(std::fs::read(cached).unwrap(), std::fs::read(&cd).unwrap());
    let shell = boot(&demo, &key, "cd").await;
    assert_eq!(shell.run("tr -d '\\0' < /dev/vda | wc -c").await, "0", "there is nothing else to boot from");
    delete_server(&demo, "cd").await;

    // By UEFI, whose variables the guest sees.
    media::uefi_disk(&micro, scratch.path(), &disk);
    upload(&demo, "uefi", "raw", json!({ "hw_firmware_type": "uefi" }), &disk).await;
    let shell = boot(&demo, &key, "uefi").await;
    assert_eq!(shell.run("ls -d /sys/firmware/efi").await, "/sys/firmware/efi");
    delete_server(&demo, "uefi").await;

    // With a kernel of its own, in three images as Amazon has them.
    std::fs::File::create(&blank).unwrap().set_len(1 << 20).unwrap();
    upload(&demo, "kernel", "aki", json!({}), &micro.kernel).await;
    upload(&demo, "ram-disk", "ari", json!({}), &micro.initrd).await;
    let command_line = format!("{} nephos.test=1", MicroImage::KERNEL_ARGUMENTS);
    let properties = json!({ "kernel_id": "kernel", "ramdisk_id": "ram-disk", "os_command_line": command_line });
    upload(&demo, "machine", "ami", properties, &blank).await;
    let shell = boot(&demo, &key, "machine").await;
    assert!(shell.run("cat /proc/cmdline").await.ends_with("nephos.test=1"));
    // What is made of it boots alike.
    let snapshot = json!({ "server": "machine", "name": "copy", "freeze": false });
    let started: Started<Image> = demo.call(request::<SnapshotServer>(snapshot)).await.unwrap();
    succeeded(&demo, started.workflow).await;
    let copy = demo.call(request::<ShowImage>(json!({ "image": "copy" }))).await.unwrap();
    let kernel = demo.call(request::<ShowImage>(json!({ "image": "kernel" }))).await.unwrap();
    assert_eq!(copy.properties.0["kernel_id"], kernel.id.to_string());
    assert_eq!(copy.properties.0["os_command_line"], command_line);
    // It may have to be made anew on another node at any time.
    for image in ["kernel", "ram-disk"] {
        let refused = demo.call(request::<DeleteImage>(json!({ "image": image }))).await.unwrap_err();
        assert_eq!((refused.kind, refused.code.as_ref()), (ErrorKind::Conflict, "image_in_use"));
    }
    delete_server(&demo, "machine").await;
    demo.call(request::<DeleteImage>(json!({ "image": "ram-disk" }))).await.unwrap();
    upload(&demo, "ram-disk", "ari", json!({}), &micro.initrd).await;

    // What cannot be is refused before anything begins.
    for properties in [
        json!({ "hw_firmware_type": "openfirmware" }),
        json!({ "kernel_id": "cd" }),
        json!({ "kernel_id": "no-such" }),
        json!({ "ramdisk_id": "ram-disk" }),
        json!({ "os_command_line": "quiet" }),
        json!({ "kernel_id": "kernel", "os_command_line": "a\nb" }),
        json!({ "config_drive_format": "floppy" }),
    ] {
        let update = json!({ "image": "machine", "properties": properties });
        demo.call(request::<UpdateImage>(update)).await.unwrap();
        let error = demo.call(create("machine")).await.expect_err("it cannot be booted");
        assert_eq!((error.kind, error.code.as_ref()), (ErrorKind::Conflict, "invalid_image_property"), "{properties}");
    }
    assert!(cloud.guests().is_empty());
    assert!(cloud.stop().await.success());
}
