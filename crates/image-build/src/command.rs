//! Running programs so that a failure says which one, with what, and why.

use std::{ffi::OsStr, io, path::Path, process::Command};

use nephos_types::{Error, ErrorKind, Result};

/// How much of what a failed program wrote is shown.
const SHOWN: usize = 2000;

/// Runs a program to its end and returns what it wrote to standard output.
pub(crate) fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let output = command.env("LC_ALL", "C").output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => missing(&name),
        _ => Error::internal(format!("`{name}` could not be started"), error),
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let mut text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.is_empty() {
        text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    }
    let end: String = text.chars().rev().take(SHOWN).collect::<Vec<_>>().into_iter().rev().collect();
    Err(Error::new(ErrorKind::Internal, "image_build_failed", format!("`{name}` failed while building the image"))
        .detail(format!("{}: {end}", output.status)))
}

/// The refusal for a program that is not installed.
fn missing(program: &str) -> Error {
    let package = match program {
        "qemu-img" => "qemu-utils",
        "apt-get" | "apt-cache" => "apt",
        "mmdebstrap" => "mmdebstrap",
        _ => "dpkg",
    };
    let error = Error::new(ErrorKind::Unsupported, "missing_program", format!("`{program}` is not installed"));
    if matches!(package, "qemu-utils" | "mmdebstrap") {
        let command = format!("apt-get install {package}");
        error
            .detail(format!("it comes with the package {package}"))
            .next(format!("install it: {command}"), Some(command))
    } else {
        error.detail("the micro guest is made of the distribution's own packages, which takes Debian, Ubuntu or another system with apt")
            .next("build it on Debian or Ubuntu and upload the result: nephos image create micro, nephos image upload micro", None)
    }
}

/// The error for something that could not be done to a file; tells what a caller can do about it.
pub(crate) fn io_error(what: &str, path: &Path, error: io::Error) -> Error {
    let title = format!("{what} {} failed", path.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::StorageFull | io::ErrorKind::ReadOnlyFilesystem => {
            Error::new(ErrorKind::Internal, "image_build_failed", title)
                .detail(error.to_string())
                .next("free space, or name another folder with XDG_CACHE_HOME and TMPDIR", None)
                .source(error)
        }
        _ => {
            let detail = error.to_string();
            Error::new(ErrorKind::Internal, "image_build_failed", title).detail(detail).source(error)
        }
    }
}

/// A command with arguments of one type.
pub(crate) fn command<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}
