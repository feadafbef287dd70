//! Archives: appliances, root file systems, OCI layouts; and kernels.

use std::io::Write;

use super::*;

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = ::tar::Builder::new(vec![]);
    for (name, content) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // The safe way of setting names refuses what is wanted here.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        archive.append(&header, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

fn kind(kind: ::tar::EntryType, name: &str, target: &str) -> Vec<u8> {
    let mut archive = ::tar::Builder::new(vec![]);
    let mut header = ::tar::Header::new_ustar();
    header.set_size(0);
    header.set_entry_type(kind);
    header.set_path(name).unwrap();
    header.set_link_name(target).unwrap();
    header.set_cksum();
    archive.append(&header, &[][..]).unwrap();
    archive.into_inner().unwrap()
}

/// A small stream-optimized disk.
fn vmdk() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (raw, path) = (folder.path().join("raw"), folder.path().join("disk.vmdk"));
    std::fs::write(&raw, vec![7; 1 << 20]).unwrap();
    let status = std::process::Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"])
        .args([raw, path.clone()])
        .status();
    assert!(status.unwrap().success());
    std::fs::read(path).unwrap()
}

const OVF: &str = r#"<?xml version="1.0"?><Envelope xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1">
<References><File ovf:href="disk.vmdk" ovf:id="file1"/></References></Envelope>"#;

fn sha256(bytes: &[u8]) -> String {
    hex::encode(ring::digest::digest(&ring::digest::SHA256, bytes))
}

#[test]
fn an_appliance_is_recognised_and_its_disk_found() {
    let disk = vmdk();
    let manifest = format!("SHA256(box.ovf)= {}\nSHA256(disk.vmdk)= {}\n", sha256(OVF.as_bytes()), sha256(&disk));
    let ova = archive(&[("box.ovf", OVF.as_bytes()), ("box.mf", manifest.as_bytes()), ("disk.vmdk", &disk)]);
    assert_eq!(check(&ova).unwrap(), Recognised { format: ImageFormat::Ova, virtual_size: 1 << 20 });
    let found = appliance(&Bytes(&ova)).unwrap();
    let part = |at: u64, size: u64| &ova[usize::try_from(at).unwrap()..usize::try_from(at + size).unwrap()];
    assert_eq!(part(found.disk_at, found.disk_size), disk);
    for checksum in &found.checksums {
        assert_eq!(sha256(part(checksum.at, checksum.size)), checksum.sum, "{}", checksum.name);
    }
    assert_eq!(found.checksums.len(), 2);
}

