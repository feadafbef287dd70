//! What is recognised, accepted and refused as the content of an image.

mod archive;
mod corpus;
mod foreign;

use proptest::prelude::*;

use super::*;

/// A sound header of version 3: 64 KiB clusters, 1 GiB disk, L1 table in cluster 3, refcount table in cluster 1.
fn qcow2() -> Vec<u8> {
    let mut head = vec![0; 4 * 65_536];
    head[..4].copy_from_slice(b"QFI\xfb");
    for (at, value) in [(4, 3_u32), (20, 16), (36, 2), (56, 1), (96, 4), (100, 112)] {
        head[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    for (at, value) in [(24, 1_u64 << 30), (40, 3 << 16), (48, 1 << 16)] {
        head[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    head
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut head = qcow2();
    head[at..at + bytes.len()].copy_from_slice(bytes);
    head
}

fn check(image: &[u8]) -> Result<Recognised> {
    recognise(&Bytes(image), None)
}

/// A source that is nothing but these bytes: whatever is read, it is read from here.
struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }
}

/// All formats that can be claimed.
const CLAIMS: [ImageFormat; 13] = [
    ImageFormat::Qcow2,
    ImageFormat::Raw,
    ImageFormat::Iso,
    ImageFormat::Vmdk,
    ImageFormat::Vdi,
    ImageFormat::Vhd,
    ImageFormat::Vhdx,
    ImageFormat::Ova,
    ImageFormat::Ami,
    ImageFormat::Aki,
    ImageFormat::Ari,
    ImageFormat::Tar,
    ImageFormat::Oci,
];

/// Refused whatever is claimed, by the caller's fault, and with an explanation.
fn assert_refused(what: &str, image: &[u8]) {
    for claim in [None].into_iter().chain(CLAIMS.map(Some)) {
        let error = recognise(&Bytes(image), claim).map(|found| found.format).expect_err(what);
        assert!(
            matches!(error.kind, ErrorKind::Invalid | ErrorKind::UnsupportedMedia | ErrorKind::TooLarge),
            "{what}, said to be {claim:?}: {error:?}"
        );
        assert!(!error.detail.is_empty(), "{what}");
    }
}

#[test]
fn sound_images_are_recognised() {
    assert_eq!(check(&qcow2()).unwrap(), Recognised { format: ImageFormat::Qcow2, virtual_size: 1 << 30 });
    // Version 2 ends after 72 bytes; the fields of version 3 mean nothing.
    let mut old = with(4, &2_u32.to_be_bytes());
    old[76..112].fill(0xff);
    assert_eq!(check(&old).unwrap().format, ImageFormat::Qcow2);
    // zstd, and said so.
    let mut zstd = with(104, &[1]);
    zstd[79] = 8;
    assert!(check(&zstd).is_ok());
    // A last cluster that is not full.
    assert!(check(&qcow2()[..(3 << 16) + 16]).is_ok());

    let mut iso = vec![0; 40_000];
    iso[32_768..32_774].copy_from_slice(b"\x01CD001");
    assert_eq!(check(&iso).unwrap(), Recognised { format: ImageFormat::Iso, virtual_size: 40_000 });
    assert_eq!(check(&[0; 512]).unwrap(), Recognised { format: ImageFormat::Raw, virtual_size: 512 });
}

#[test]
fn hostile_and_broken_qcow2_are_refused() {
    let u32 = |value: u32| value.to_be_bytes();
    let u64 = |value: u64| value.to_be_bytes();
    let cases: &[(&str, Vec<u8>)] = &[
        ("backing file offset", with(8, &u64(0x200))),
        ("backing file size alone", with(16, &u32(10))),
        ("external data file", with(72, &u64(4))),
        ("corrupt", with(72, &u64(2))),
        ("unknown incompatible feature", with(72, &u64(1 << 5))),
        ("highest unknown feature", with(72, &u64(1 << 63))),
        ("version 0", with(4, &u32(0))),
        ("version 1", with(4, &u32(1))),
        ("version 4", with(4, &u32(4))),
        ("encrypted with AES", with(32, &u32(1))),
        ("encrypted with LUKS", with(32, &u32(2))),
        ("clusters too small", with(20, &u32(8))),
        ("clusters too large", with(20, &u32(22))),
        ("clusters past every shift", with(20, &u32(u32::MAX))),
        ("disk of 16 EiB", with(24, &u64(u64::MAX))),
        ("disk of 65 TiB", with(24, &u64(65 << 40))),
        ("L1 table too short for the disk", with(36, &u32(1))),
        ("no L1 table", with(36, &u32(0))),
        ("L1 table too long", with(36, &u32(u32::MAX))),
        ("L1 table outside", with(40, &u64(4 << 16))),
        ("L1 table past every offset", with(40, &u64(u64::MAX - 0xffff))),
        ("L1 table over the header", with(40, &u64(0))),
        ("L1 table within a cluster", with(40, &u64((3 << 16) + 8))),
        ("no refcount table", with(56, &u32(0))),
        ("refcount table too long", with(56, &u32(u32::MAX))),
        ("refcount table outside", with(48, &u64(9 << 16))),
        ("refcount table over the header", with(48, &u64(0))),
        ("refcounts too wide", with(96, &u32(7))),
        ("snapshots inside", with(60, &u32(1))),
        ("too many snapshots", with(60, &u32(65_537))),
        ("the name of a data file", with(112, &u32(0x4441_5441))),
        ("a LUKS header without encryption", with(112, &u32(0x0537_be77))),
        ("extensions without end", with(112, &[0xff; 8])),
        ("short header", with(100, &u32(100))),
        ("uneven header", with(100, &u32(107))),
        ("header longer than a cluster", with(100, &u32(65_544))),
        ("compression without its feature", with(104, &[1])),
        ("feature without its compression", with(72, &u64(8))),
        ("unknown compression", {
            let mut image = with(104, &[2]);
            image[79] = 8;
            image
        }),
        ("cut off in the header", qcow2()[..60].to_vec()),
        ("cut off after the magic", b"QFI\xfb".to_vec()),
        ("cut off before the L1 table", qcow2()[..3 << 16].to_vec()),
    ];
    for (what, image) in cases {
        assert_refused(what, image);
    }
}

#[test]
fn the_beginning_alone_is_enough_to_refuse() {
    assert!(check_beginning(&with(8, &[1]), None).is_err());
    assert!(check_beginning(&qcow2(), Some(ImageFormat::Raw)).is_err());
    assert!(check_beginning(&[0; 512], Some(ImageFormat::Qcow2)).is_err());
    // Where the tables are cannot be judged yet.
    assert!(check_beginning(&with(40, &(9_u64 << 16).to_be_bytes()), None).is_ok());
}

#[test]
fn content_that_is_not_what_it_is_said_to_be_is_refused() {
    let mut hybrid = vec![0; 40_000];
    hybrid[32_769..32_774].copy_from_slice(b"CD001");
    let refused = |image: &[u8], claim| recognise(&Bytes(image), Some(claim)).unwrap_err().code;
    assert_eq!(refused(&hybrid, ImageFormat::Raw), "image_format_mismatch");
    for claim in CLAIMS.into_iter().filter(|claim| !matches!(claim, ImageFormat::Raw | ImageFormat::Ami)) {
        assert_eq!(refused(&[0; 512], claim), "image_format_mismatch");
    }
    for claim in CLAIMS.into_iter().filter(|claim| *claim != ImageFormat::Qcow2) {
        assert_eq!(refused(&qcow2(), claim), "image_format_mismatch");
    }
    hybrid[510..512].copy_from_slice(&[0x55, 0xaa]);
    let found = recognise(&Bytes(&hybrid), Some(ImageFormat::Raw)).unwrap();
    assert_eq!(found.format, ImageFormat::Raw);
}

#[test]
fn what_is_no_image_says_what_to_do() {
    for (magic, ..) in FOREIGN {
        let error = recognise(&Bytes(magic), Some(ImageFormat::Raw)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::UnsupportedMedia);
        assert!(!error.next.is_empty());
    }
    assert_eq!(recognise(&Bytes(&[]), None).unwrap_err().code, "image_empty");
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = recognise(&Bytes(&bytes), None);
    }

    #[test]
    fn arbitrary_changes_of_a_header_never_panic_nor_name_other_files(
        changes in proptest::collection::vec((4_usize..112, any::<u8>()), 0..12),
        length in 0_usize..1 << 18,
    ) {
        let mut head = qcow2();
        for (at, byte) in changes {
            head[at] = byte;
        }
        if let Ok(found) = recognise(&Bytes(&head[..length]), None)
            && head.starts_with(b"QFI\xfb")
            && length >= 4
        {
            prop_assert_eq!(found.format, ImageFormat::Qcow2);
            prop_assert!(found.virtual_size <= MAX_VIRTUAL_SIZE);
            prop_assert_eq!(&head[8..20], &[0; 12][..]);
            prop_assert!(head[7] == 2 || head[79] & 4 == 0);
        }
    }
}
