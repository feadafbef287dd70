//! Typed identifiers: one list of kinds, so that a volume's id cannot be passed where a server's is expected.
//!
//! Text form: `<kind>-<13 characters of Crockford base32>`, e.g. `srv-01hzx3k7q9m2c`. The 64 bits are 42 bits of
//! milliseconds since 2024-01-01 and 22 random bits, so ids sort by creation (strictly, within a process), and lists
//! ordered by id page stably. 64 bits were chosen because the identifiers of the protocols we speak can carry them both
//! ways without a table: a UUID (128 bits) and EC2's `i-` + 17 hexadecimal digits (68 bits). Uniqueness does not rest
//! on chance: the store refuses to create a record whose id exists.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    str::FromStr,
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind};

/// 2024-01-01T00:00:00Z in milliseconds of the Unix epoch.
const EPOCH_MS: u64 = 1_704_067_200_000;
const RANDOM_BITS: u32 = 22;
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const DIGITS: usize = 13;

/// A fresh 64-bit identifier, greater than all that this process made before: time first, then random bits, so that
/// processes that make ids in the same millisecond hardly ever make the same one.
fn fresh() -> u64 {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    // RandomState is seeded by the operating system, and differs with each call.
    let random = RandomState::new().hash_one(now) >> (64 - RANDOM_BITS);
    let candidate = (now.saturating_sub(EPOCH_MS) << RANDOM_BITS) | random;
    let after = |last: u64| candidate.max(last + 1);
    match LAST.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(after(last))) {
        Ok(last) | Err(last) => after(last),
    }
}

fn encode(value: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [0u8; DIGITS];
    let mut rest = value;
    for place in text.iter_mut().rev() {
        *place = ALPHABET[(rest & 31) as usize];
        rest >>= 5;
    }
    f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
}

fn decode(text: &str) -> Option<u64> {
    if text.len() != DIGITS {
        return None;
    }
    let mut value: u64 = 0;
    for (place, byte) in text.bytes().enumerate() {
        let digit = ALPHABET.iter().position(|known| *known == byte)? as u64;
        // 13 digits hold 65 bits; the first one may only carry four.
        if place == 0 && digit > 15 {
            return None;
        }
        value = (value << 5) | digit;
    }
    Some(value)
}

/// What all typed ids have in common; lets a store or a test be generic over the kind.
pub trait Id: Copy + Eq + Ord + fmt::Debug + fmt::Display + FromStr<Err = Error> + Send + Sync + 'static {
    /// The part before the dash.
    const PREFIX: &'static str;
    /// The 64 bits, for protocols whose identifiers embed them.
    fn bits(self) -> u64;
    /// The id with these bits.
    fn from_bits(bits: u64) -> Self;
}

macro_rules! id_types {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// A new id, greater than all that this process made before, and than what others made in earlier milliseconds.
            #[must_use]
            #[allow(clippy::new_without_default)]
            pub fn new() -> Self {
                Self(fresh())
            }
        }

        impl Id for $name {
            const PREFIX: &'static str = $prefix;
            fn bits(self) -> u64 {
                self.0
            }
            fn from_bits(bits: u64) -> Self {
                Self(bits)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!($prefix, "-"))?;
                encode(self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self, Error> {
                text.strip_prefix(concat!($prefix, "-")).and_then(decode).map(Self).ok_or_else(|| {
                    Error::new(ErrorKind::Invalid, "invalid_id", concat!("Not an id of the form ", $prefix, "-…"))
                        .detail(format!("`{}` is not `{}-` followed by 13 characters of 0-9a-z without i, l, o, u", text.chars().take(64).collect::<String>(), $prefix))
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(|error: Error| de::Error::custom(error.detail))
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": concat!("^", $prefix, "-[0-9a-f][0-9a-hjkmnp-tv-z]{12}$") })
            }
        }
    )*};
}

id_types! {
    /// An application credential: a secret with which a program logs in as its owner, on one project.
    ApplicationCredentialId = "appcred";
    /// An EC2-style access key; the id also is its public half.
    AccessKeyId = "key";
    /// Nodes that have something in common.
    AggregateId = "agg";
    /// One role given to a user or group on a project, domain or the system.
    AssignmentId = "asg";
    /// A process of the control plane, from its start to its end.
    ControllerId = "ctl";
    /// A domain: the outermost owner of projects, users and groups.
    DomainId = "dom";
    /// Failed tries to log in, of one user or address.
    FailedLoginsId = "fail";
    /// A size that servers are made in.
    FlavorId = "flv";
    /// An address of an external network that leads to a port.
    FloatingIpId = "fip";
    /// A group of users.
    GroupId = "grp";
    /// What a caller's idempotency key made.
    IdempotencyId = "idem";
    /// A disk image.
    ImageId = "img";
    /// A one-time permission for a machine to join as a node.
    JoinTokenId = "join";
    /// An SSH public key that is put into servers.
    KeyPairId = "kp";
    /// One user in one group.
    MembershipId = "mbr";
    /// A network: what servers' ports are on.
    NetworkId = "net";
    /// A machine that runs an agent.
    NodeId = "node";
    /// How servers are placed; there is one of it.
    PlacementId = "plc";
    /// A port: where a server, or a router, is connected to a network.
    PortId = "port";
    /// One port of a floating IP that leads to one port of a server.
    PortForwardingId = "pfw";
    /// A project: what owns resources and has quotas.
    ProjectId = "prj";
    /// One API request, as it appears in logs, audit and error answers.
    RequestId = "req";
    /// A named set of permissions.
    RoleId = "role";
    /// A router: what connects networks.
    RouterId = "rtr";
    /// A time at which a workflow starts, again and again.
    ScheduleId = "sch";
    /// Rules for what may reach, and be reached from, the ports that have it.
    SecurityGroupId = "sg";
    /// One rule of a security group.
    SecurityGroupRuleId = "sgrule";
    /// Servers that are placed with regard to each other.
    ServerGroupId = "sgr";
    /// A server (virtual machine or container).
    ServerId = "srv";
    /// A token's revocation.
    RevocationId = "rev";
    /// A byte stream between a client and a node (console, image data).
    StreamId = "stm";
    /// A range of addresses of a network.
    SubnetId = "sub";
    /// Addresses that subnets are cut from.
    SubnetPoolId = "pool";
    /// A user.
    UserId = "usr";
    /// A durable workflow run.
    WorkflowId = "wf";
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_form_round_trips(bits: u64) {
            let id = ServerId::from_bits(bits);
            prop_assert_eq!(id.to_string().parse::<ServerId>().unwrap(), id);
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,40}") {
            let _ = text.parse::<ServerId>();
        }
    }

    #[test]
    fn ids_sort_by_creation() {
        let made: Vec<String> = (0..100_000).map(|_| ServerId::new().to_string()).collect();
        assert!(made.is_sorted_by(|earlier, later| earlier < later));
    }

    #[test]
    fn threads_never_make_the_same_id() {
        let make = || (0..20_000).map(|_| fresh()).collect::<Vec<_>>();
        let mut made: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        made.sort_unstable();
        assert!(made.is_sorted_by(|earlier, later| earlier < later));
    }

    #[test]
    fn another_kinds_id_is_refused() {
        let image = ImageId::new().to_string();
        assert_eq!(image.parse::<ServerId>().unwrap_err().kind, ErrorKind::Invalid);
    }
}
