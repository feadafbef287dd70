//! Which wire, tag or identifier a network's frames have: no two networks the same.

use nephos_driver::network::Segment;
use nephos_ops::network::{CreateNetwork, SegmentType};
use nephos_store::Store;
use nephos_types::{Error, ErrorKind, Id, NetworkId, Result};

/// The lowest identifier that is given out by itself; those below are for administrators to choose.
const FIRST_VNI: u64 = 4096;
const LAST_VNI: u64 = (1 << 24) - 1;
const LAST_TAG: u64 = 4094;
/// How many identifiers are looked at in search of a free one.
const LOOKS: u64 = 1000;

/// The largest packet on a wire of the nodes, unless they say otherwise.
const WIRE_MTU: u32 = 1500;
/// What VXLAN takes of it: Ethernet, IPv6, UDP and its own header.
const VXLAN_OVERHEAD: u32 = 70;

/// The claim that makes a segment one network's; none if networks may share it.
pub(super) fn claim(segment: &Segment) -> Option<String> {
    match segment {
        Segment::Vxlan { vni } => Some(format!("segment/vxlan/{vni}")),
        Segment::Flat { physical } => Some(format!("segment/flat/{physical}")),
        Segment::Vlan { physical, tag } => Some(format!("segment/vlan/{physical}/{tag}")),
        Segment::Host => None,
    }
}

/// The largest packet that a segment has room for.
pub(super) fn most_mtu(segment: &Segment) -> u32 {
    match segment {
        Segment::Vxlan { .. } => WIRE_MTU - VXLAN_OVERHEAD,
        Segment::Flat { .. } | Segment::Vlan { .. } | Segment::Host => WIRE_MTU,
    }
}

/// The segment that is asked for.
pub(super) fn choose(store: &Store, id: NetworkId, input: &CreateNetwork) -> Result<Segment> {
    let refused = |field: &str, why: &str| {
        Error::invalid("invalid_segment", "Such a network cannot be made").reason(field, "segment", why)
    };
    let physical = |of: &str| match &input.physical {
        Some(physical) => Ok(physical.to_string()),
        None => Err(refused("physical", &format!("a {of} network is on a physical network: say which"))),
    };
    let kind = input.segment.unwrap_or(SegmentType::Vxlan);
    if matches!(kind, SegmentType::Vxlan | SegmentType::Host) && input.physical.is_some() {
        return Err(refused("physical", "only flat and vlan networks are on a physical network"));
    }
    if matches!(kind, SegmentType::Flat | SegmentType::Host) && input.segment_id.is_some() {
        return Err(refused("segment_id", "only vxlan and vlan networks have one"));
    }
    Ok(match (kind, input.segment_id) {
        (SegmentType::Vxlan, Some(vni)) => Segment::Vxlan { vni: vni.get_u32() },
        (SegmentType::Vxlan, None) => Segment::Vxlan { vni: free_vni(store, id)? },
        (SegmentType::Flat, _) => Segment::Flat { physical: physical("flat")? },
        (SegmentType::Vlan, Some(tag)) if tag.get() <= LAST_TAG => {
            Segment::Vlan { physical: physical("vlan")?, tag: tag.get_u16() }
        }
        (SegmentType::Vlan, _) => {
            return Err(refused("segment_id", "a vlan network has a tag from 1 to 4094: say which"));
        }
        (SegmentType::Host, _) => Segment::Host,
    })
}

/// An identifier that no network has, from a place that differs from network to network.
fn free_vni(store: &Store, id: NetworkId) -> Result<u32> {
    let size = LAST_VNI - FIRST_VNI + 1;
    let start = id.bits().wrapping_mul(0x9E37_79B9_7F4A_7C15) % size;
    (0..LOOKS)
        .filter_map(|step| u32::try_from(FIRST_VNI + (start + step) % size).ok())
        .find(|vni| claim(&Segment::Vxlan { vni: *vni }).is_some_and(|claim| store.owner(&claim).is_none()))
        .ok_or_else(|| Error::new(ErrorKind::Capacity, "segments_exhausted", "There is no free network identifier"))
}
