//! Operations on nodes and how they join.
