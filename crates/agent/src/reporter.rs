//! What is to be said to the control plane: the latest report of each server, and which of them it has not heard.
//!
//! Nothing is queued: a server that changes three times while the control plane is away is reported once. That work
//! goes on is worth saying only if it takes a while; everything else is said at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_node_api::{Report, ServerReport, ServerState};
use nephos_types::{ServerId, Timestamp};
use tokio::{sync::Notify, time::Instant};

/// Work that takes less is not reported as going on.
const WORTH_SAYING: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(crate) struct Reporter {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    latest: BTreeMap<ServerId, ServerReport>,
    unheard: BTreeSet<ServerId>,
    full_due: bool,
    /// When what is unheard has to be said.
    due: Option<Instant>,
    last_at: Timestamp,
}

/// A report under way.
pub(crate) struct Sending {
    pub(crate) report: Report,
}

impl Reporter {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// States what a server is; wakes the sender if that is news.
    pub(crate) fn set(&self, report: ServerReport) {
        let mut state = self.state();
        if state.latest.get(&report.id) == Some(&report) {
            return;
        }
        let due = match report.state {
            ServerState::Working { .. } => Instant::now() + WORTH_SAYING,
            _ => Instant::now(),
        };
        state.due = Some(state.due.map_or(due, |earlier| earlier.min(due)));
        state.unheard.insert(report.id);
        state.latest.insert(report.id, report);
        drop(state);
        self.changed.notify_one();
    }

    /// Changes what was stated of a server, if anything was; wakes the sender if that is news.
    pub(crate) fn amend(&self, id: ServerId, change: impl FnOnce(&mut ServerReport)) {
        let mut state = self.state();
        let Some(mut report) = state.latest.get(&id).cloned() else { return };
        change(&mut report);
        if state.latest.get(&id) == Some(&report) {
            return;
        }
        state.due = Some(Instant::now());
        state.unheard.insert(id);
        state.latest.insert(id, report);
        drop(state);
        self.changed.notify_one();
    }

    /// Says no more about a server.
    pub(crate) fn forget(&self, id: ServerId) {
        let mut state = self.state();
        state.latest.remove(&id);
        state.unheard.remove(&id);
    }

    /// Something that is not about a server is worth saying now.
    pub(crate) fn demand(&self) {
        self.state().due = Some(Instant::now());
        self.changed.notify_one();
    }

    /// The next report lists all servers.
    pub(crate) fn demand_full(&self) {
        let mut state = self.state();
        state.full_due = true;
        state.due = Some(Instant::now());
        drop(state);
        self.changed.notify_one();
    }

    /// Returns when there is something to say.
    pub(crate) async fn something(&self) {
        loop {
            let changed = self.changed.notified();
            let due = self.state().due;
            match due {
                Some(due) if due <= Instant::now() => return,
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => return,
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    /// What to say now; possibly nothing but that the node is alive.
    pub(crate) fn next(&self) -> Sending {
        let mut state = self.state();
        let full = std::mem::take(&mut state.full_due);
        state.due = None;
        let unheard = std::mem::take(&mut state.unheard);
        let servers = if full {
            state.latest.values().cloned().collect()
        } else {
            unheard.iter().filter_map(|id| state.latest.get(id).cloned()).collect()
        };
        // The wall clock may stand still or jump back; the order of reports must not.
        let at = Timestamp::now().max(Timestamp::from_micros(state.last_at.as_micros().saturating_add(1)));
        state.last_at = at;
        Sending { report: Report { at, full, servers, health: vec![] } }
    }

    /// The report may not have arrived: say again what it said, as it is by then.
    pub(crate) fn lost(&self, sending: Sending) {
        let mut state = self.state();
        state.full_due |= sending.report.full;
        for server in sending.report.servers {
            if state.latest.contains_key(&server.id) {
                state.unheard.insert(server.id);
            }
        }
        state.due = Some(Instant::now());
        drop(state);
        self.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(id: ServerId, generation: u64) -> ServerReport {
        ServerReport {
            id,
            generation,
            state: ServerState::Gone,
            error: None,
            restarts: 0,
            snapshots: vec![],
            ports: vec![],
        }
    }

    #[test]
    fn a_lost_report_is_said_again_with_what_is_so_by_then() {
        let (reporter, id) = (Reporter::default(), ServerId::new());
        reporter.set(gone(id, 1));
        let first = reporter.next();
        assert_eq!(first.report.servers, [gone(id, 1)]);
        reporter.set(gone(id, 2));
        let first_at = first.report.at;
        reporter.lost(first);
        let second = reporter.next();
        assert_eq!(second.report.servers, [gone(id, 2)]);
        assert!(second.report.at > first_at);
        assert!(reporter.next().report.servers.is_empty());
    }

    #[test]
    fn repeating_what_was_said_is_no_news() {
        let (reporter, id) = (Reporter::default(), ServerId::new());
        reporter.set(gone(id, 1));
        let _ = reporter.next();
        reporter.set(gone(id, 1));
        assert!(reporter.next().report.servers.is_empty());
        reporter.demand_full();
        let full = reporter.next().report;
        assert!(full.full && full.servers.len() == 1);
    }
}
