//! Client of the native API; commands derived from the operation table.
