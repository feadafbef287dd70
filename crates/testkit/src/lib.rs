//! A whole cloud in a process, for tests.
