//! Paging: lists are ordered, bounded, and continue after a marker that stays valid while records come and go.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Number;

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PageRequest {
    /// At most this many items: 1 to 1000, 100 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Number<1, 1000>>,
    /// Continue after this id (the `next` of the page before).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255))]
    pub after: Option<String>,
}

impl PageRequest {
    /// What a caller who names no limit gets.
    pub const DEFAULT_LIMIT: usize = 100;

    /// The effective limit.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit.map_or(Self::DEFAULT_LIMIT, |limit| limit.get() as usize)
    }
}

/// One part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Page<T> {
    /// The items, in the list's order.
    pub items: Vec<T>,
    /// Pass as `after` to get the next part; absent when this is the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl<T> Page<T> {
    /// The same page with every item translated.
    pub fn map<U>(self, f: impl FnMut(T) -> U) -> Page<U> {
        Page { items: self.items.into_iter().map(f).collect(), next: self.next }
    }
}
