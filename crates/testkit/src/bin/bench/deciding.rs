//! One scheduling decision among ten thousand nodes that are half full.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nephos_cloud::placement::{Abilities, Amounts, Candidate, Candidates, Class, DEFAULT_ZONE, Demand, Look, Policy};
use nephos_driver::{ComputeDriver, DiskFormat, simulated::SimulatedHost};
use nephos_types::Id;

use crate::{
    Outcome,
    figure::{Figure, percentile},
};

const NODES: u64 = 10_000;
const CLASSES: u64 = 20;
const DECISIONS: usize = 2_000;

pub(crate) async fn run() -> Outcome {
    let classes: Vec<Arc<Class>> = (0..CLASSES).map(class).collect::<Outcome<_>>()?;
    let nodes: Vec<Candidate> =
        (0..NODES).zip(classes.iter().cycle()).map(|(number, class)| node(number, class)).collect::<Outcome<_>>()?;
    let look = Look { version: 1, draw: || (nodes.clone(), Policy::default()) };
    let candidates = Candidates::default();
    let amounts = Amounts { vcpus: 1, memory_mib: 1024, disk_gib: 10 };
    let demand = Demand { amounts, format: Some(DiskFormat::Qcow2), ..Demand::default() };
    // The picture is drawn once for each change of the nodes' records.
    let begin = Instant::now();
    candidates.check(&look, &demand)?;
    let drawn = begin.elapsed();
    let mut times: Vec<Duration> = vec![];
    for _ in 0..DECISIONS {
        let begin = Instant::now();
        candidates.place(&look, &demand)?;
        times.push(begin.elapsed());
    }
    Ok(vec![
        Figure::time("scheduling decision among 10,000 nodes, p50", percentile(&mut times, 0.5)).under(1.0),
        Figure::time("  p99", percentile(&mut times, 0.99)),
        Figure::time("  the first one after a node's record changed", drawn),
    ])
}

/// Some kinds of nodes, as a cloud of several generations of machines has.
fn class(number: u64) -> Outcome<Arc<Class>> {
    Ok(Arc::new(Class {
        zone: DEFAULT_ZONE.parse()?,
        traits: [format!("CUSTOM_{number}")].into(),
        properties: [].into(),
        abilities: Abilities::of(&[SimulatedHost::new(0).driver().capabilities()]),
    }))
}

fn node(number: u64, class: &Arc<Class>) -> Outcome<Candidate> {
    // Spread without order, the same in each run.
    let share = number.wrapping_mul(0x9E37_79B9) % 50;
    Ok(Candidate {
        node: Id::from_bits(number),
        name: format!("node-{number}").parse()?,
        up: true,
        disabled: None,
        class: Arc::clone(class),
        capacity: Amounts { vcpus: 256, memory_mib: 256 << 10, disk_gib: 10_000 },
        used: Amounts { vcpus: share * 2, memory_mib: share * 2048, disk_gib: share * 50 },
    })
}
