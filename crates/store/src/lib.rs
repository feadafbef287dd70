//! The cloud resource database: typed records, committed in transactions that are values, read from memory.
//!
//! [`Store`] is the handle. Reads ([`Store::get`], [`Store::list`], [`Store::owner`], [`Store::counter`]) come from an
//! in-memory image and never touch the disk. A [`Transaction`] says what must still be so and what shall change; one
//! committer folds all that wait into one write to the [`Backend`], so that one disk flush pays for many callers.
//!
//! Invariants:
//! - a transaction applies whole or not at all, and what [`Store::commit`] acknowledged is on disk;
//! - a commit is visible to reads before `commit` returns;
//! - every written record gets its own [`Revision`]; revisions are gapless and totally ordered, the change log and
//!   [`Watch`] follow them;
//! - what is in the image went through its stored form, so a record that could not be read back is refused, not kept.
//!
//! Must not know: any concrete kind of resource, operation, protocol or policy.

pub mod backend;
mod change;
mod commit;
mod error;
mod follow;
mod image;
mod kind;
mod postgres;
mod query;
mod record;
mod sqlite;
mod stats;
mod store;
mod stored;
mod table;
mod transaction;
mod transfer;
mod verify;
mod watch;

pub use backend::{Backend, Bound, Revision};
pub use change::{Action, Author, Change, ChangeQuery};
pub use commit::Committed;
pub use error::{CommitError, WatchError};
pub use kind::{Kind, Kinds};
pub use postgres::{Occupied, Postgres, Turn};
pub use query::Query;
pub use record::{Draft, Edit, Meta, Record};
pub use sqlite::{FileSummary, Sqlite};
pub use stats::Stats;
pub use store::{Options, Store};
pub use transaction::{Transaction, limits};
pub use transfer::Summary as TransferSummary;
pub use verify::Report;
pub use watch::Watch;
