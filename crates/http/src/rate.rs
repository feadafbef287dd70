//! Bounds on how often a caller may ask: one token bucket per caller.
//!
//! Kept as in the generic cell rate algorithm: one number per caller, the time at which its bucket will be full again.
//! The number of callers kept is bounded; when too many are active at once, the rest share one bucket.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use nephos_types::{Error, ErrorKind};

const SHARDS: usize = 16;
const CALLERS_PER_SHARD: usize = 4096;

/// How often: so many per second on average, and so many at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Per second, on average; at least 1.
    pub per_second: u32,
    /// At once; at least 1.
    pub burst: u32,
}

/// One token bucket per key.
pub struct Buckets<K> {
    interval: u64,
    tolerance: u64,
    epoch: Instant,
    hasher: RandomState,
    shards: Vec<Mutex<Shard<K>>>,
}

struct Shard<K> {
    full_at: HashMap<K, u64>,
    shared: u64,
    swept: u64,
}

impl<K: Hash + Eq> Buckets<K> {
    /// Full buckets with this rate.
    #[must_use]
    pub fn new(rate: Rate) -> Self {
        let interval = (1_000_000_000 / u64::from(rate.per_second.max(1))).max(1);
        Self {
            interval,
            tolerance: interval * u64::from(rate.burst.max(1)),
            epoch: Instant::now(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(Shard { full_at: HashMap::new(), shared: 0, swept: 0 })).collect(),
        }
    }

    /// Takes one token; if there is none, says how long until there is.
    pub fn take(&self, key: K) -> Result<(), Duration> {
        self.charge(key, self.now(), self.interval)
    }

    /// Whether there is a token, without taking it.
    pub fn check(&self, key: K) -> Result<(), Duration> {
        self.charge(key, self.now(), 0)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn charge(&self, key: K, now: u64, cost: u64) -> Result<(), Duration> {
        let index = self.hasher.hash_one(&key) as usize % SHARDS;
        let Some(shard) = self.shards.get(index) else { return Ok(()) };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let shard = &mut *shard;
        if cost == 0 && !shard.full_at.contains_key(&key) {
            return Ok(());
        }
        let crowded = shard.full_at.len() >= CALLERS_PER_SHARD && !shard.full_at.contains_key(&key);
        if crowded && now.saturating_sub(shard.swept) > 1_000_000_000 {
            shard.swept = now;
            // A full bucket says the same as no bucket.
            shard.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = if crowded && shard.full_at.len() >= CALLERS_PER_SHARD {
            &mut shard.shared
        } else {
            shard.full_at.entry(key).or_insert(0)
        };
        let missing = full_at.saturating_sub(now) + self.interval;
        if missing > self.tolerance {
            return Err(Duration::from_nanos(missing - self.tolerance));
        }
        *full_at = now.max(*full_at) + cost;
        Ok(())
    }
}

/// The rates of a [`Limiter`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Of requests without a valid login, per address.
    pub address: Rate,
    /// Of requests by one user.
    pub user: Rate,
}

impl Default for Rates {
    /// Far above what people and their tools do, and below what would keep others from being served.
    fn default() -> Self {
        Self { address: Rate { per_second: 5_000, burst: 10_000 }, user: Rate { per_second: 100_000, burst: 200_000 } }
    }
}

/// The bounds that all front ends share: by address before login, by user after.
pub struct Limiter {
    addresses: Buckets<IpAddr>,
    users: Buckets<u64>,
}

impl Limiter {
    /// With these rates.
    #[must_use]
    pub fn new(rates: Rates) -> Self {
        Self { addresses: Buckets::new(rates.address), users: Buckets::new(rates.user) }
    }

    /// Before looking at credentials: refuses an address that has used up its requests without a valid login. Takes
    /// nothing, so that users who share an address do not pay for each other.
    pub fn check(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        address.map_or(Ok(()), |address| self.addresses.check(party(address)))
    }

    /// Charges a request without a valid login to its address. What comes from inside the process is free.
    pub fn anonymous(&self, address: Option<IpAddr>) -> Result<(), Duration> {
        address.map_or(Ok(()), |address| self.addresses.take(party(address)))
    }

    /// Charges a request to its user, given by the bits of the id.
    pub fn user(&self, user: u64) -> Result<(), Duration> {
        self.users.take(user)
    }
}

/// The part of an address that one party is assumed to hold: an IPv4 address, or an IPv6 network of 64 bits.
#[must_use]
pub fn party(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

/// The refusal of a caller who asked too often.
#[must_use]
pub fn refusal(wait: Duration) -> Error {
    Error::new(ErrorKind::RateLimited, "rate_limited", "Too many requests")
        .detail(format!("the next one is accepted in {:.1} s", wait.as_secs_f64().max(0.1)))
        .next("ask less often, or wait as the header `Retry-After` says", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_average_rate() {
        let buckets = Buckets::new(Rate { per_second: 10, burst: 3 });
        let take = |key, now| buckets.charge(key, now, buckets.interval);
        for _ in 0..3 {
            assert_eq!(take("a", SECOND), Ok(()));
        }
        assert_eq!(take("a", SECOND), Err(Duration::from_millis(100)));
        assert_eq!(take("b", SECOND), Ok(()), "another caller has its own bucket");
        assert_eq!(take("a", SECOND + SECOND / 10), Ok(()));
        assert!(take("a", SECOND + SECOND / 10).is_err());
        for _ in 0..3 {
            assert_eq!(take("a", 9 * SECOND), Ok(()), "a pause fills the bucket, no further than the burst");
        }
        assert!(take("a", 9 * SECOND).is_err());
    }

    #[test]
    fn looking_takes_nothing() {
        let buckets = Buckets::new(Rate { per_second: 1, burst: 1 });
        for _ in 0..5 {
            assert_eq!(buckets.charge("a", SECOND, 0), Ok(()));
        }
        assert_eq!(buckets.charge("a", SECOND, buckets.interval), Ok(()));
        assert!(buckets.charge("a", SECOND, 0).is_err());
    }

    #[test]
    fn the_number_of_callers_kept_is_bounded() {
        let buckets = Buckets::new(Rate { per_second: 1, burst: 1 });
        for key in 0..(SHARDS * CALLERS_PER_SHARD * 2) {
            let _ = buckets.charge(key, SECOND, buckets.interval);
        }
        let kept: usize = buckets.shards.iter().map(|shard| shard.lock().unwrap().full_at.len()).sum();
        assert!(kept <= SHARDS * CALLERS_PER_SHARD);
        assert!(buckets.charge(usize::MAX, SECOND, buckets.interval).is_err(), "newcomers share what is left");
        assert_eq!(buckets.charge(usize::MAX, 5 * SECOND, buckets.interval), Ok(()), "idle callers make room");
    }

    #[test]
    fn a_party_is_an_ipv4_address_or_an_ipv6_network() {
        let party = |text: &str| party(text.parse().unwrap()).to_string();
        assert_eq!(party("::ffff:10.0.0.1"), "10.0.0.1");
        assert_eq!(party("2001:db8:1:2:3::4"), "2001:db8:1:2::");
    }
}
