//! How much one guest may have open at once, so that none takes all.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Counts what guests have open. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Limit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    each: usize,
    all: usize,
    open: Mutex<(usize, HashMap<IpAddr, usize>)>,
}

/// One open thing; dropping it counts it out.
#[derive(Debug)]
pub(crate) struct Open {
    of: Limit,
    source: IpAddr,
}

impl Limit {
    /// Each source may have `each` open, all together `all`.
    pub(crate) fn new(each: usize, all: usize) -> Self {
        Self(Arc::new(Inner { each, all, open: Mutex::default() }))
    }

    /// Counts one more; `None`: there are enough.
    pub(crate) fn open(&self, source: IpAddr) -> Option<Open> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_source) = &mut *open;
        let of_source = by_source.get(&source).copied().unwrap_or(0);
        if *all >= self.0.all || of_source >= self.0.each {
            return None;
        }
        *all += 1;
        by_source.insert(source, of_source + 1);
        Some(Open { of: self.clone(), source })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut open = self.of.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, by_source) = &mut *open;
        *all = all.saturating_sub(1);
        if let Some(count) = by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_guest_does_not_take_all() {
        let limit = Limit::new(2, 3);
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let held = (limit.open(a).unwrap(), limit.open(a).unwrap());
        assert!(limit.open(a).is_none());
        let other = limit.open(b).unwrap();
        assert!(limit.open(b).is_none(), "all together");
        drop(held.0);
        assert!(limit.open(a).is_some());
        drop((held.1, other));
        assert!(limit.0.open.lock().unwrap().1.is_empty());
    }
}
