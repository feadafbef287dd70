//! The words that every other crate uses: ids, names, quantities with units, the one error, paging.
//!
//! Invariants: a value of one of these types is valid; whatever arrives from outside is checked when it is
//! parsed, so nothing further in needs to check again. Everything a caller controls has a bound.
//!
//! Must not know: any operation, store, protocol or clock source other than the wall clock behind [`Timestamp`].

mod bounded;
mod error;
mod id;
mod name;
mod network;
mod page;
mod quantity;
mod secret;
mod time;

pub use bounded::{List, Number};
pub use error::{Error, ErrorKind, NextStep, Reason, Result};
pub use id::*;
pub use name::{Labels, Name, Reference, Text};
pub use network::{Cidr, MacAddress};
pub use page::{Page, PageRequest};
pub use quantity::{Bytes, MIB};
pub use secret::Secret;
pub use time::Timestamp;
