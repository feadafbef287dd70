//! Fetches what a URL names into a file: bounded in size, time and redirects, and only from where that is allowed.

pub mod address;
pub(crate) mod client;

use std::{fs::File, io::Write, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use nephos_types::{Error, ErrorKind, Result};
use tokio::time::timeout;

use self::{
    address::Allowed,
    client::{send, target, unreachable},
};
use super::inspect::too_large;

/// The most redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// How long the next bytes may take.
const IDLE: Duration = Duration::from_secs(60);
/// The longest URL.
const MAX_URL: usize = 2048;

fn invalid(detail: impl Into<String>) -> Error {
    Error::invalid("invalid_url", "Not a URL that an image can be fetched from").detail(detail)
}

/// The URL, if it may be one: before anything is begun.
pub(super) fn check(url: &str, has_checksum: bool) -> Result<Uri> {
    let uri: Uri = url.parse().map_err(|_| invalid("https://HOST/PATH is expected"))?;
    let (host, _, secure) = target(&uri).ok_or_else(|| invalid("https://HOST/PATH is expected"))?;
    if url.len() > MAX_URL || host.is_empty() {
        return Err(invalid(format!("it has a host, and at most {MAX_URL} characters")));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(invalid("names and passwords in it would show in lists and logs"));
    }
    if !secure && !has_checksum {
        return Err(invalid("over http anybody on the way could change the image")
            .next("use https, or say the checksum: --sha256", None));
    }
    Ok(uri)
}

/// Fetches into a file; `show` is told how much has come, and of how much.
pub(super) async fn download(
    url: &str,
    allowed: &Allowed,
    most: u64,
    file: File,
    show: impl Fn(u64, Option<u64>),
) -> Result<()> {
    // Whether a checksum is needed was decided when the import was asked for.
    let mut uri = check(url, true)?;
    for _ in 0..=MAX_REDIRECTS {
        let (host, port, secure) = target(&uri).ok_or_else(|| invalid("it leads to something else than http"))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let host_field = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
        let request = Request::get(path)
            .header(header::HOST, host_field)
            .header(header::ACCEPT_ENCODING, "identity")
            .header(header::USER_AGENT, concat!("nephos/", env!("CARGO_PKG_VERSION")))
            .body(Empty::<Bytes>::new())
            .map_err(|error| invalid(error.to_string()))?;
        let answer = send(request, (&host, port, secure), |address| allowed.permits(&host, address.ip())).await?;
        let status = answer.status();
        if status == StatusCode::OK {
            let field = |name: header::HeaderName| answer.headers().get(name).and_then(|value| value.to_str().ok());
            if field(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
                return Err(refused("the server sends it encoded in another way than it was asked for"));
            }
            let length = field(header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
            return receive(answer.into_body(), length, most, file, show).await;
        }
        if !status.is_redirection() {
            let error = format!("{host} answered {status}");
            return Err(if status.is_server_error() { unreachable(error) } else { refused(error) });
        }
        let next = answer.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
        let next = follow(&uri, next.unwrap_or_default()).ok_or_else(|| refused("a redirect leads nowhere"))?;
        if secure && next.scheme_str() != Some("https") {
            return Err(refused("a redirect leads from https to something else"));
        }
        uri = check(&next.to_string(), true)?;
    }
    Err(refused(format!("there are more than {MAX_REDIRECTS} redirects")))
}

fn refused(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "url_not_fetched", "The URL has no image").detail(detail)
}

/// Where a redirect leads (RFC 9110, 10.2.2): a URL, or a path on the same host.
fn follow(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with("//") {
        return format!("{}:{location}", from.scheme_str()?).parse().ok();
    }
    if location.starts_with('/') {
        return format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    location.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some())
}

async fn receive(
    mut body: hyper::body::Incoming,
    length: Option<u64>,
    most: u64,
    mut file: File,
    show: impl Fn(u64, Option<u64>),
) -> Result<()> {
    if length.is_some_and(|length| length > most) {
        return Err(too_large(most));
    }
    let mut done = 0_u64;
    loop {
        let frame = timeout(IDLE, body.frame()).await.map_err(|_| unreachable("nothing more comes"))?;
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| unreachable(format!("it broke off: {error}")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        done = done.saturating_add(chunk.len() as u64);
        if done > most {
            return Err(too_large(most));
        }
        file = write(file, chunk).await?;
        show(done, length);
    }
    if length.is_some_and(|length| length != done) {
        return Err(unreachable(format!("it broke off after {done} bytes")));
    }
    tokio::task::spawn_blocking(move || file.sync_all())
        .await
        .map_err(|error| Error::internal("A fetch ended", error))?
        .map_err(|error| Error::internal("The image cannot be written", error))
}

/// Writes off the runtime's threads.
async fn write(mut file: File, chunk: Bytes) -> Result<File> {
    tokio::task::spawn_blocking(move || file.write_all(&chunk).map(|()| file))
        .await
        .map_err(|error| Error::internal("A fetch ended", error))?
        .map_err(|error| super::files::failure("The image cannot be written", "the spool".as_ref(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_fetchable_url_is_refused_at_once() {
        for (url, checksum) in [
            ("", true),
            ("file:///etc/shadow", true),
            ("ftp://host/x", true),
            ("/etc/shadow", true),
            ("https://", true),
            ("https://user:password@host/x", true),
            ("http://host/x", false),
            ("gopher://127.0.0.1:25/x", true),
        ] {
            assert_eq!(check(url, checksum).unwrap_err().code, "invalid_url", "{url}");
        }
        check("https://host/x?y=z", false).unwrap();
        check("http://[2606:4700::1111]:8080/x", true).unwrap();
    }

    #[test]
    fn redirects_are_followed_as_http_says() {
        let from: Uri = "https://a.example:444/x/y".parse().unwrap();
        for (location, to) in [
            ("/z", Some("https://a.example:444/z")),
            ("//b.example/z", Some("https://b.example/z")),
            ("http://b.example/z", Some("http://b.example/z")),
            ("", None),
        ] {
            assert_eq!(follow(&from, location).map(|uri| uri.to_string()).as_deref(), to, "{location}");
        }
    }
}
