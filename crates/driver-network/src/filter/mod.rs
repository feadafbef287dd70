//! Packet filters as data: what they should be follows from the plan alone, and what has to be done follows from two of
//! them. Only `commit` touches the kernel.

mod commit;
mod expression;
mod guests;
mod ruleset;

pub(crate) use commit::{Committed, commit};
pub(crate) use guests::{guests, link_local};
pub(crate) use ruleset::{Chain, Family, Hook, Ruleset, Set, Table};
