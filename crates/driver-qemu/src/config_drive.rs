//! The configuration drive: a small FAT volume, which cloud-init and others find by its label at boot.

use std::io::{self, Cursor, Write};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use nephos_driver::{ConfigFile, config_drive_label};

/// What a FAT volume of a few files needs besides their content.
const OVERHEAD: usize = 512 << 10;
/// A file or folder takes whole clusters.
const PER_FILE: usize = 8 << 10;

/// The volume as bytes. The same files make the same bytes.
pub(crate) fn image(files: &[ConfigFile]) -> io::Result<Vec<u8>> {
    let content: usize = files.iter().map(|file| file.content.len() + PER_FILE).sum();
    let size = (content + OVERHEAD).next_multiple_of(1 << 20);
    let mut volume = Cursor::new(vec![0; size]);
    let mut label = [b' '; 11];
    label.iter_mut().zip(config_drive_label(files).bytes()).for_each(|(place, byte)| *place = byte);
    fatfs::format_volume(&mut volume, FormatVolumeOptions::new().volume_label(label))?;
    {
        let file_system = FileSystem::new(&mut volume, FsOptions::new())?;
        for file in files {
            let mut folder = file_system.root_dir();
            let mut names: Vec<&str> = file.path.split('/').collect();
            let name = names.pop().unwrap_or_default();
            for parent in names {
                folder = folder.create_dir(parent)?;
            }
            let mut target = folder.create_file(name)?;
            target.truncate()?;
            target.write_all(file.content.as_bytes())?;
            target.flush()?;
        }
        file_system.unmount()?;
    }
    Ok(volume.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn file(path: &str, content: &str) -> ConfigFile {
        ConfigFile { path: path.to_owned(), content: content.to_owned() }
    }

    fn label(image: &[u8]) -> String {
        FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap().volume_label()
    }

    #[test]
    fn the_label_tells_the_format() {
        assert_eq!(label(&image(&[file("meta-data", ""), file("user-data", "")]).unwrap()), "cidata");
        let open_stack = [file("openstack/latest/meta_data.json", "{}"), file("openstack/content/0000", "x")];
        assert_eq!(label(&image(&open_stack).unwrap()), "config-2");
    }

    fn read(image: &[u8], path: &str) -> String {
        let volume = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();

        let mut content = String::new();
        volume.root_dir().open_file(path).unwrap().read_to_string(&mut content).unwrap();
        content
    }

    #[test]
    fn files_can_be_read_back() {
        let long = "x".repeat(3 << 20);
        let files = [
            file("meta-data", "instance-id: srv-1\nlocal-hostname: größe\n"),
            file("user-data", &long),
            file("openstack/latest/meta_data.json", "{}"),
            file("openstack/latest/user_data", "#!/bin/sh\n"),
        ];
        let image = image(&files).unwrap();
        for file in &files {
            assert_eq!(read(&image, &file.path), file.content, "{}", file.path);
        }
        assert_eq!(super::image(&files).unwrap(), image, "the same files make the same bytes");
    }

    #[test]
    fn the_most_files_fit() {
        let files: Vec<ConfigFile> =
            (0..64).map(|n| file(&format!("a{n}/b/c/a-rather-long-name-of-a-file"), "x")).collect();
        assert_eq!(read(&image(&files).unwrap(), "a63/b/c/a-rather-long-name-of-a-file"), "x");
    }
}
