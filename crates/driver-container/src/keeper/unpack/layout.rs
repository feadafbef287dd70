//! An OCI image layout in an archive: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use serde::{Deserialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use tar::Archive;

use super::{Budget, account, compression, layer, plain, refuse};
use crate::image::{DEFAULT_PATH, Program, signal};

/// The largest of the layout's own documents.
const MAX_DOCUMENT: u64 = 4 << 20;
/// Files of the layout itself.
const MAX_BLOBS: usize = 4096;
const MAX_LAYERS: usize = 256;
/// How deep indexes may refer to indexes.
const MAX_DEPTH: usize = 3;

/// A reference to a blob.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    config: Option<Run>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Run {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// Where each file of the archive is.
struct Blobs {
    archive: File,
    places: HashMap<String, (u64, u64)>,
}

/// Applies all layers of the image for this machine, and says how it is run.
pub(crate) fn apply(archive: File, budget: &mut Budget) -> io::Result<Program> {
    let mut blobs = Blobs::new(archive)?;
    let manifest = blobs.manifest()?;
    if manifest.layers.len() > MAX_LAYERS {
        return Err(refuse(format!("it has more than {MAX_LAYERS} layers")));
    }
    let configuration: Configuration = blobs.document(&manifest.config)?;
    for layer in &manifest.layers {
        blobs.verify(layer)?;
        let (at, length) = blobs.place(layer)?;
        let mut file = blobs.archive.try_clone()?;
        file.seek(SeekFrom::Start(at))?;
        let mut magic = vec![];
        file.by_ref().take(length.min(4)).read_to_end(&mut magic)?;
        file.seek(SeekFrom::Start(at))?;
        layer::apply(compression::decoder(&magic, file.take(length))?, budget)?;
    }
    program(configuration.config.unwrap_or_default())
}

fn program(run: Run) -> io::Result<Program> {
    let arguments: Vec<String> =
        run.entrypoint.unwrap_or_default().into_iter().chain(run.cmd.unwrap_or_default()).collect();
    let mut environment = run.env.unwrap_or_default();
    if !environment.iter().any(|variable| variable.starts_with("PATH=")) {
        environment.push(DEFAULT_PATH.to_owned());
    }
    let Some(first) = arguments.first() else { return plain(Some(environment)) };
    let is_init = Path::new(first).file_name().is_some_and(|name| name == "init" || name == "systemd");
    let folder = run.working_dir.filter(|folder| !folder.is_empty()).unwrap_or_else(|| "/".to_owned());
    let base = if is_init {
        let real = std::fs::canonicalize(first).unwrap_or_default();
        Program::init(first, &real.to_string_lossy())
    } else {
        Program::shell(&[])
    };
    let stop_signal = match &run.stop_signal {
        Some(name) if !name.is_empty() => {
            signal(name).ok_or_else(|| refuse(format!("it is stopped by {name:?}, which is no signal")))?
        }
        _ if is_init => base.stop_signal,
        _ => nix::libc::SIGTERM,
    };
    let (uid, gid, groups) = account::resolve(run.user.as_deref().unwrap_or_default())?;
    Program { arguments, environment, folder, uid, gid, groups, stop_signal, is_init }.check().map_err(refuse)
}

impl Blobs {
    fn new(archive: File) -> io::Result<Self> {
        let mut places = HashMap::new();
        let mut reader = Archive::new(archive.try_clone()?);
        for entry in reader.entries_with_seek()? {
            let entry = entry?;
            if places.len() >= MAX_BLOBS {
                return Err(refuse("the layout holds too many files"));
            }
            if entry.header().entry_type().is_file() {
                let name = entry.path_bytes();
                let name = Path::new(std::ffi::OsStr::from_bytes(&name));
                let name = name.strip_prefix("./").unwrap_or(name).to_string_lossy().into_owned();
                places.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Self { archive, places })
    }

    /// The manifest for this machine.
    fn manifest(&mut self) -> io::Result<Manifest> {
        let Some(&place) = self.places.get("index.json") else {
            return Err(refuse("it is no OCI image layout: it has no index.json"));
        };
        let mut index: Index = parse(&self.read(place)?)?;
        for _ in 0..MAX_DEPTH {
            let descriptor = choose(&index.manifests)?;
            if !descriptor.media_type.contains("index") && !descriptor.media_type.contains("manifest.list") {
                return self.document(&descriptor);
            }
            index = self.document(&descriptor)?;
        }
        Err(refuse("its indexes refer to each other too often"))
    }

    fn place(&self, descriptor: &Descriptor) -> io::Result<(u64, u64)> {
        let name = descriptor.digest.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
        let name = name.ok_or_else(|| refuse(format!("a digest is {:?}, not sha256", descriptor.digest)))?;
        let found = self.places.get(&format!("blobs/sha256/{name}")).copied();
        found.ok_or_else(|| refuse(format!("the blob {} is missing", descriptor.digest)))
    }

    fn read(&mut self, (at, length): (u64, u64)) -> io::Result<Vec<u8>> {
        if length > MAX_DOCUMENT {
            return Err(refuse("one of its documents is too large"));
        }
        let mut bytes = vec![];
        self.archive.seek(SeekFrom::Start(at))?;
        self.archive.by_ref().take(length).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn document<T: DeserializeOwned>(&mut self, descriptor: &Descriptor) -> io::Result<T> {
        self.verify(descriptor)?;
        let place = self.place(descriptor)?;
        parse(&self.read(place)?)
    }

    /// Whether a blob is what its name says.
    fn verify(&mut self, descriptor: &Descriptor) -> io::Result<()> {
        let (at, length) = self.place(descriptor)?;
        self.archive.seek(SeekFrom::Start(at))?;
        let mut hash = Sha256::new();
        let mut rest = self.archive.by_ref().take(length);
        let mut piece = vec![0; 128 << 10];
        loop {
            match rest.read(&mut piece)? {
                0 => break,
                count => hash.update(piece.get(..count).unwrap_or_default()),
            }
        }
        if descriptor.digest != format!("sha256:{}", hex::encode(hash.finalize())) {
            return Err(refuse(format!("the blob {} is damaged", descriptor.digest)));
        }
        Ok(())
    }
}

/// The one for this machine, or the only one.
fn choose(manifests: &[Descriptor]) -> io::Result<Descriptor> {
    let here = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let fits = |platform: &Platform| platform.architecture == here && platform.os == "linux";
    let found = manifests.iter().find(|descriptor| descriptor.platform.as_ref().is_some_and(fits));
    let only = || match manifests {
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    };
    found.or_else(only).cloned().ok_or_else(|| refuse(format!("it has no image for linux/{here}")))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    serde_json::from_slice(bytes).map_err(|error| refuse(format!("one of its documents: {error}")))
}
