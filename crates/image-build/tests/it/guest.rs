//! A guest in QEMU, without KVM, with its serial line on a socket.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nephos_image_build::MicroImage;
use tempfile::TempDir;

/// Generous, because a machine under load boots guests many times slower.
const PATIENCE: Duration = Duration::from_secs(600);

pub(crate) struct Guest {
    process: Child,
    serial: UnixStream,
    folder: TempDir,
    /// What the serial line has said since the last thing that was waited for.
    said: String,
}

impl Guest {
    pub(crate) fn from_disk(image: &MicroImage) -> Self {
        Self::start(image, |_| vec![])
    }

    pub(crate) fn with_config_drive(image: &MicroImage, files: &[(&str, &str)]) -> Self {
        Self::start(image, |folder| {
            let drive = folder.join("cidata.img");
            make_config_drive(&drive, files);
            vec!["-drive".into(), format!("file={},if=virtio,format=raw,readonly=on", drive.display())]
        })
    }

    pub(crate) fn from_initrd(image: &MicroImage) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = [
            "-kernel".into(),
            image.kernel.display().to_string(),
            "-initrd".into(),
            image.initrd.display().to_string(),
            "-append".into(),
            MicroImage::KERNEL_ARGUMENTS.into(),
        ];
        Self::run(folder, &arguments)
    }

    /// On a disk grown beyond the image.
    fn start(image: &MicroImage, more: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = folder.path().join("disk.qcow2");
        let made = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .args([&image.disk, &disk])
            .arg("512M")
            .status();
        assert!(made.unwrap().success());
        let mut arguments = vec!["-drive".into(), format!("file={},if=virtio", disk.display())];
        arguments.extend(more(folder.path()));
        Self::run(folder, &arguments)
    }

    fn run(folder: TempDir, arguments: &[String]) -> Self {
        let path = |name: &str| folder.path().join(name).display().to_string();
        let process = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg,tb-size=64", "-cpu", "max", "-machine", "q35", "-nodefaults", "-m", "256"])
            .args(["-display", "none", "-vga", "std", "-netdev", "user,id=net,restrict=on"])
            .args(["-device", "virtio-net-pci,netdev=net"])
            .arg("-chardev")
            .arg(format!("socket,id=serial,path={},server=on,wait=on", path("serial")))
            .args(["-serial", "chardev:serial"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", path("qmp")))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 (package qemu-system-x86)");
        let serial = connect(&folder.path().join("serial"));
        Self { process, serial, folder, said: String::new() }
    }

    /// Reads the serial line until it says this.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) {
        self.wait_for_one_of(&[text]);
    }

    /// Reads the serial line until it says one of these; answers which.
    #[track_caller]
    fn wait_for_one_of(&mut self, texts: &[&str]) -> usize {
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        loop {
            let found = texts.iter().enumerate().filter_map(|(number, text)| {
                let at = self.said.find(text)?;
                Some((at + text.len(), number))
            });
            if let Some((end, number)) = found.min() {
                self.said.drain(..end);
                return number;
            }
            assert!(Instant::now() < until, "none of {texts:?} in time; the guest said:\n{}", self.said);
            match self.serial.read(&mut buffer) {
                Ok(0) => panic!("the guest ended before {texts:?}; it said:\n{}", self.said),
                Ok(read) => self.said.push_str(&String::from_utf8_lossy(&buffer[..read])),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub(crate) fn send(&mut self, text: &str) {
        self.serial.write_all(text.as_bytes()).unwrap();
    }

    #[track_caller]
    pub(crate) fn log_in(&mut self, name: &str) {
        self.try_to_log_in(name);
        self.send("uname -a\n");
        self.wait_for(&format!("Linux {name} "));
        self.wait_for(&format!("{name}:~# "));
    }

    /// Logs in as soon as one is let in: a prompt may be there before the password is what it will be.
    #[track_caller]
    fn try_to_log_in(&mut self, name: &str) {
        let prompt = format!("{name}:~# ");
        loop {
            self.wait_for(&format!("{name} login: "));
            self.send("root\n");
            if self.wait_for_one_of(&["Password: ", "Login timed out"]) == 1 {
                continue;
            }
            self.send("nephos\n");
            if self.wait_for_one_of(&[&prompt, "Login incorrect", "Login timed out"]) == 0 {
                return;
            }
        }
    }

    /// Presses the power button and waits until the guest has shut itself down.
    pub(crate) fn power_off(mut self) {
        let mut control = connect(&self.folder.path().join("qmp"));
        control.write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"system_powerdown\"}").unwrap();
        let until = Instant::now() + PATIENCE;
        let mut buffer = [0; 4096];
        while Instant::now() < until {
            // The serial line ends with the process.
            match self.serial.read(&mut buffer) {
                Ok(0) => {
                    assert!(self.process.wait().unwrap().success());
                    return;
                }
                Ok(read) => self.said.push_str(&String::from_utf8_lossy(&buffer[..read])),
                Err(_) => {}
            }
        }
        panic!("the guest did not shut down; it said:\n{}", self.said);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                return stream;
            }
            Err(error) if Instant::now() > until => panic!("{}: {error}", path.display()),
            Err(_) => std::thread::yield_now(),
        }
    }
}

/// A vfat drive with the label `CIDATA`, as FAT tools write it.
fn make_config_drive(drive: &Path, files: &[(&str, &str)]) {
    let image = fs::File::options().read(true).write(true).create(true).truncate(true).open(drive).unwrap();
    image.set_len(4 << 20).unwrap();
    let options = fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     ");
    fatfs::format_volume(&image, options).unwrap();
    let volume = fatfs::FileSystem::new(&image, fatfs::FsOptions::new()).unwrap();
    for (name, content) in files {
        volume.root_dir().create_file(name).unwrap().write_all(content.as_bytes()).unwrap();
    }
    volume.unmount().unwrap();
}
