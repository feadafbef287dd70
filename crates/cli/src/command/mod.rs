//! Commands: the tree derived from the operation table, and from a parsed command line back to an operation's input.

pub(crate) mod field;
pub(crate) mod global;
pub(crate) mod leaf;
pub(crate) mod quantity;
pub(crate) mod tree;
