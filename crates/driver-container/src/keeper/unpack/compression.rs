//! Recognises gzip and zstd by their first bytes.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// The first bytes of a file, which is read from its beginning afterwards.
fn magic(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = vec![];
    file.rewind()?;
    file.by_ref().take(4).read_to_end(&mut bytes)?;
    file.rewind()?;
    Ok(bytes)
}

pub(crate) fn is_compressed(file: &mut File) -> io::Result<bool> {
    let magic = magic(file)?;
    Ok(magic.starts_with(GZIP) || magic.starts_with(ZSTD))
}

/// The content of a file from its beginning.
pub(crate) fn reader(mut file: File) -> io::Result<Box<dyn Read>> {
    let magic = magic(&mut file)?;
    decoder(&magic, file)
}

/// The content of a stream that begins with these bytes (which it yields again).
pub(crate) fn decoder(magic: &[u8], stream: impl Read + 'static) -> io::Result<Box<dyn Read>> {
    let stream = BufReader::with_capacity(128 << 10, stream);
    if magic.starts_with(GZIP) {
        Ok(Box::new(MultiGzDecoder::new(stream)))
    } else if magic.starts_with(ZSTD) {
        Ok(Box::new(Frames { decoder: Some(StreamingDecoder::new(stream).map_err(io::Error::other)?) }))
    } else {
        Ok(Box::new(stream))
    }
}

/// A zstd file is any number of frames.
struct Frames<R: io::BufRead> {
    decoder: Option<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>,
}

impl<R: io::BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(decoder) = &mut self.decoder else { return Ok(0) };
            let count = decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let Some(mut rest) = self.decoder.take().map(StreamingDecoder::into_inner) else { return Ok(0) };
            if rest.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.decoder = Some(StreamingDecoder::new(rest).map_err(io::Error::other)?);
        }
    }
}
