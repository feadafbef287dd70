//! `nephos image build micro`: make the small guest on this machine and upload it.

use clap::{Arg, Command};
use nephos_cli::{
    Invocation, LocalCommand,
    client::{Client, Upload},
};
use nephos_image_build::{MicroImage, Options};
use nephos_ops::image::{CreateImage, Image, UploadImage};
use nephos_types::{Error, ErrorKind, Name, Result};

pub(crate) fn command() -> LocalCommand {
    LocalCommand {
        noun: Some("image"),
        command: Command::new("build")
            .about("Build an image on this machine and upload it")
            .arg(
                Arg::new("what")
                    .required(true)
                    .value_parser(["micro"])
                    .help("What to build: micro, a small Linux guest"),
            )
            .arg(Arg::new("name").long("name").value_name("NAME").help("Name of the image [default: micro]"))
            .after_help(
                "The micro guest is made of the distribution's own packages. It boots to a login within seconds:\n\
                 root with the password nephos on the console, or the server's key pair by SSH.\n\n\
                 Example:\n  nephos image build micro",
            ),
        run: |invocation: &Invocation<'_>| {
            let name: Name = invocation.matches.get_one::<String>("name").map_or("micro", String::as_str).parse()?;
            let quiet = invocation.quiet();
            let image = nephos_image_build::micro(&Options::default(), |progress| {
                if !quiet {
                    eprintln!("  {}/{} {}", progress.step, progress.steps, progress.what);
                }
            })?;
            let made = invocation.block_on(async { upload(&invocation.client().await?, name, &image).await })?;
            println!("{}", made.id);
            if !quiet {
                eprintln!(
                    "✔ image {} is active; try: nephos server create hello --image {} --flavor tiny",
                    made.name, made.name
                );
            }
            Ok(0)
        },
    }
}

async fn upload(client: &Client, name: Name, micro: &MicroImage) -> Result<Image> {
    let request = |visibility: &str| -> Result<CreateImage> {
        serde_json::from_value(serde_json::json!({ "name": name, "format": "qcow2", "visibility": visibility }))
            .map_err(|error| Error::internal("the request for the image does not fit", error))
    };
    // For everybody if one may, for one's own project otherwise.
    let made = match client.call(request("public")?).await {
        Err(error) if error.kind == ErrorKind::Forbidden => client.call(request("private")?).await?,
        other => other?,
    };
    let upload = Upload::file(&micro.disk).await?;
    client.call_upload(UploadImage { image: made.id.to_string().parse()?, sha256: None }, upload).await
}
