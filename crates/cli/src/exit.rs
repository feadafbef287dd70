//! Exit codes: the one table. They are a public contract; `nephos help exit` prints it.

use nephos_types::{Error, ErrorKind};

use crate::client;

/// Done.
pub const DONE: u8 = 0;
/// The cloud, or what was started in it, failed.
pub const FAILED: u8 = 1;
/// The command line or an argument is wrong, or a confirmation is missing.
pub const USAGE: u8 = 2;
/// It does not exist, or the name fits several.
pub const NOT_FOUND: u8 = 3;
/// It exists already, is in the wrong state, or is protected.
pub const CONFLICT: u8 = 4;
/// Not logged in, or no longer.
pub const UNAUTHENTICATED: u8 = 5;
/// Logged in, but this is not allowed.
pub const FORBIDDEN: u8 = 6;
/// Waiting took too long; the work goes on.
pub const TIMED_OUT: u8 = 7;
/// The cloud cannot be reached.
pub const UNREACHABLE: u8 = 8;
/// Some of several targets failed.
pub const PARTIAL: u8 = 9;
/// With `--plan`: there would be changes.
pub const PLANNED: u8 = 10;
/// A quota, the capacity or a limit refuses.
pub const REFUSED: u8 = 11;
/// Interrupted by the keyboard.
pub const INTERRUPTED: u8 = 130;

/// Code and meaning, for the help.
pub(crate) const MEANINGS: [(u8, &str); 13] = [
    (DONE, "done"),
    (FAILED, "failed: the cloud, or a workflow in it, reported a failure"),
    (USAGE, "wrong usage, or a confirmation is missing (--yes)"),
    (NOT_FOUND, "not found, or the name fits several"),
    (CONFLICT, "conflict: it exists already, is in the wrong state, or is protected"),
    (UNAUTHENTICATED, "not logged in, or the login has expired"),
    (FORBIDDEN, "forbidden"),
    (TIMED_OUT, "timed out waiting; the work goes on"),
    (UNREACHABLE, "the cloud cannot be reached"),
    (PARTIAL, "partial: some of several targets failed"),
    (PLANNED, "with --plan: there would be changes"),
    (REFUSED, "a quota, the capacity or a limit refuses"),
    (INTERRUPTED, "interrupted; started work goes on (143: terminated)"),
];

/// The exit code for an error.
#[must_use]
pub fn code(error: &Error) -> u8 {
    if client::is_unreachable(error) {
        return UNREACHABLE;
    }
    // Which class an ambiguous name is put into differs between operations; to a script it is one thing.
    if error.code.starts_with("ambiguous") {
        return NOT_FOUND;
    }
    of_kind(error.kind)
}

const fn of_kind(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid | ErrorKind::MethodNotAllowed | ErrorKind::UnsupportedMedia => USAGE,
        ErrorKind::Unauthenticated => UNAUTHENTICATED,
        ErrorKind::Forbidden => FORBIDDEN,
        ErrorKind::NotFound => NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Precondition => CONFLICT,
        ErrorKind::TooLarge | ErrorKind::Quota | ErrorKind::Capacity | ErrorKind::RateLimited => REFUSED,
        ErrorKind::Timeout => TIMED_OUT,
        ErrorKind::Unsupported | ErrorKind::Unavailable | ErrorKind::Internal => FAILED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_code_of_the_convention() {
        let expected = [2, 5, 6, 3, 2, 4, 4, 11, 2, 11, 11, 11, 1, 1, 7, 1];
        for (kind, expected) in ErrorKind::ALL.into_iter().zip(expected) {
            assert_eq!(code(&Error::new(kind, "x", "y")), expected, "{kind:?}");
        }
        assert_eq!(code(&Error::conflict("ambiguous_name", "Two servers `web`")), NOT_FOUND);
    }

    #[test]
    fn every_code_is_explained() {
        for kind in ErrorKind::ALL {
            assert!(MEANINGS.iter().any(|(code, _)| *code == of_kind(kind)), "{kind:?}");
        }
    }
}
