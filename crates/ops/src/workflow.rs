//! Operations on workflows and schedules.
