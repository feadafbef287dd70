//! The store as its users see it, and its backend against the contract.

mod fixture;
mod reading;
