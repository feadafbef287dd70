//! Operations on the cloud itself: version, backup, audit, events.
