//! How fast ports may be. What a server receives is slowed on its device; what it sends comes in there, so it is sent round
//! by another device on which it goes out.

use std::{collections::BTreeMap, io};

use nephos_driver::network::{PortSpec, RateLimit};

use crate::{
    names,
    netlink::{Bucket, Links, New, Shaping, Space},
};

/// What stands on the alias of a way round once it is whole.
const WHOLE: &str = "whole";

fn bucket(limit: RateLimit, mtu: u32) -> Bucket {
    let rate = (limit.kbit.saturating_mul(125)).max(1);
    // What comes between two ticks of the slowest clock, and two packets, have to go at once.
    let least = (rate / 100).max(u64::from(mtu) * 2);
    let burst = limit.burst_kbit.saturating_mul(125).max(least);
    Bucket { rate, burst: u32::try_from(burst).unwrap_or(u32::MAX) }
}

/// Makes a port's limits be so.
pub(crate) fn ensure(
    fabric: &mut Space,
    links: &mut Links,
    shaping: &BTreeMap<u32, Shaping>,
    port: &PortSpec,
    mtu: u32,
) -> io::Result<()> {
    let Some(device) = links.get(&names::port(port.id)).map(|link| link.index) else { return Ok(()) };
    let is = shaping.get(&device).copied().unwrap_or_default();
    let receive = port.receive_limit.map(|limit| bucket(limit, mtu));
    if !is.is(receive) {
        fabric.set_bucket(device, receive)?;
    }
    let name = names::detour(port.id);
    let Some(send) = port.send_limit.map(|limit| bucket(limit, mtu)) else {
        if is.diverted {
            fabric.undivert(device)?;
        }
        if let Some(link) = links.remove(&name) {
            fabric.delete_link(link.index)?;
        }
        return Ok(());
    };
    if !links.contains_key(&name) {
        fabric.create_link(&name, New::Ifb, mtu, None, None)?;
        links.extend(fabric.link(&name)?.map(|link| (name.clone(), link)));
    }
    let Some(link) = links.get(&name) else { return Err(io::Error::other("the way round did not stay")) };
    let detour = link.index;
    if !link.up {
        fabric.set_up(detour, true)?;
    }
    if !shaping.get(&detour).copied().unwrap_or_default().is(Some(send)) {
        fabric.set_bucket(detour, Some(send))?;
    }
    if !is.diverted || link.alias != WHOLE {
        fabric.undivert(device)?;
        fabric.divert(device, detour)?;
        fabric.set_alias(detour, WHOLE)?;
    }
    Ok(())
}
