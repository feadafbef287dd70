//! Protocol tools without domain knowledge.
