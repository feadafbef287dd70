//! Reading a stranger's file in a bounded way.

use std::{fs::File, io, os::unix::fs::FileExt};

use nephos_types::{Error, Result};

use super::broken;

/// The most bytes that are looked at to find out what a file is.
const BUDGET: u64 = 64 << 20;

/// Bytes that can be read at any place.
pub trait Source {
    /// How many there are.
    fn length(&self) -> io::Result<u64>;
    /// Fills the buffer with those from `at`; it lies within the length.
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()>;
}

impl Source for File {
    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, at)
    }
}

impl Source for [u8] {
    fn length(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        let start = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A part of a source (all of it, or one file of an archive), with what may still be read of it.
pub(super) struct Part<'a> {
    source: &'a dyn Source,
    start: u64,
    length: u64,
    budget: u64,
}

impl<'a> Part<'a> {
    pub(super) fn whole(source: &'a dyn Source) -> Result<Self> {
        let length = source.length().map_err(unreadable)?;
        Ok(Self { source, start: 0, length, budget: BUDGET })
    }

    /// The part from `start`, `length` bytes long; `None` if it does not lie within this one.
    pub(super) fn part(&self, start: u64, length: u64) -> Option<Self> {
        let within = start.checked_add(length).is_some_and(|end| end <= self.length);
        within.then(|| Self { source: self.source, start: self.start + start, length, budget: self.budget })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// `count` bytes from `at`; an error if the part ends before that.
    pub(super) fn bytes(&mut self, at: u64, count: usize) -> Result<Vec<u8>> {
        if at.checked_add(count as u64).is_none_or(|end| end > self.length) {
            return Err(cut_off());
        }
        self.budget = self
            .budget
            .checked_sub(count as u64)
            .ok_or_else(|| broken("finding out what it is would need to read too much of it"))?;
        let mut bytes = vec![0; count];
        self.source.read_exact_at(&mut bytes, self.start + at).map_err(unreadable)?;
        Ok(bytes)
    }

    /// At most `most` bytes from `at`: fewer at the end.
    pub(super) fn up_to(&mut self, at: u64, most: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.length.saturating_sub(at)).unwrap_or(usize::MAX);
        self.bytes(at.min(self.length), most.min(left))
    }
}

/// Fields of a header by their offset; all fail alike where the header ends too early.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

macro_rules! readers {
    ($($name:ident: $type:ty, $from:ident;)*) => {
        impl Fields<'_> {$(
            pub(super) fn $name(&self, at: usize) -> Result<$type> {
                let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk()).ok_or_else(cut_off)?;
                Ok(<$type>::$from(*bytes))
            }
        )*}
    };
}

readers! {
    le16: u16, from_le_bytes;
    le32: u32, from_le_bytes;
    le64: u64, from_le_bytes;
    be32: u32, from_be_bytes;
    be64: u64, from_be_bytes;
}

impl<'a> Fields<'a> {
    pub(super) fn slice(&self, at: usize, count: usize) -> Result<&'a [u8]> {
        at.checked_add(count).and_then(|end| self.0.get(at..end)).ok_or_else(cut_off)
    }
}

pub(super) fn cut_off() -> Error {
    broken("it is cut off").next("upload the whole file; this one seems to be cut off", None)
}

fn unreadable(error: io::Error) -> Error {
    Error::internal("An image's file cannot be read", error)
}
