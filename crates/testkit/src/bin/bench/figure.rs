//! One line of the table: what was measured, and its target.

use std::{fmt, time::Duration};

/// A figure and its target.
pub(crate) struct Figure {
    what: String,
    measured: f64,
    unit: &'static str,
    target: Option<Target>,
}

enum Target {
    Under(f64),
    Over(f64),
}

impl Figure {
    /// So many milliseconds.
    pub(crate) fn time(what: impl Into<String>, time: Duration) -> Self {
        Self { what: what.into(), measured: time.as_secs_f64() * 1e3, unit: "ms", target: None }
    }

    /// An amount.
    pub(crate) fn amount(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self { what: what.into(), measured, unit, target: None }
    }

    /// Less than this is wished, in the figure's unit.
    pub(crate) fn under(mut self, target: f64) -> Self {
        self.target = Some(Target::Under(target));
        self
    }

    /// More than this is wished, in the figure's unit.
    pub(crate) fn over(mut self, target: f64) -> Self {
        self.target = Some(Target::Over(target));
        self
    }
}

fn number(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (target, met) = match self.target {
            None => (String::new(), ""),
            Some(Target::Under(most)) => {
                (format!("under {most} {}", self.unit), if self.measured < most { "yes" } else { "no" })
            }
            Some(Target::Over(least)) => {
                (format!("over {least} {}", self.unit), if self.measured > least { "yes" } else { "no" })
            }
        };
        let measured = format!("{} {}", number(self.measured), self.unit);
        write!(f, "| {:<58} | {measured:>16} | {target:<16} | {met:<3} |", self.what)
    }
}

/// The table's head.
pub(crate) fn header() {
    println!("| {:<58} | {:>16} | {:<16} | {:<3} |", "figure", "measured", "target", "met");
    println!("| {:-<58} | {:->16} | {:-<16} | {:-<3} |", "", "", "", "");
}

/// The time that this share of the times does not exceed.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share).round() as usize).copied().unwrap_or_default()
}
