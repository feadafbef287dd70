//! Kernels and initial RAM disks, as Amazon's machine images have them apart: aki and ari.

/// What initial RAM disks begin with: cpio archives, or what they are compressed by.
const RAM_DISKS: &[&[u8]] = &[
    b"070701",
    b"070702",
    b"\x1f\x8b",
    b"\x28\xb5\x2f\xfd",
    b"\xfd7zXZ\0",
    b"BZh",
    b"\x5d\0\0",
    b"\x02\x21\x4c\x18",
    b"\x04\x22\x4d\x18",
    b"\x89LZO",
];

/// Whether it is a Linux kernel: bzImage (Linux: Documentation/arch/x86/boot.rst), or an ELF file.
pub(super) fn is_kernel(head: &[u8]) -> bool {
    let linux = head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS");
    linux || head.starts_with(b"\x7fELF")
}

/// Whether it may be an initial RAM disk.
pub(super) fn is_ram_disk(head: &[u8]) -> bool {
    RAM_DISKS.iter().any(|magic| head.starts_with(magic))
}
