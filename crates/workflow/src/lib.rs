//! The durable workflow engine; its storage is a trait.
