//! How fast a device sends: token buckets (`tbf`), and the way round by which a device is slowed in what it receives.

use std::{collections::BTreeMap, io};

use netlink_packet_core::{DefaultNla, Nla, NlasIterator};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{
        TcAction, TcActionAttribute, TcActionMirrorOption, TcActionOption, TcActionType, TcAttribute,
        TcFilterU32Option, TcHandle, TcHeader, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
        TcU32Selector, TcU32SelectorFlags,
    },
};

use super::Space;

/// `TCA_TBF_PARMS`, `TCA_TBF_RATE64`, `TCA_TBF_BURST`.
const PARAMETERS: u16 = 1;
const RATE: u16 = 4;
const BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;
/// All protocols (`ETH_P_ALL`), in network order in the lower half.
const EVERYTHING: u32 = (1 << 16) | 0x0300;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// Bytes a second.
    pub(crate) rate: u64,
    /// Bytes at once.
    pub(crate) burst: u32,
}

impl Bucket {
    /// Bytes that may wait: what 50 ms let through, and a burst.
    fn limit(&self) -> u32 {
        u32::try_from(self.rate / 20).unwrap_or(u32::MAX).saturating_add(self.burst)
    }

    fn parameters(&self) -> Vec<u8> {
        let rate = u32::try_from(self.rate).unwrap_or(u32::MAX);
        let mut bytes = vec![0; 36];
        // struct tc_tbf_qopt: rate, peak rate (each: cell_log, linklayer, overhead, cell_align, mpu, rate), limit, buffer, mtu
        bytes[1] = ETHERNET;
        bytes[8..12].copy_from_slice(&rate.to_ne_bytes());
        bytes[24..28].copy_from_slice(&self.limit().to_ne_bytes());
        bytes
    }
}

/// What is at a device's root, and whether what it receives is sent round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shaping {
    /// Rate and limit of the token bucket at its root.
    bucket: Option<(u64, u32)>,
    pub(crate) diverted: bool,
}

impl Shaping {
    /// Whether the device has this bucket, or none.
    pub(crate) fn is(&self, bucket: Option<Bucket>) -> bool {
        self.bucket == bucket.map(|bucket| (bucket.rate, bucket.limit()))
    }
}

fn message(device: u32, kind: &str) -> TcMessage {
    let mut message = TcMessage::default();
    message.header = TcHeader { index: device.cast_signed(), ..TcHeader::default() };
    message.attributes.push(TcAttribute::Kind(kind.to_owned()));
    message
}

impl Space {
    /// How devices are slowed, by their index; those that are not are left out.
    pub(crate) fn shaping(&mut self) -> io::Result<BTreeMap<u32, Shaping>> {
        let mut found: BTreeMap<u32, Shaping> = BTreeMap::new();
        for answer in self.list(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()))? {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { continue };
            let device = message.header.index.cast_unsigned();
            let kind = message.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.as_str()),
                _ => None,
            });
            match kind {
                Some("tbf") => found.entry(device).or_default().bucket = Some(read_bucket(&message)),
                Some("ingress") => found.entry(device).or_default().diverted = true,
                _ => {}
            }
        }
        Ok(found)
    }

    /// Slows what a device sends, or no longer.
    pub(crate) fn set_bucket(&mut self, device: u32, bucket: Option<Bucket>) -> io::Result<()> {
        let mut change = message(device, "tbf");
        change.header.parent = TcHandle::ROOT;
        let Some(bucket) = bucket else { return self.delete(RouteNetlinkMessage::DelQueueDiscipline(change)) };
        change.header.handle = TcHandle { major: 1, minor: 0 };
        let mut options = vec![
            TcOption::Other(DefaultNla::new(PARAMETERS, bucket.parameters())),
            TcOption::Other(DefaultNla::new(BURST, bucket.burst.to_ne_bytes().to_vec())),
        ];
        if bucket.rate > u64::from(u32::MAX) {
            options.push(TcOption::Other(DefaultNla::new(RATE, bucket.rate.to_ne_bytes().to_vec())));
        }
        change.attributes.push(TcAttribute::Options(options));
        self.replace(RouteNetlinkMessage::NewQueueDiscipline(change))
    }

    /// Sends what a device receives round by another one, which may slow it.
    pub(crate) fn divert(&mut self, device: u32, by: u32) -> io::Result<()> {
        let mut ingress = message(device, "ingress");
        ingress.header.parent = TcHandle::INGRESS;
        ingress.header.handle = TcHandle { major: 0xffff, minor: 0 };
        self.replace(RouteNetlinkMessage::NewQueueDiscipline(ingress))?;
        let mut filter = message(device, "u32");
        filter.header.parent = TcHandle { major: 0xffff, minor: 0 };
        filter.header.info = EVERYTHING;
        let mut selector = TcU32Selector::default();
        selector.flags = TcU32SelectorFlags::Terminal;
        selector.nkeys = 1;
        selector.keys = vec![TcU32Key::default()];
        let mut mirror = TcMirror::default();
        mirror.generic.action = TcActionType::Stolen;
        mirror.eaction = TcMirrorActionType::EgressRedir;
        mirror.ifindex = by;
        let mut action = TcAction::default();
        action.attributes = vec![
            TcActionAttribute::Kind("mirred".to_owned()),
            TcActionAttribute::Options(vec![TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))]),
        ];
        filter.attributes.push(TcAttribute::Options(vec![
            TcOption::U32(TcFilterU32Option::Selector(selector)),
            TcOption::U32(TcFilterU32Option::Action(vec![action])),
        ]));
        self.create(RouteNetlinkMessage::NewTrafficFilter(filter))
    }

    /// No longer sends what a device receives round.
    pub(crate) fn undivert(&mut self, device: u32) -> io::Result<()> {
        let mut ingress = message(device, "ingress");
        ingress.header.parent = TcHandle::INGRESS;
        ingress.header.handle = TcHandle { major: 0xffff, minor: 0 };
        self.delete(RouteNetlinkMessage::DelQueueDiscipline(ingress))
    }
}

fn read_bucket(message: &TcMessage) -> (u64, u32) {
    let (mut rate, mut large, mut limit) = (0, None, 0);
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    for option in options.flatten() {
        // Of kinds that the library does not know it tells the options as one, unread.
        let mut whole = vec![0; option.value_len()];
        option.emit_value(&mut whole);
        for part in NlasIterator::new(whole.as_slice()).flatten() {
            let value = part.value();
            let word = |at: usize| value.get(at..at + 4).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
            match part.kind() {
                PARAMETERS => {
                    rate = word(8).map_or(0, u32::from_ne_bytes);
                    limit = word(24).map_or(0, u32::from_ne_bytes);
                }
                RATE => large = <[u8; 8]>::try_from(value).ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
    }
    (large.unwrap_or_else(|| rate.into()), limit)
}
