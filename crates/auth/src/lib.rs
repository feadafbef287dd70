//! Credentials, tokens, policy.
