//! What drivers need of the Linux machine that they run guests on: processes that outlive them, folders that one of them
//! holds at a time, files that are replaced as a whole, network namespaces, work that is not cut short, and terminals that several people
//! look at.
//!
//! Invariants: a [`process::Identity`] never means another process; a file that [`files::replace`] writes has the old
//! content or the new one, whatever happens.
//!
//! Must not know: what a guest is, or what runs it.

pub mod files;
mod lock;
pub mod netns;
pub mod process;
pub mod terminal;
pub mod work;

pub use lock::lock;
