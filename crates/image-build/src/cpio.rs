//! An initramfs: a folder as a `newc` cpio archive, the only form the kernel reads (Documentation/driver-api/
//! early-userspace/buffer-format). Everything in it belongs to root, whoever builds; equal folders give equal bytes.

use std::{
    fs,
    io::{self, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

/// Writes the folder's content.
pub(crate) fn write_folder(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut number = 0;
    write_entries(folder, folder, &mut number, out)?;
    write_entry("TRAILER!!!".as_bytes(), 0, 0, &[], out)
}

fn write_entries(base: &Path, folder: &Path, number: &mut u32, out: &mut impl Write) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let name = path.strip_prefix(base).map_err(io::Error::other)?.as_os_str().as_bytes();
        let metadata = entry.metadata()?;
        let content = if metadata.is_symlink() {
            fs::read_link(&path)?.as_os_str().as_bytes().to_vec()
        } else if metadata.is_file() {
            fs::read(&path)?
        } else {
            vec![]
        };
        *number += 1;
        write_entry(name, *number, metadata.mode(), &content, out)?;
        if metadata.is_dir() {
            write_entries(base, &path, number, out)?;
        }
    }
    Ok(())
}

fn write_entry(name: &[u8], number: u32, mode: u32, content: &[u8], out: &mut impl Write) -> io::Result<()> {
    let size = u32::try_from(content.len()).map_err(|_| io::Error::other("a file of 4 GiB or more does not fit"))?;
    let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
    // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    let fields = [number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    out.write_all(b"070701")?;
    for field in fields {
        write!(out, "{field:08x}")?;
    }
    out.write_all(name)?;
    out.write_all(&[0])?;
    pad(6 + 8 * fields.len() + name.len() + 1, out)?;
    out.write_all(content)?;
    pad(content.len(), out)
}

/// Zeros up to a multiple of four.
fn pad(written: usize, out: &mut impl Write) -> io::Result<()> {
    out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_belong_to_root() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a"), "hello").unwrap();
        std::os::unix::fs::symlink("a", folder.path().join("b")).unwrap();
        let mut archive = vec![];
        write_folder(folder.path(), &mut archive).unwrap();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let headers: Vec<_> = text.match_indices("070701").map(|(at, _)| &text[at..at + 110]).collect();
        assert_eq!(headers.len(), 3);
        // uid and gid
        assert!(headers.iter().all(|header| &header[22..38] == "0000000000000000"));
        // the regular file's mode and size
        assert_eq!(&headers[0][14..19], "00008");
        assert_eq!(&headers[0][54..62], "00000005");
        assert_eq!(&headers[1][54..62], "00000001");
    }
}
