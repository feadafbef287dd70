//! The engine as its users see it, over the journal in memory.

mod engine;
mod world;
