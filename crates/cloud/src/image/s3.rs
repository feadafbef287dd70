//! Images in a bucket of any S3.
//!
//! Requests are signed by `rusty-s3` (query signatures, unsigned payload) and sent as imports are. An image up to a
//! part's size is one PUT, a larger one a multipart upload, which appears when it is completed and not before. What a
//! crash left of one is not an object; a rule of the bucket should end it (`AbortIncompleteMultipartUpload`).

use std::{io::SeekFrom, ops::Range, path::PathBuf, time::Duration};

use futures_util::{StreamExt, TryStreamExt};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use nephos_ops::ByteStream;
use nephos_types::{Error, ErrorKind, Result, Secret};
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle, actions};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::{
    fetch::client,
    files::{FileName, ImageStore, failure},
    spool::Spool,
};
use crate::core::BoxFuture;

/// Where the bucket is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://s3.example.org`
    pub endpoint: String,
    /// The bucket's name; it exists.
    pub bucket: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Begins the names of all objects.
    pub prefix: String,
    /// Whether the bucket is in the URL's path instead of its host name.
    pub path_style: bool,
    /// Who asks.
    pub access_key: String,
    /// And what proves it.
    pub secret_key: Secret,
}

/// Images in a bucket.
pub struct S3Images {
    spool: Spool,
    bucket: Bucket,
    credentials: Credentials,
    prefix: String,
    /// Bytes in a part.
    part: u64,
    /// Names asked for at a time.
    page: usize,
}

/// A part of a multipart upload, unless that would make too many of them.
const PART: u64 = 64 << 20;
const MAX_PARTS: u64 = 10_000;
/// How long a signature holds; looked at when a request begins.
const SIGNED_FOR: Duration = Duration::from_secs(900);
const CHUNK: usize = 256 << 10;
/// What is read of an answer that is not an image.
const MAX_ANSWER: usize = 4 << 20;
/// Before a request is repeated that did not get through.
const PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(5)];

type Body = UnsyncBoxBody<bytes::Bytes, std::io::Error>;

/// A file, from an offset, so many bytes of it.
#[derive(Clone)]
struct Piece(PathBuf, u64, u64);

/// What a request carries.
#[derive(Clone)]
enum Payload {
    Nothing,
    Text(String),
    Piece(Piece),
}

impl S3Images {
    /// Opens a bucket; files are put together in `spool` before.
    ///
    /// # Errors
    /// If the settings name no bucket.
    pub fn new(spool: Spool, settings: &Settings) -> Result<Self> {
        let refused = |why: String| Error::invalid("config", "`image_s3` cannot be used").detail(why);
        let endpoint = settings.endpoint.parse().map_err(|error| refused(format!("endpoint: {error}")))?;
        let style = if settings.path_style { UrlStyle::Path } else { UrlStyle::VirtualHost };
        let bucket = Bucket::new(endpoint, style, settings.bucket.clone(), settings.region.clone())
            .map_err(|error| refused(format!("bucket: {error}")))?;
        let credentials = Credentials::new(settings.access_key.clone(), settings.secret_key.reveal().to_owned());
        Ok(Self { spool, bucket, credentials, prefix: settings.prefix.clone(), part: PART, page: 1000 })
    }

    fn key(&self, name: &FileName) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Sends a request, again if it did not get through, and answers what is no refusal. Everything that is asked here
    /// can be asked twice.
    async fn call<'a, A: S3Action<'a>>(
        &self,
        action: &A,
        payload: Payload,
        range: Option<&Range<u64>>,
    ) -> Result<Response<Incoming>> {
        let mut pauses = PAUSES.iter();
        loop {
            let method = match A::METHOD {
                rusty_s3::Method::Head => Method::HEAD,
                rusty_s3::Method::Get => Method::GET,
                rusty_s3::Method::Post => Method::POST,
                rusty_s3::Method::Put => Method::PUT,
                rusty_s3::Method::Delete => Method::DELETE,
            };
            let url = action.sign(SIGNED_FOR);
            let answered = send(method, url.as_str(), payload.clone(), range).await;
            match (answered, pauses.next()) {
                (Err(error), Some(pause)) if error.kind == ErrorKind::Unavailable => {
                    tracing::debug!(error = %error.chain(), "the image store is asked again");
                    tokio::time::sleep(*pause).await;
                }
                (answered, _) => return answered,
            }
        }
    }

