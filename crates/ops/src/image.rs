//! Operations on disk images.
