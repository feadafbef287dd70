//! Disks of other makers: those that `qemu-img` makes are taken; the published ways out of them are refused.

use std::{path::Path, process::Command};

use super::*;

/// A disk of 10 MiB, made by `qemu-img`.
fn made(format: &str, options: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let raw = folder.path().join("raw");
    let mut content = vec![0; 10 << 20];
    content[3 << 20..(3 << 20) + 9].copy_from_slice(b"a message");
    std::fs::write(&raw, content).unwrap();
    run(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", format]).args(options).arg(raw).arg(&path));
    std::fs::read(path).unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn changed(image: &[u8], changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut image = image.to_vec();
    for (at, bytes) in changes {
        image[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    image
}

/// With a text in it replaced by another; both are padded to the same length with spaces or NUL.
fn replaced(image: &[u8], old: &str, new: &str) -> Vec<u8> {
    let at = image.windows(old.len()).position(|window| window == old.as_bytes()).expect(old);
    let end = image[at..].iter().position(|byte| *byte == 0).unwrap() + at;
    let rest = image[at + old.len()..end].to_vec();
    let mut image = image.to_vec();
    image[at..at + new.len()].copy_from_slice(new.as_bytes());
    image[at + new.len()..at + new.len() + rest.len()].copy_from_slice(&rest);
    if new.len() < old.len() {
        image[at + new.len() + rest.len()..end].fill(0);
    }
    image
}

/// The same stream as VMware writes it: with its grain directory named by a footer.
fn footed(stream: &[u8]) -> Vec<u8> {
    let marker = |kind: u32| {
        let mut marker = vec![0; 512];
        marker[12..16].copy_from_slice(&kind.to_le_bytes());
        marker
    };
    let mut image = changed(stream, &[(56, &u64::MAX.to_le_bytes())]);
    for part in [&marker(3), &stream[..512], &marker(0)] {
        image.extend_from_slice(part);
    }
    image
}

fn is(image: &[u8], format: ImageFormat) {
    for claim in [None, Some(format)] {
        let found = recognise(&Bytes(image), claim).unwrap();
        assert_eq!(found.format, format);
        // Old vhd counts in cylinders.
        assert!((10 << 20..11 << 20).contains(&found.virtual_size), "{found:?}");
    }
    check_beginning(&image[..image.len().min(HEAD)], Some(format)).unwrap();
    for other in CLAIMS.into_iter().filter(|other| *other != format) {
        assert_eq!(recognise(&Bytes(image), Some(other)).unwrap_err().code, "image_format_mismatch", "{other:?}");
    }
}

#[test]
fn what_qemu_img_makes_is_recognised() {
    is(&made("qcow2", &[]), ImageFormat::Qcow2);
    is(&made("vmdk", &["-o", "subformat=monolithicSparse"]), ImageFormat::Vmdk);
    is(&made("vmdk", &["-o", "subformat=streamOptimized"]), ImageFormat::Vmdk);
    is(&footed(&made("vmdk", &["-o", "subformat=streamOptimized"])), ImageFormat::Vmdk);
    is(&made("vdi", &[]), ImageFormat::Vdi);
    is(&made("vdi", &["-o", "static=on"]), ImageFormat::Vdi);
    is(&made("vpc", &[]), ImageFormat::Vhd);
    is(&made("vpc", &["-o", "subformat=fixed"]), ImageFormat::Vhd);
    is(&made("vhdx", &[]), ImageFormat::Vhdx);
}

/// Each case is refused on bytes in memory: there is no path by which another file could be opened.
#[test]
fn vmdk_that_reach_for_other_files_are_refused() {
    let sparse = made("vmdk", &["-o", "subformat=monolithicSparse"]);
    let stream = made("vmdk", &["-o", "subformat=streamOptimized"]);
    let stream = footed(&stream);
    let extent = "RW 20480 SPARSE \"disk.img\"";
    let zero = 0_u64.to_le_bytes();
    let cases: &[(&str, Vec<u8>)] = &[
        ("an extent that is a host's file", replaced(&sparse, extent, "RW 20480 SPARSE \"/etc/shadow\"")),
        ("a flat extent", replaced(&sparse, extent, "RW 20480 FLAT \"/etc/shadow\" 0")),
        ("a flat extent beside the disk", replaced(&sparse, extent, "RW 20480 FLAT \"x\" 0")),
        ("an extent in the folder above", replaced(&sparse, extent, "RW 20480 SPARSE \"../x\"")),
        ("an extent by protocol", replaced(&sparse, extent, "RW 20480 SPARSE \"nbd:h:1\"")),
        ("a device", replaced(&sparse, extent, "RW 20480 VMFSRDM \"x\"")),
        ("a second extent", replaced(&sparse, extent, &format!("{extent}\nRW 1 SPARSE \"b\""))),
        ("an extent after a bare carriage return", replaced(&sparse, extent, &format!("{extent}\rRW 1 FLAT \"/e\" 0"))),
        ("no extent", replaced(&sparse, extent, "# nothing")),
        ("an extent of another size", replaced(&sparse, extent, "RW 20481 SPARSE \"disk.img\"")),
        ("monolithicFlat", replaced(&sparse, "monolithicSparse", "monolithicFlat")),
        ("twoGbMaxExtentFlat", replaced(&sparse, "monolithicSparse", "twoGbMaxExtentFlat")),
        ("two types", replaced(&sparse, extent, &format!("{extent}\ncreateType=\"vmfs\""))),
        ("a parent", replaced(&sparse, "parentCID=ffffffff", "parentCID=00000001")),
        ("a parent's name", replaced(&sparse, extent, &format!("{extent}\nparentFileNameHint=\"/etc/shadow\""))),
        // QEMU then reads the descriptor as if it stood alone.
        ("a capacity of zero", changed(&sparse, &[(12, &zero)])),
        ("a capacity of zero in the header of a stream", changed(&stream, &[(12, &zero)])),
        ("a footer that contradicts", {
            let at = stream.len() - 1024;
            changed(&stream, &[(at + 12, &zero)])
        }),
        ("a footer with another descriptor", {
            let at = stream.len() - 1024;
            changed(&stream, &[(at + 28, &2_u64.to_le_bytes())])
        }),
        ("no descriptor", changed(&sparse, &[(28, &zero)])),
        ("a descriptor after the end", changed(&sparse, &[(28, &u64::MAX.to_le_bytes())])),
        ("a huge descriptor", changed(&sparse, &[(36, &u64::MAX.to_le_bytes())])),
        ("a disk of 8 EiB", changed(&sparse, &[(12, &(1_u64 << 54).to_le_bytes())])),
        ("grains of nothing", changed(&sparse, &[(20, &zero)])),
        ("a grain directory after the end", changed(&sparse, &[(56, &(1_u64 << 40).to_le_bytes())])),
        ("converted line ends", changed(&sparse, &[(73, b"\n \n\n")])),
        ("version 9", changed(&sparse, &[(4, &[9])])),
        ("a cut off header", sparse[..300].to_vec()),
        ("a cut off stream", stream[..stream.len() - 512].to_vec()),
        (
            "a descriptor alone",
            b"# Disk DescriptorFile\nversion=1\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/shadow\" 0\n".to_vec(),
        ),
        ("an old one", b"COWD\x01\0\0\0".to_vec()),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

#[test]
fn vdi_that_have_parents_or_lie_about_sizes_are_refused() {
    let vdi = made("vdi", &[]);
    let u32 = |value: u32| value.to_le_bytes();
    let cases: &[(&str, Vec<u8>)] = &[
        ("differences", changed(&vdi, &[(0x4c, &u32(4))])),
        ("an undo disk", changed(&vdi, &[(0x4c, &u32(3))])),
        ("a parent", changed(&vdi, &[(0x1b8, &[1])])),
        ("a link", changed(&vdi, &[(0x1a8, &[1])])),
        ("version 0", changed(&vdi, &[(0x44, &u32(0))])),
        ("a disk of 16 EiB", changed(&vdi, &[(0x170, &u64::MAX.to_le_bytes())])),
        ("more blocks than the disk", changed(&vdi, &[(0x180, &u32(u32::MAX))])),
        ("more blocks in use than there are", changed(&vdi, &[(0x184, &u32(u32::MAX))])),
        ("blocks of nothing", changed(&vdi, &[(0x178, &u32(0))])),
        ("a map over the header", changed(&vdi, &[(0x154, &u32(0))])),
        ("data after the end", changed(&vdi, &[(0x158, &u32(u32::MAX - 511))])),
        ("cut off in the header", vdi[..200].to_vec()),
        ("cut off in the data", vdi[..2000].to_vec()),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

#[test]
fn vhd_that_have_parents_or_lie_about_sizes_are_refused() {
    let vhd = made("vpc", &[]);
    let fixed = made("vpc", &["-o", "subformat=fixed"]);
    /// Changes both copies of the footer, and makes their checksums right again.
    fn footer(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let end = image.len() - 512;
        let mut footer = changed(&image[end..], &[(at, bytes), (64, &[0; 4])]);
        let sum = !footer.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        footer[64..68].copy_from_slice(&sum.to_be_bytes());
        let mut image = changed(image, &[(end, &footer)]);
        if image.starts_with(b"conectix") {
            image[..512].copy_from_slice(&footer);
        }
        image
    }
    fn second(image: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
        let mut header = changed(&image[512..1536], &[(at, bytes), (36, &[0; 4])]);
        let sum = !header.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
        header[36..40].copy_from_slice(&sum.to_be_bytes());
        changed(image, &[(512, &header)])
    }
    assert!(check(&footer(&vhd, 24, &[0; 4])).is_ok(), "the helper makes sound images");
    assert!(check(&second(&vhd, 56, &[1; 4])).is_ok(), "the helper makes sound images");
    let cases: &[(&str, Vec<u8>)] = &[
        ("differences", footer(&vhd, 60, &4_u32.to_be_bytes())),
        ("an unknown type", footer(&vhd, 60, &7_u32.to_be_bytes())),
        ("a wrong checksum", changed(&vhd, &[(vhd.len() - 512 + 48, &[1])])),
        ("a beginning that contradicts the end", changed(&vhd, &[(48, &[0xff; 8])])),
        ("a disk of 16 EiB", footer(&vhd, 48, &[0xff; 8])),
        ("a fixed disk larger than the file", footer(&fixed, 48, &(1_u64 << 40).to_be_bytes())),
        ("a second header within the first", footer(&vhd, 16, &16_u64.to_be_bytes())),
        ("a second header after the end", footer(&vhd, 16, &(1_u64 << 60).to_be_bytes())),
        ("a parent's id", second(&vhd, 40, &[1])),
        ("a parent's name", second(&vhd, 64, &[0, b'/'])),
        ("a parent's locator", second(&vhd, 576, b"W2ku")),
        ("blocks of nothing", second(&vhd, 32, &[0; 4])),
        ("a table too short for the disk", second(&vhd, 28, &[0; 4])),
        ("a table after the end", second(&vhd, 16, &(1_u64 << 60).to_be_bytes())),
        ("cut off at the end", vhd[..vhd.len() - 512].to_vec()),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

#[test]
fn vhdx_that_have_parents_or_lie_about_sizes_are_refused() {
    let vhdx = made("vhdx", &[]);
    let find = |id: &[u8]| vhdx.windows(id.len()).position(|window| window == id).unwrap();
    let regions = [192 << 10, 256 << 10];
    let both = |at: usize, bytes: &[u8]| changed(&vhdx, &[(regions[0] + at, bytes), (regions[1] + at, bytes)]);
    let metadata = find(b"metadata");
    // Of the metadata's entries: the id, where its item is, and the item.
    let entry = |id: [u8; 4]| {
        let at = (0..5).map(|entry| metadata + 32 + entry * 32).find(|at| vhdx[*at..at + 4] == id).unwrap();
        (at, metadata + u32::from_le_bytes(vhdx[at + 16..at + 20].try_into().unwrap()) as usize)
    };
    let (parameters, parameters_item) = entry(0xcaa1_6737_u32.to_le_bytes());
    let (size, size_item) = entry(0x2fa5_4224_u32.to_le_bytes());
    let locator: Vec<u8> =
        [0x2d, 0x5f, 0xd3, 0xa8, 0x0b, 0xb3, 0x4d, 0x45, 0xab, 0xf7, 0xd3, 0xd8, 0x48, 0x34, 0xab, 0x0c].to_vec();
    let cases: &[(&str, Vec<u8>)] = &[
        ("a parent", changed(&vhdx, &[(parameters_item + 4, &[2])])),
        ("a parent's locator", changed(&vhdx, &[(parameters, &locator)])),
        ("blocks of nothing", changed(&vhdx, &[(parameters_item, &[0; 4])])),
        ("a disk of 16 EiB", changed(&vhdx, &[(size_item, &[0xff; 8])])),
        ("no size", changed(&vhdx, &[(size, &[0; 16])])),
        ("an item after the end", changed(&vhdx, &[(size + 16, &[0xff; 4])])),
        ("too many items", changed(&vhdx, &[(metadata + 10, &[0xff, 0xff])])),
        ("two region tables", changed(&vhdx, &[(regions[1] + 16, &[1])])),
        ("no region", both(8, &[0; 4])),
        ("too many regions", both(8, &[0xff; 4])),
        ("a region after the end", both(16 + 16, &u64::MAX.to_le_bytes())),
        ("a region over the header", both(16 + 16, &[0; 8])),
        ("an unknown region that is required", both(16, &[1; 16])),
        ("cut off before the metadata", vhdx[..1 << 20].to_vec()),
        ("nothing but its name", b"vhdxfile".to_vec()),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

/// What `qemu-img` itself would do with such a file: this is why it never sees one.
#[test]
fn the_escape_is_real_and_does_not_get_that_far() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, [b"the host's secret\n".as_slice(), &[b'.'; 494]].concat()).unwrap();
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"{}\" 0\n",
        secret.display()
    );
    let hostile = folder.path().join("hostile.vmdk");
    std::fs::write(&hostile, &descriptor).unwrap();
    let out = folder.path().join("out");
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).args::<_, &Path>([&*hostile, &*out]));
    assert!(std::fs::read(out).unwrap().starts_with(b"the host's secret"));
    assert_refused("descriptor", descriptor.as_bytes());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changed_headers_never_panic(
        which in 0_usize..5,
        changes in proptest::collection::vec((0_usize..4096, any::<u8>()), 0..8),
        cut in 0_usize..70_000,
    ) {
        static SAMPLES: std::sync::OnceLock<[Vec<u8>; 5]> = std::sync::OnceLock::new();
        let samples = SAMPLES.get_or_init(|| [
            made("vmdk", &[]),
            made("vmdk", &["-o", "subformat=streamOptimized"]),
            made("vdi", &[]),
            made("vpc", &[]),
            made("vhdx", &[]),
        ]);
        let mut image = samples[which].clone();
        // In a vhdx what matters is in the tables.
        let bases = if which == 4 { vec![0, 192 << 10, 256 << 10, 2 << 20, 3 << 20] } else { vec![0] };
        for (at, byte) in changes {
            let base = bases[usize::from(byte) % bases.len()];
            if let Some(place) = image.get_mut(base + at) {
                *place = byte;
            }
        }
        let _ = check(&image);
        let _ = check(&image[..image.len().min(cut)]);
    }
}