    /// As text.
    async fn text<'a, A: S3Action<'a>>(&self, action: &A, payload: Payload) -> Result<String> {
        let body = Limited::new(self.call(action, payload, None).await?.into_body(), MAX_ANSWER);
        let bytes = body.collect().await.map_err(|error| unavailable(format!("its answer broke off: {error}")))?;
        String::from_utf8(bytes.to_bytes().into()).map_err(|error| unavailable(error.to_string()))
    }

    async fn store(&self, name: &FileName) -> Result<()> {
        let path = self.spool.path(name);
        let size = match tokio::fs::metadata(&path).await {
            Ok(about) => about.len(),
            // Sent already, before a crash.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = self.key(name);
                let head = self.bucket.head_object(Some(&self.credentials), &key);
                return self.call(&head, Payload::Nothing, None).await.map(drop);
            }
            Err(error) => return Err(failure("An image's file cannot be read", &path, error)),
        };
        let key = self.key(name);
        if size <= self.part {
            let put = self.bucket.put_object(Some(&self.credentials), &key);
            self.call(&put, Payload::Piece(Piece(path.clone(), 0, size)), None).await?;
        } else {
            self.store_in_parts(&key, &path, size).await?;
        }
        match tokio::fs::remove_file(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(failure("An image's file cannot be removed", &path, error))
            }
            _ => Ok(()),
        }
    }

    async fn store_in_parts(&self, key: &str, path: &std::path::Path, size: u64) -> Result<()> {
        let credentials = Some(&self.credentials);
        let create = self.bucket.create_multipart_upload(credentials, key);
        let answer = self.text(&create, Payload::Nothing).await?;
        let upload = actions::CreateMultipartUpload::parse_response(&answer).map_err(|error| odd(&error))?;
        let upload = upload.upload_id();
        let sent = async {
            let part = self.part.max(size.div_ceil(MAX_PARTS));
            let mut tags = vec![];
            for (number, offset) in (1_u16..).zip((0..size).step_by(usize::try_from(part).unwrap_or(usize::MAX))) {
                let piece = Piece(path.to_owned(), offset, part.min(size - offset));
                let put = self.bucket.upload_part(credentials, key, number, upload);
                let answer = self.call(&put, Payload::Piece(piece), None).await?;
                let tag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
                tags.push(tag.ok_or_else(|| odd(&"a part was taken without an ETag"))?.to_owned());
            }
            let complete =
                self.bucket.complete_multipart_upload(credentials, key, upload, tags.iter().map(String::as_str));
            let list = complete.clone().body();
            let answer = self.text(&complete, Payload::Text(list)).await?;
            // A failure after the answer has begun is told in it, under a status of success.
            actions::CompleteMultipartUploadResponse::parse(&answer).map(drop).map_err(|error| odd(&error))
        };
        let sent = sent.await;
        if sent.is_err() {
            let abort = self.bucket.abort_multipart_upload(credentials, key, upload);
            if let Err(error) = self.call(&abort, Payload::Nothing, None).await {
                tracing::warn!(error = %error.chain(), "what was sent of an image is still in the image store");
            }
        }
        sent
    }
}

impl ImageStore for S3Images {
    fn spool(&self) -> &Spool {
        &self.spool
    }

    fn publish<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>> {
        Box::pin(self.store(name))
    }

