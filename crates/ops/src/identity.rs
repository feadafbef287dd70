//! Operations on domains, projects, users, groups, roles, tokens, credentials.
