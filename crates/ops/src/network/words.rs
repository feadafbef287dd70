//! Small things about networks that people write as one word.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use nephos_types::{Cidr, Error, MacAddress, SubnetId};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A type that is written as text in JSON and on the command line.
macro_rules! word {
    ($name:ident, $description:literal, $pattern:literal) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(|error: Error| de::Error::custom(error.detail))
            }
        }
        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $description, "maxLength": 128, "pattern": $pattern })
            }
        }
    };
}

fn refused(what: &str, text: &str, form: &str) -> Error {
    let shown: String = text.chars().take(128).collect();
    Error::invalid("invalid_word", format!("Not {what}")).detail(format!("`{shown}` is not like {form}"))
}

/// An address of a host, of either version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub IpAddr);

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Host {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let refused = || refused("the address of a host", text, "10.0.0.5 or fd00::5");
        let address: IpAddr = text.parse().map_err(|_| refused())?;
        if address.is_unspecified() || address.is_multicast() { Err(refused()) } else { Ok(Self(address)) }
    }
}
word!(Host, "The address of a host, e.g. 10.0.0.5 or fd00::5", "^[0-9a-fA-F:.]{2,45}$");

/// Addresses from one to another, both included: `10.0.0.10-10.0.0.99`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: IpAddr,
    last: IpAddr,
}

impl AddressRange {
    /// From the first to the last; `None` if the last is before the first, or of the other version.
    #[must_use]
    pub fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some(Self { first, last })
    }

    /// The first address.
    #[must_use]
    pub fn first(self) -> IpAddr {
        self.first
    }

    /// The last address.
    #[must_use]
    pub fn last(self) -> IpAddr {
        self.last
    }

    /// Whether the address is in it.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Whether the two have an address in common.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for AddressRange {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        text.split_once('-')
            .and_then(|(first, last)| Self::new(first.trim().parse().ok()?, last.trim().parse().ok()?))
            .ok_or_else(|| refused("a range of addresses", text, "10.0.0.10-10.0.0.99, the lower one first"))
    }
}
word!(
    AddressRange,
    "Addresses, both ends included, e.g. 10.0.0.10-10.0.0.99",
    "^[0-9a-fA-F:.]{2,45}-[0-9a-fA-F:.]{2,45}$"
);

/// A route: `10.1.0.0/16=10.0.0.1` is "to 10.1.0.0/16 by 10.0.0.1".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where to.
    pub destination: Cidr,
    /// By which way.
    pub next_hop: IpAddr,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.destination, self.next_hop)
    }
}

impl FromStr for Route {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        text.split_once('=')
            .and_then(|(to, by)| Some(Self { destination: to.parse().ok()?, next_hop: by.parse::<Host>().ok()?.0 }))
            .filter(|route| route.destination.is_ipv6() == route.next_hop.is_ipv6())
            .ok_or_else(|| refused("a route", text, "10.1.0.0/16=10.0.0.1 (where to, and by which way)"))
    }
}
word!(
    Route,
    "A route: where to, and by which way, e.g. 10.1.0.0/16=10.0.0.1",
    "^[0-9a-fA-F:./]{2,50}=[0-9a-fA-F:.]{2,45}$"
);

/// Addresses that a port may use besides its own, perhaps with another MAC address: `10.0.0.100`, `10.0.1.0/24`,
/// `10.0.0.100=fa:16:3e:00:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressPair {
    /// The addresses.
    pub addresses: Cidr,
    /// The MAC address; `None`: the port's own.
    pub mac: Option<MacAddress>,
}

impl fmt::Display for AddressPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mac {
            Some(mac) => write!(f, "{}={mac}", self.addresses),
            None => self.addresses.fmt(f),
        }
    }
}