    fn get<'a>(&'a self, name: &'a FileName, range: Range<u64>) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            if range.is_empty() {
                return Ok(Box::pin(futures_util::stream::empty()) as ByteStream);
            }
            let key = self.key(name);
            let get = self.bucket.get_object(Some(&self.credentials), &key);
            let answer = self.call(&get, Payload::Nothing, Some(&range)).await?;
            if answer.status() != StatusCode::PARTIAL_CONTENT {
                return Err(odd(&"it does not know ranges"));
            }
            Ok(Box::pin(answer.into_body().into_data_stream().map_err(std::io::Error::other)) as ByteStream)
        })
    }

    fn holds<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<bool>> {
        Box::pin(async move {
            let key = self.key(name);
            let head = self.bucket.head_object(Some(&self.credentials), &key);
            match self.call(&head, Payload::Nothing, None).await {
                Err(error) if error.code == "image_file_missing" => Ok(false),
                answer => answer.map(|_| true),
            }
        })
    }

    fn remove<'a>(&'a self, name: &'a FileName) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let key = self.key(name);
            let delete = self.bucket.delete_object(Some(&self.credentials), &key);
            match self.call(&delete, Payload::Nothing, None).await {
                Err(error) if error.code == "image_file_missing" => Ok(()),
                answer => answer.map(drop),
            }
        })
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<FileName>>> {
        Box::pin(async move {
            let mut names = vec![];
            let mut next: Option<String> = None;
            loop {
                let mut list = self.bucket.list_objects_v2(Some(&self.credentials));
                list.with_prefix(self.prefix.as_str());
                list.with_max_keys(self.page);
                if let Some(next) = &next {
                    list.with_continuation_token(next.as_str());
                }
                let answer = self.text(&list, Payload::Nothing).await?;
                let found = actions::ListObjectsV2::parse_response(&answer).map_err(|error| odd(&error))?;
                // What is not ours is passed over.
                let ours =
                    found.contents.iter().filter_map(|object| object.key.strip_prefix(&self.prefix)?.parse().ok());
                names.extend(ours);
                next = found.next_continuation_token;
                if next.is_none() {
                    return Ok(names);
                }
            }
        })
    }

    fn path(&self, _: &FileName) -> Option<PathBuf> {
        None
    }
}

async fn body_of(payload: Payload) -> Result<(Body, u64)> {
    let whole = |text: String| {
        let length = text.len() as u64;
        (http_body_util::Full::from(text).map_err(|never| match never {}).boxed_unsync(), length)
    };
    Ok(match payload {
        Payload::Nothing => whole(String::new()),
        Payload::Text(text) => whole(text),
        Payload::Piece(Piece(path, offset, length)) => {
            let failed = |error| failure("An image's file cannot be read", &path, error);
            let mut file = tokio::fs::File::open(&path).await.map_err(failed)?;
            file.seek(SeekFrom::Start(offset)).await.map_err(failed)?;
            let frames = ReaderStream::with_capacity(file.take(length), CHUNK).map_ok(Frame::data);
            (BodyExt::boxed_unsync(StreamBody::new(frames.boxed())), length)
        }
    })
}

async fn send(method: Method, url: &str, payload: Payload, range: Option<&Range<u64>>) -> Result<Response<Incoming>> {
    let unfit = |why: String| Error::internal("The image store cannot be asked", std::io::Error::other(why));
    let uri: Uri = url.parse().map_err(|error: http::uri::InvalidUri| unfit(error.to_string()))?;
    let (host, port, secure) = client::target(&uri).ok_or_else(|| unfit("no URL of HTTP".to_owned()))?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let (body, length) = body_of(payload).await?;
    let carries = method == Method::PUT || method == Method::POST;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, authority);
    if carries {
        request = request.header(header::CONTENT_LENGTH, length);
    }
    if let Some(range) = range {
        request = request.header(header::RANGE, format!("bytes={}-{}", range.start, range.end.saturating_sub(1)));
    }
    let request = request.body(body).map_err(|error| unfit(error.to_string()))?;
    // The operator has named it, so it may be anywhere.
    let answer = client::send(request, (&host, port, secure), |_| true)
        .await
        .map_err(|error| unavailable(error.detail.clone()).source(error))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
    let said = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    let code = said.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>")).map_or("", |(code, _)| code);
    Err(match status {
        StatusCode::NOT_FOUND => {
            Error::new(ErrorKind::Internal, "image_file_missing", "The image's content is not in the image store")
                .detail(format!("{status} {code}"))
        }
        _ if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            unavailable(format!("{status} {code}"))
        }
        _ => {
            tracing::error!(%status, code, "the image store refuses");
            Error::new(ErrorKind::Internal, "image_store_refused", "The image store refuses")
                .detail(format!("{status} {code}"))
                .next("an operator looks at `image_s3` in nephos.toml", None)
        }
    })
}

fn unavailable(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, "image_store_unavailable", "The image store cannot be reached").detail(detail)
}

fn odd(why: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorKind::Internal, "image_store_odd", "The image store does not answer as an S3 does")
        .detail(why.to_string())
}

#[cfg(test)]
mod tests;
