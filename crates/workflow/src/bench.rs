//! How many durable steps a second an engine does on a journal: for `cargo xtask bench`.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use nephos_types::{Result, WorkflowId};

use crate::{
    definition::Definition,
    engine::{Config, Engine},
    journal::Journal,
    outcome::Done,
};

/// Steps of each run of the benchmark.
pub const STEPS: u32 = 20;

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Steps that were called, and saved, each on its own.
    pub steps: u64,
    /// In how long.
    pub time: Duration,
}

impl Figure {
    /// Steps per second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.steps as f64 / self.time.as_secs_f64().max(1e-9)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0} durable steps/s ({} in {:.2} s)", self.per_second(), self.steps, self.time.as_secs_f64())
    }
}

/// Runs workflows of [`STEPS`] steps that pass a number on, `at_once` at once, for about `time`.
///
/// # Errors
/// If the journal fails.
pub async fn steps_per_second<J: Journal>(journal: J, at_once: usize, time: Duration) -> Result<Figure> {
    let engine = Engine::new(journal, Config { max_executing: at_once.max(1), ..Config::default() });
    let mut wf = Definition::builder::<u32>("bench");
    let mut last = wf.step("step 0", |_| async { Ok(Done::value(0u32)) }).add();
    for number in 1..STEPS {
        let before = last;
        last = wf
            .step(&format!("step {number}"), move |ctx| {
                let value = ctx.get(before);
                async move { Ok(Done::value(value? + 1)) }
            })
            .add();
    }
    engine.register(wf.build())?;
    let (begun, steps) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let loops = (0..at_once).map(|_| async {
        while begun.elapsed() < time {
            let run = engine.prepare("bench", WorkflowId::new(), &0u32)?;
            let id = run.id;
            if let Err(error) = engine.start(run, J::Effects::default()).await {
                return Err(nephos_types::Error::bug("The benchmark cannot start a run").detail(format!("{error:?}")));
            }
            engine.wait(id).await?;
            steps.fetch_add(u64::from(STEPS), Ordering::Relaxed);
        }
        Ok(())
    });
    futures_util::future::try_join_all(loops).await?;
    Ok(Figure { steps: steps.load(Ordering::Relaxed), time: begun.elapsed() })
}
