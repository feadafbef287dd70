//! The node: connection, reconcile, image cache, drivers.
