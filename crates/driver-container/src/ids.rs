//! Which of the machine's user ids containers have.
//!
//! Files are stored with ids from [`STORED`] on, so that nothing on the machine's disk belongs to its root. Where the
//! kernel can map the ids of mounts (idmapped mounts), each running guest gets ids of its own; elsewhere all guests have
//! the stored ones, and are kept apart by their other namespaces only.

/// How many ids a container has: what the ids of ordinary systems need.
pub(crate) const COUNT: u32 = 65_536;
/// What the container's root is on disk.
pub(crate) const STORED: u32 = 1_500_000_000;
/// The first ids of running guests; far above what systems give to people, services and other containers.
pub(crate) const FIRST: u32 = STORED + COUNT;
/// The last.
const LAST: u32 = 4_200_000_000;

/// The lowest ids that are not in use.
pub(crate) fn free(used: &std::collections::BTreeSet<u32>) -> Option<u32> {
    (FIRST..LAST - COUNT).step_by(COUNT as usize).find(|first| !used.contains(first))
}
