//! What an image is, on any bytes: no panic, no more memory than its bounds, and a disk of no more than the limit.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nephos_cloud::image::format::{self, HEAD, MAX_VIRTUAL_SIZE, Source};
use nephos_ops::image::ImageFormat;

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn length(&self) -> std::io::Result<u64> {
        self.0.length()
    }
    fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<()> {
        self.0.read_exact_at(buffer, at)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = format::check_beginning(&bytes[..bytes.len().min(HEAD)], None);
    if let Ok(found) = format::recognise(&Bytes(bytes), None) {
        assert!(found.virtual_size <= MAX_VIRTUAL_SIZE);
        // What is claimed rightly changes nothing.
        assert_eq!(format::recognise(&Bytes(bytes), Some(found.format)).map(|found| found.format), Ok(found.format));
        if found.format == ImageFormat::Ova {
            format::appliance(&Bytes(bytes)).expect("what was recognised can be opened");
        }
    }
});