#[test]
fn appliances_that_reach_out_of_themselves_are_refused() {
    let disk = vmdk();
    let ovf = OVF.as_bytes();
    let hostile_disk = b"# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/shadow\" 0\n";
    let link = {
        let mut whole = archive(&[("box.ovf", ovf)]);
        whole.truncate(whole.len() - 1024);
        whole.extend(kind(::tar::EntryType::Symlink, "disk.vmdk", "/etc/shadow"));
        whole
    };
    let hard_link = {
        let mut whole = archive(&[("box.ovf", ovf)]);
        whole.truncate(whole.len() - 1024);
        whole.extend(kind(::tar::EntryType::Link, "disk.vmdk", "/etc/shadow"));
        whole
    };
    let many: Vec<(String, Vec<u8>)> = (0..70).map(|n| (format!("f{n}"), vec![])).collect();
    let mut with_many: Vec<(&str, &[u8])> = vec![("box.ovf", ovf), ("disk.vmdk", &disk)];
    with_many.extend(many.iter().map(|(name, content)| (&**name, &**content)));
    let entity = br#"<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/shadow">]><x>&e;</x>"#;
    let outside = OVF.replace("disk.vmdk", "http://10.0.0.1/disk.vmdk");
    let absolute = OVF.replace("disk.vmdk", "/etc/shadow");
    let cases: &[(&str, Vec<u8>)] = &[
        ("a path upwards", archive(&[("box.ovf", ovf), ("../disk.vmdk", &disk)])),
        ("an absolute path", archive(&[("box.ovf", ovf), ("/etc/disk.vmdk", &disk)])),
        ("a folder", archive(&[("box.ovf", ovf), ("a/disk.vmdk", &disk)])),
        ("a link", link),
        ("a hard link", hard_link),
        ("two disks", archive(&[("box.ovf", ovf), ("disk.vmdk", &disk), ("b.vmdk", &disk)])),
        ("no disk", archive(&[("box.ovf", ovf)])),
        ("two files of a name", archive(&[("box.ovf", ovf), ("disk.vmdk", &disk), ("disk.vmdk", &disk)])),
        ("two descriptions", archive(&[("box.ovf", ovf), ("b.ovf", ovf), ("disk.vmdk", &disk)])),
        ("a disk that names a file", archive(&[("box.ovf", ovf), ("disk.vmdk", hostile_disk)])),
        ("a disk that is something else", archive(&[("box.ovf", ovf), ("disk.vmdk", &[0; 600])])),
        ("too many files", archive(&with_many)),
        ("an entity", archive(&[("box.ovf", entity), ("disk.vmdk", &disk)])),
        ("a disk elsewhere", archive(&[("box.ovf", outside.as_bytes()), ("disk.vmdk", &disk)])),
        ("a disk by path", archive(&[("box.ovf", absolute.as_bytes()), ("disk.vmdk", &disk)])),
        ("no XML", archive(&[("box.ovf", b"<a><b></a>"), ("disk.vmdk", &disk)])),
        ("a manifest of another file", archive(&[("box.ovf", ovf), ("x.mf", b"SHA256(y)= 00"), ("disk.vmdk", &disk)])),
        ("a manifest that is none", archive(&[("box.ovf", ovf), ("x.mf", b"hello"), ("disk.vmdk", &disk)])),
        ("cut off", {
            let whole = archive(&[("box.ovf", ovf), ("disk.vmdk", &disk)]);
            whole[..4096].to_vec()
        }),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    writer.write_all(content).unwrap();
    writer.finish().unwrap()
}

#[test]
fn root_file_systems_are_recognised_however_they_are_packed() {
    let plain = archive(&[("./bin/sh", b"x"), ("./etc/os-release", b"y")]);
    assert_eq!(check(&plain).unwrap().format, ImageFormat::Tar);
    assert_eq!(check(&gzip(&plain)).unwrap().format, ImageFormat::Tar);
    let zstd = ruzstd::encoding::compress_to_vec(&*plain, ruzstd::encoding::CompressionLevel::Fastest);
    assert_eq!(check(&zstd).unwrap().format, ImageFormat::Tar);
    // A long name in each of the two ways.
    let long = "a/".repeat(120) + "b";
    let mut gnu = ::tar::Builder::new(vec![]);
    let mut header = ::tar::Header::new_gnu();
    header.set_size(3);
    gnu.append_data(&mut header, &long, &b"abc"[..]).unwrap();
    assert_eq!(check(&gnu.into_inner().unwrap()).unwrap().format, ImageFormat::Tar);
    let mut pax = ::tar::Builder::new(vec![]);
    pax.append_pax_extensions([("path", long.as_bytes()), ("size", b"3")]).unwrap();
    let mut header = ::tar::Header::new_ustar();
    header.set_size(3);
    header.set_path("short").unwrap();
    header.set_cksum();
    pax.append(&header, &b"abc"[..]).unwrap();
    assert_eq!(check(&pax.into_inner().unwrap()).unwrap().format, ImageFormat::Tar);

    for (what, image) in [
        ("a path upwards", archive(&[("etc/../../etc/shadow", b"x")])),
        ("cut off", plain[..600].to_vec()),
        ("something compressed", gzip(&[0; 5000])),
        ("half a gzip header", b"\x1f\x8b\x08".to_vec()),
        ("zstd with a huge window", b"\x28\xb5\x2f\xfd\x00\xff".to_vec()),
        ("zstd with a huge frame", b"\x28\xb5\x2f\xfd\xe0\xff\xff\xff\xff\xff\xff\xff\x00".to_vec()),
    ] {
        let error = recognise(&Bytes(&image), None).expect_err(what);
        assert!(matches!(error.kind, ErrorKind::Invalid | ErrorKind::UnsupportedMedia), "{what}: {error:?}");
    }
}

#[test]
fn oci_layouts_are_recognised() {
    let layout: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
    let index: &[u8] = br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:00","size":2}]}"#;
    let oci = archive(&[("blobs/sha256/00", b"{}"), ("index.json", index), ("oci-layout", layout)]);
    assert_eq!(check(&oci).unwrap().format, ImageFormat::Oci);
    let dotted = archive(&[("./oci-layout", layout), ("./index.json", index)]);
    assert_eq!(check(&dotted).unwrap().format, ImageFormat::Oci);
    for (what, image) in [
        ("no index", archive(&[("oci-layout", layout)])),
        ("no image", archive(&[("oci-layout", layout), ("index.json", b"{\"manifests\":[]}")])),
        ("no JSON", archive(&[("oci-layout", layout), ("index.json", b"hello")])),
        ("another version", archive(&[("oci-layout", b"{\"imageLayoutVersion\":\"2\"}"), ("index.json", index)])),
        ("a huge index", archive(&[("oci-layout", layout), ("index.json", &vec![b' '; 2 << 20])])),
    ] {
        assert_refused(what, &image);
    }
}

#[test]
fn kernels_and_ram_disks_are_recognised() {
    let mut kernel = vec![0; 4096];
    kernel[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    kernel[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(check(&kernel).unwrap().format, ImageFormat::Aki);
    assert_eq!(check(b"070701 and so on").unwrap().format, ImageFormat::Ari);
    assert_eq!(check(&gzip(&[b"070701".as_slice(), &[b'0'; 600]].concat())).unwrap().format, ImageFormat::Ari);
    // Whatever a kernel can unpack, if it is said to be that.
    assert_eq!(recognise(&Bytes(b"\xfd7zXZ\0.."), Some(ImageFormat::Ari)).unwrap().format, ImageFormat::Ari);
    assert_eq!(recognise(&Bytes(&[1; 512]), Some(ImageFormat::Ami)).unwrap().format, ImageFormat::Ami);
    assert!(recognise(&Bytes(&[1; 512]), Some(ImageFormat::Aki)).is_err());
    assert!(recognise(&Bytes(&[1; 512]), Some(ImageFormat::Ari)).is_err());
    assert!(recognise(&Bytes(&kernel), Some(ImageFormat::Ami)).is_err());
}

proptest! {
    #[test]
    fn changed_archives_never_panic(
        changes in proptest::collection::vec((0_usize..2048, any::<u8>()), 0..8),
        resum: bool,
        cut in 0_usize..8192,
    ) {
        let mut image = archive(&[("a.ovf", OVF.as_bytes()), ("oci-layout", b"{}"), ("index.json", b"{}")]);
        for (at, byte) in changes {
            image[at] = byte;
        }
        if resum && let Some(header) = image.first_chunk_mut::<512>() {
            let mut fixed = ::tar::Header::new_ustar();
            fixed.as_mut_bytes().copy_from_slice(header);
            fixed.set_cksum();
            header.copy_from_slice(fixed.as_bytes());
        }
        let _ = check(&image);
        let _ = check(&image[..image.len().min(cut)]);
        let _ = check(&gzip(&image));
    }
}
