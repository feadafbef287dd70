//! `nephos image build`: make an image on this machine and upload it.

use std::path::Path;

use clap::{Arg, Command};
use nephos_cli::{
    Invocation, LocalCommand,
    client::{Client, Upload},
};
use nephos_image_build::{Options, Progress, Release};
use nephos_ops::image::{CreateImage, Image, ImageFormat, UploadImage};
use nephos_types::{Error, ErrorKind, Name, Result};

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: Some("image"),
        command: Command::new("build")
            .about("Build an image on this machine and upload it")
            .arg(
                Arg::new("what")
                    .required(true)
                    .value_parser(["micro", "micro-container", "debian"])
                    .help(
                        "What to build: micro, a small Linux guest; micro-container, the same as a container; or debian, \
                         a full Debian (takes root)",
                    ),
            )
            .arg(Arg::new("name").long("name").value_name("NAME").help("Name of the image [default: what is built]"))
            .arg(Arg::new("suite").long("suite").value_name("SUITE").help(
                "Which Debian: bookworm, trixie, … [default: this machine's, or trixie]",
            ))
            .arg(Arg::new("mirror").long("mirror").value_name("URL").help(
                "Where a Debian's packages come from [default: http://deb.debian.org/debian]",
            ))
            .after_help(
                "Images are made of the distribution's own packages.\n\
                 The micro guest boots to a login within seconds: root with the password nephos on the console, or the\n\
                 server's key pair by SSH. The micro container has the same login on its console and no SSH. Debian has systemd, cloud-init, the QEMU guest agent and an SSH server; log in\n\
                 as the user debian with the server's key pair. It is built by mmdebstrap (apt-get install mmdebstrap).\n\n\
                 Examples:\n  nephos image build micro\n  sudo nephos image build debian --suite trixie",
            ),
        run: |invocation: &Invocation<'_>| {
            let text = |name: &str| invocation.matches.get_one::<String>(name).cloned();
            let what = text("what").unwrap_or_default();
            let name: Name = text("name").as_deref().unwrap_or(&what).parse()?;
            let quiet = invocation.quiet();
            let show = |progress: Progress| {
                if !quiet {
                    eprintln!("  {}/{} {}", progress.step, progress.steps, progress.what);
                }
            };
            let (file, format, flavor) = match what.as_str() {
                "debian" => {
                    let release = Release { suite: text("suite"), mirror: text("mirror") };
                    (nephos_image_build::debian(&Options::default(), &release, show)?, ImageFormat::Qcow2, "small")
                }
                "micro-container" => {
                    (nephos_image_build::micro_container(&Options::default(), show)?, ImageFormat::Tar, "tiny")
                }
                _ => (nephos_image_build::micro(&Options::default(), show)?.disk, ImageFormat::Qcow2, "tiny"),
            };
            let made = invocation.block_on(async { upload(&invocation.client().await?, name, format, &file).await })?;
            println!("{}", made.id);
            if !quiet {
                eprintln!(
                    "✔ image {} is active; try: nephos server create hello --image {} --flavor {flavor}",
                    made.name, made.name
                );
            }
            Ok(0)
        },
    }
}

async fn upload(client: &Client, name: Name, format: ImageFormat, file: &Path) -> Result<Image> {
    let request = |visibility: &str| -> Result<CreateImage> {
        serde_json::from_value(serde_json::json!({ "name": name, "format": format, "visibility": visibility }))
            .map_err(|error| Error::internal("the request for the image does not fit", error))
    };
    // For everybody if one may, for one's own project otherwise.
    let made = match client.call(request("public")?).await {
        Err(error) if error.kind == ErrorKind::Forbidden => client.call(request("private")?).await?,
        other => other?,
    };
    let upload = Upload::file(file).await?;
    client.call_upload(UploadImage { image: made.id.to_string().parse()?, sha256: None }, upload).await
}