impl FromStr for AddressPair {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || match text.split_once('=') {
            None => Some(Self { addresses: text.parse().ok()?, mac: None }),
            Some((addresses, mac)) => Some(Self { addresses: addresses.parse().ok()?, mac: Some(mac.parse().ok()?) }),
        };
        parse().ok_or_else(|| refused("an address pair", text, "10.0.0.100 or 10.0.0.100=fa:16:3e:00:00:01"))
    }
}
word!(
    AddressPair,
    "Addresses, perhaps with a MAC address, e.g. 10.0.0.100=fa:16:3e:00:00:01",
    "^[0-9a-fA-F:./]{2,50}(=[0-9a-fA-F:-]{17})?$"
);

/// An address that a port is to have: `10.0.0.5`; or any of a subnet: `sub-…`; or both, `sub-…=10.0.0.5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortAddress {
    /// The subnet; `None`: the one of the network that the address is in.
    pub subnet: Option<SubnetId>,
    /// The address; `None`: any that is free.
    pub address: Option<IpAddr>,
}

impl fmt::Display for PortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.subnet, self.address) {
            (Some(subnet), Some(address)) => write!(f, "{subnet}={address}"),
            (Some(subnet), None) => subnet.fmt(f),
            (None, Some(address)) => address.fmt(f),
            (None, None) => Ok(()),
        }
    }
}

impl FromStr for PortAddress {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let address = |text: &str| text.parse::<Host>().ok().map(|host| host.0);
        let parse = || match text.split_once('=') {
            Some((subnet, fixed)) => Some(Self { subnet: Some(subnet.parse().ok()?), address: Some(address(fixed)?) }),
            None => match text.parse() {
                Ok(subnet) => Some(Self { subnet: Some(subnet), address: None }),
                Err(_) => Some(Self { subnet: None, address: Some(address(text)?) }),
            },
        };
        parse().ok_or_else(|| refused("an address of a port", text, "10.0.0.5, sub-… or sub-…=10.0.0.5"))
    }
}
word!(
    PortAddress,
    "An address, a subnet's id, or SUBNET=ADDRESS",
    "^(sub-[0-9a-z]{13}(=[0-9a-fA-F:.]{2,45})?|[0-9a-fA-F:.]{2,45})$"
);

/// Ports of TCP or UDP, both ends included: `80`, `8000-8080`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// From the first to the last; `None` if the last is before the first.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// First and last port.
    #[must_use]
    pub fn ends(self) -> (u16, u16) {
        (self.first, self.last)
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { self.first.fmt(f) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

impl FromStr for PortRange {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let port = |text: &str| text.parse::<u16>().ok();
        port(first)
            .zip(port(last))
            .and_then(|(first, last)| Self::new(first, last))
            .ok_or_else(|| refused("a range of ports", text, "80 or 8000-8080, up to 65535, the lower one first"))
    }
}
word!(PortRange, "Ports, both ends included, e.g. 80 or 8000-8080", "^[0-9]{1,5}(-[0-9]{1,5})?$");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        fn round<T: FromStr<Err = Error> + fmt::Display>(text: &str) {
            assert_eq!(text.parse::<T>().unwrap_or_else(|error| panic!("{text}: {error}")).to_string(), text);
        }
        round::<Host>("fd00::5");
        round::<AddressRange>("10.0.0.10-10.0.0.99");
        round::<Route>("10.1.0.0/16=10.0.0.1");
        round::<AddressPair>("10.0.0.0/24");
        round::<AddressPair>("fd00::1/128=fa:16:3e:00:00:01");
        round::<PortAddress>("sub-00000000000zz=10.0.0.5");
        round::<PortAddress>("10.0.0.5");
        round::<PortRange>("80");
        round::<PortRange>("8000-8080");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "10.0.0.9-10.0.0.1", "10.0.0.1-fd00::1", "10.0.0.1"] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
        for text in ["10.0.0.0/8=fd00::1", "10.0.0.5/8=10.0.0.1", "10.0.0.0/8", "=", "10.0.0.0/8=0.0.0.0"] {
            assert!(text.parse::<Route>().is_err(), "{text}");
        }
        for text in ["", "-", "80-", "90-80", "65536", "80-80-80"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
        for text in ["224.0.0.1", "0.0.0.0", "::", "ff02::1", "x"] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }
}
