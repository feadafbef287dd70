//! The node protocol over HTTP, both sides of it, against a control plane that only notes what it is asked.

#![allow(clippy::unwrap_used, reason = "in a test an unexpected error is the finding")]

mod fake;
mod messages;
mod tls;
