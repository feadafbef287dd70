//! The cloud's handlers, called as front ends call them, on a database in a temporary folder.

mod core;
mod identity;
