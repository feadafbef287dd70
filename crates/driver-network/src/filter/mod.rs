//! Packet filters as data: what they should be follows from the plan alone, and what has to be done follows from two of
//! them. Only `commit` touches the kernel.

mod commit;
pub(crate) mod expression;
mod guests;
mod ruleset;

pub(crate) use commit::{Committed, commit, run};
pub(crate) use guests::{CONNECTION_CUT, guests, link_local};
pub(crate) use ruleset::{Chain, Family, Hook, Ruleset, Table};
