//! The cloud resource database.
