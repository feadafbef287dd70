//! Looks at an image's bytes as they pass: what they are, how many, and their checksums.

use md5::{Digest as _, Md5};
use nephos_ops::image::ImageFormat;
use nephos_types::{Bytes, Error, ErrorKind, Result};
use ring::digest;

use super::{
    files::FileName,
    format::{HEAD, Recognised, Source, check_beginning, recognise},
    kind::Content,
};

/// Sees every byte of an upload once, in order. Memory: [`HEAD`].
pub struct Inspector {
    claim: Option<ImageFormat>,
    most: u64,
    head: Vec<u8>,
    judged: bool,
    size: u64,
    sha256: digest::Context,
    md5: Md5,
    wanted_sha256: Option<String>,
}

impl Inspector {
    /// For content of at most `most` bytes, of a format and checksum if those are known.
    #[must_use]
    pub fn new(claim: Option<ImageFormat>, sha256: Option<String>, most: u64) -> Self {
        Self {
            claim,
            most,
            head: vec![],
            judged: false,
            size: 0,
            sha256: digest::Context::new(&digest::SHA256),
            md5: Md5::new(),
            wanted_sha256: sha256,
        }
    }

    /// The next bytes; an error says that the upload is not acceptable, as early as that can be known.
    pub fn chunk(&mut self, chunk: &[u8]) -> Result<()> {
        self.size = self.size.saturating_add(chunk.len() as u64);
        if self.size > self.most {
            return Err(too_large(self.most));
        }
        let missing = HEAD.saturating_sub(self.head.len());
        self.head.extend_from_slice(chunk.get(..missing).unwrap_or(chunk));
        if !self.judged && self.head.len() >= HEAD {
            self.judged = true;
            check_beginning(&self.head, self.claim)?;
        }
        self.sha256.update(chunk);
        self.md5.update(chunk);
        Ok(())
    }

    /// How many bytes have passed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes have passed, and can be read again from `source`: the verdict.
    pub fn end(self, file: FileName, source: &dyn Source) -> Result<Content> {
        let Recognised { format, virtual_size } = recognise(source, self.claim)?;
        let sha256 = hex::encode(self.sha256.finish());
        check_sum(self.wanted_sha256.as_deref(), &sha256)?;
        let md5 = hex::encode(self.md5.finalize());
        Ok(Content { file, format, size: self.size, virtual_size, sha256, md5, frozen: None, store: None })
    }
}

/// The refusal of what is too large.
pub(super) fn too_large(most: u64) -> Error {
    Error::new(ErrorKind::TooLarge, "image_too_large", "The image is too large")
        .detail(format!("at most {} are accepted", Bytes(most)))
}

/// Refuses content with another checksum than the announced one.
pub(super) fn check_sum(wanted: Option<&str>, sha256: &str) -> Result<()> {
    match wanted {
        Some(wanted) if !wanted.eq_ignore_ascii_case(sha256) => {
            Err(Error::invalid("image_checksum_mismatch", "The content is not what was announced")
                .detail(format!("its SHA-256 is {sha256}, not {wanted}"))
                .next("upload again; if it happens again, the file itself is not the one it should be", None))
        }
        _ => Ok(()),
    }
}

/// Refuses what is no SHA-256.
pub(super) fn check_digits(sha256: Option<&str>) -> Result<()> {
    match sha256 {
        Some(sum) if sum.len() != 64 || !sum.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Err(Error::invalid("invalid_checksum", "Not a SHA-256").detail("64 hexadecimal digits are expected"))
        }
        _ => Ok(()),
    }
}
