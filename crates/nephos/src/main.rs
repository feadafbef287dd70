//! The `nephos` binary.

fn main() {}
