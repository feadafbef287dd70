//! Operations on where servers go: groups of servers, zones, aggregates and traits of nodes, taking nodes out of service,
//! how it is decided, and what there is room for.

mod aggregate;
mod capacity;
mod group;
mod maintenance;
mod policy;
mod zone;

pub use aggregate::*;
pub use capacity::*;
pub use group::*;
pub use maintenance::*;
pub use policy::*;
pub use zone::*;
