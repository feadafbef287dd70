//! Addresses of networks.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{Error, ErrorKind};

/// A range of addresses, e.g. `10.0.0.0/24` or `fd00:1::/64`. The address is that of the range: no bit is set behind the
/// prefix. A lone address is a range of one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr(IpNet);

impl Cidr {
    /// The range that this address is in, if the prefix has this length.
    #[must_use]
    pub fn around(net: IpNet) -> Self {
        Self(net.trunc())
    }

    /// The range.
    #[must_use]
    pub fn net(self) -> IpNet {
        self.0
    }

    /// Whether the address is in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        self.0.contains(&address)
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.0.contains(&other.0.network()) || other.0.contains(&self.0.network())
    }

    /// Whether it is of IPv6.
    #[must_use]
    pub fn is_ipv6(self) -> bool {
        matches!(self.0, IpNet::V6(_))
    }
}

impl From<IpAddr> for Cidr {
    fn from(address: IpAddr) -> Self {
        Self(address.into())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Cidr {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = |detail: String| {
            Err(Error::new(ErrorKind::Invalid, "invalid_cidr", "Not a range of addresses").detail(detail))
        };
        let shown: String = text.chars().take(64).collect();
        match text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)) {
            Ok(net) if net.trunc() == net => Ok(Self(net)),
            Ok(net) => refused(format!("`{shown}` names an address within a range; did you mean `{}`?", net.trunc())),
            Err(_) => refused(format!("`{shown}` is not like 10.0.0.0/24 or fd00:1::/64")),
        }
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| de::Error::custom(error.detail))
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A range of addresses, e.g. 10.0.0.0/24 or fd00:1::/64",
            "examples": ["10.0.0.0/24"],
            "maxLength": 64,
            "pattern": "^[0-9a-fA-F:.]{2,45}(/[0-9]{1,3})?$"
        })
    }
}

/// A MAC address, e.g. `fa:16:3e:00:01:02`: of one interface, so the group bit is not set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address with these bytes; `None` if it is nobody's (all zero) or a group's.
    #[must_use]
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & 1 == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// An address under the prefix `fa:16:3e`, which clouds use for what they make up, from the lower bits of `seed`.
    #[must_use]
    pub fn made_up(seed: u64) -> Self {
        let [.., a, b, c] = seed.to_be_bytes();
        Self([0xfa, 0x16, 0x3e, a, b, c])
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddress {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || {
            Error::new(ErrorKind::Invalid, "invalid_mac_address", "Not the MAC address of an interface").detail(
                format!(
                    "`{}` is not like fa:16:3e:00:01:02, with an even first byte",
                    text.chars().take(64).collect::<String>()
                ),
            )
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part =
                parts.next().filter(|part| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit()));
            *byte = part.and_then(|part| u8::from_str_radix(part, 16).ok()).ok_or_else(refused)?;
        }
        if parts.next().is_some() {
            return Err(refused());
        }
        Self::new(bytes).ok_or_else(refused)
    }
}

impl Serialize for MacAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(|error: Error| de::Error::custom(error.detail))
    }
}

impl JsonSchema for MacAddress {
    fn schema_name() -> Cow<'static, str> {
        "MacAddress".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A MAC address, e.g. fa:16:3e:00:01:02",
            "examples": ["fa:16:3e:00:01:02"],
            "pattern": "^[0-9a-fA-F][02468aceACE]([:-][0-9a-fA-F]{2}){5}$"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn text_forms_round_trip(address: IpAddr, prefix in 0u8..=32, seed: u64) {
            let range = Cidr::around(IpNet::new(address, prefix).unwrap());
            prop_assert_eq!(range.to_string().parse::<Cidr>().unwrap(), range);
            let mac = MacAddress::made_up(seed);
            prop_assert_eq!(mac.to_string().parse::<MacAddress>().unwrap(), mac);
        }

        #[test]
        fn arbitrary_text_never_panics(text in "[0-9a-f:./-]{0,40}") {
            let _ = text.parse::<Cidr>();
            let _ = text.parse::<MacAddress>();
        }

        #[test]
        fn ranges_overlap_when_an_address_is_in_both(a: u32, b: u32, long in 0u8..=32, longer in 0u8..=32) {
            let range = |address: u32, prefix| Cidr::around(IpNet::new(IpAddr::from(address.to_be_bytes()), prefix).unwrap());
            let (one, other) = (range(a, long), range(b, longer));
            let wider = if long < longer { one } else { other };
            let narrower = if long < longer { other } else { one };
            prop_assert_eq!(one.overlaps(other), wider.contains(narrower.net().network()));
        }
    }

    #[test]
    fn an_address_within_a_range_is_told_what_the_range_is() {
        let error = "10.0.0.5/24".parse::<Cidr>().unwrap_err();
        assert!(error.detail.contains("`10.0.0.0/24`"), "{}", error.detail);
        assert_eq!("10.0.0.5".parse::<Cidr>().unwrap().to_string(), "10.0.0.5/32");
    }

    #[test]
    fn addresses_of_groups_and_of_nobody_are_refused() {
        for text in
            ["01:00:5e:00:00:01", "00:00:00:00:00:00", "fa:16:3e:0:1:2", "fa:16:3e:00:01:02:03", "+a:16:3e:00:01:02"]
        {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }
}
