//! Which runs this engine looks after: the ready queue, what waits for what signal, and the timers.
//!
//! One lock guards it all and is held for a few map operations only. A run that waits has an entry here and no task.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use nephos_types::{ProjectId, Timestamp, WorkflowId};

/// How many of the latest signals are remembered for steps that are about to wait for them.
const REMEMBERED_SIGNALS: usize = 4096;

/// A run that this engine looks after.
pub(super) struct Entry<C> {
    pub(super) cell: Arc<C>,
    project: Option<ProjectId>,
    /// A task drives it, or it is in the ready queue.
    scheduled: bool,
    /// Something happened since its task looked last.
    woken: bool,
    /// Waiting steps to call again.
    due: BTreeSet<usize>,
    waits: HashMap<usize, Registration>,
}

struct Registration {
    timer: u64,
    keys: Vec<Arc<str>>,
}

/// See the module.
pub(super) struct Registry<C> {
    runs: HashMap<WorkflowId, Entry<C>>,
    ready: ReadyQueue,
    executing: usize,
    max_executing: usize,
    timers: BinaryHeap<Reverse<(Timestamp, u64, WorkflowId, usize)>>,
    timer_count: u64,
    signals: HashMap<Arc<str>, HashSet<(WorkflowId, usize)>>,
    recent: HashMap<Arc<str>, u64>,
    recent_order: VecDeque<(u64, Arc<str>)>,
    signal_count: u64,
    /// Signals up to this one are no longer remembered.
    forgotten: u64,
    closed: bool,
}

impl<C> Registry<C> {
    pub(super) fn new(max_executing: usize) -> Self {
        Self {
            runs: HashMap::new(),
            ready: ReadyQueue::default(),
            executing: 0,
            max_executing: max_executing.max(1),
            timers: BinaryHeap::new(),
            timer_count: 0,
            signals: HashMap::new(),
            recent: HashMap::new(),
            recent_order: VecDeque::new(),
            signal_count: 0,
            forgotten: 0,
            closed: false,
        }
    }

    pub(super) fn get(&self, id: WorkflowId) -> Option<&Arc<C>> {
        self.runs.get(&id).map(|entry| &entry.cell)
    }

    pub(super) fn len(&self) -> usize {
        self.runs.len()
    }

    pub(super) fn executing(&self) -> usize {
        self.executing
    }

    /// Neither a task nor anything in the queue.
    pub(super) fn is_idle(&self) -> bool {
        self.executing == 0 && self.ready.len == 0
    }

    /// No task is begun any more.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Takes a run in, unless it is there.
    pub(super) fn insert(&mut self, id: WorkflowId, project: Option<ProjectId>, cell: Arc<C>) -> bool {
        if self.runs.contains_key(&id) {
            return false;
        }
        let entry =
            Entry { cell, project, scheduled: false, woken: false, due: BTreeSet::new(), waits: HashMap::new() };
        self.runs.insert(id, entry);
        true
    }

    /// Lets go of a run; its task, if any, must end.
    pub(super) fn remove(&mut self, id: WorkflowId) -> Option<Arc<C>> {
        let entry = self.runs.remove(&id)?;
        for (step, wait) in &entry.waits {
            forget_keys(&mut self.signals, &wait.keys, (id, *step));
        }
        Some(entry.cell)
    }

    /// Has the run driven soon. Returns its cell if a task drives it already and must be notified.
    pub(super) fn wake(&mut self, id: WorkflowId, step: Option<usize>) -> Option<Arc<C>> {
        let entry = self.runs.get_mut(&id)?;
        entry.woken = true;
        if let Some(step) = step {
            entry.due.insert(step);
            if let Some(wait) = entry.waits.remove(&step) {
                forget_keys(&mut self.signals, &wait.keys, (id, step));
            }
        }
        if entry.scheduled {
            return Some(Arc::clone(&entry.cell));
        }
        entry.scheduled = true;
        self.ready.push(entry.project, id);
        None
    }

    /// The next run to drive, if there is room. The caller begins its task.
    pub(super) fn next_ready(&mut self) -> Option<Arc<C>> {
        while !self.closed && self.executing < self.max_executing {
            let id = self.ready.pop()?;
            if let Some(entry) = self.runs.get(&id) {
                self.executing += 1;
                return Some(Arc::clone(&entry.cell));
            }
        }
        None
    }

    /// A task has ended.
    pub(super) fn task_ended(&mut self) {
        self.executing = self.executing.saturating_sub(1);
    }

    /// The waiting steps to call again.
    pub(super) fn take_due(&mut self, id: WorkflowId) -> BTreeSet<usize> {
        self.runs.get_mut(&id).map_or_else(BTreeSet::new, |entry| {
            entry.woken = false;
            std::mem::take(&mut entry.due)
        })
    }

    /// Ends the driving of a run that only waits. False if it has been woken meanwhile, or goes back into the queue
    /// because others are waiting for room.
    pub(super) fn park(&mut self, id: WorkflowId) -> bool {
        match self.runs.get_mut(&id) {
            Some(entry) if entry.woken => false,
            Some(entry) => {
                entry.scheduled = false;
                true
            }
            None => true,
        }
    }

    /// Whether others are waiting for room; if so the run joins the end of the queue and its task must end.
    pub(super) fn yield_to_others(&mut self, id: WorkflowId) -> bool {
        if self.ready.len == 0 || self.executing < self.max_executing {
            return false;
        }
        if let Some(entry) = self.runs.get_mut(&id) {
            entry.scheduled = true;
            entry.woken = true;
            self.ready.push(entry.project, id);
        }
        true
    }

    /// The number of the latest signal.
    pub(super) fn signal_count(&self) -> u64 {
        self.signal_count
    }

    /// Registers a wait. `since` is the number of the latest signal when the call began that decided to wait: if one of
    /// the keys was signalled after it, the step is due at once. Returns whether the caller must look at the timers.
    pub(super) fn register(
        &mut self,
        id: WorkflowId,
        step: usize,
        keys: &[Arc<str>],
        until: Timestamp,
        since: u64,
    ) -> bool {
        let missed = (self.forgotten > since && !keys.is_empty())
            || keys.iter().any(|key| self.recent.get(key).is_some_and(|number| *number > since));
        let Some(entry) = self.runs.get_mut(&id) else { return false };
        if let Some(old) = entry.waits.remove(&step) {
            forget_keys(&mut self.signals, &old.keys, (id, step));
        }
        if missed {
            entry.due.insert(step);
            entry.woken = true;
            return false;
        }
        self.timer_count += 1;
        entry.waits.insert(step, Registration { timer: self.timer_count, keys: keys.to_vec() });
        for key in keys {
            self.signals.entry(Arc::clone(key)).or_default().insert((id, step));
        }
        let first = self.timers.peek().is_none_or(|Reverse((at, ..))| until < *at);
        self.timers.push(Reverse((until, self.timer_count, id, step)));
        first
    }

    /// Wakes what waits for this signal. Returns tasks to notify.
    pub(super) fn signal(&mut self, key: &str) -> Vec<Arc<C>> {
        self.signal_count += 1;
        // Nobody can be about to wait while nothing executes.
        if self.executing > 0 {
            let key: Arc<str> = key.into();
            self.recent.insert(Arc::clone(&key), self.signal_count);
            self.recent_order.push_back((self.signal_count, key));
            if self.recent_order.len() > REMEMBERED_SIGNALS
                && let Some((number, key)) = self.recent_order.pop_front()
            {
                self.forgotten = number;
                if self.recent.get(&key) == Some(&number) {
                    self.recent.remove(&key);
                }
            }
        } else if !self.recent_order.is_empty() {
            self.recent.clear();
            self.recent_order.clear();
            self.forgotten = self.signal_count;
        }
        let waiting = self.signals.remove(key).unwrap_or_default();
        waiting.into_iter().filter_map(|(id, step)| self.wake(id, Some(step))).collect()
    }

    /// When the next timer is due.
    pub(super) fn next_timer(&mut self) -> Option<Timestamp> {
        while let Some(Reverse((at, number, id, step))) = self.timers.peek() {
            if self.timer_is_live(*number, *id, *step) {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    /// Wakes what is due. Returns tasks to notify.
    pub(super) fn fire_timers(&mut self, now: Timestamp) -> Vec<Arc<C>> {
        let mut notify = vec![];
        while let Some(at) = self.next_timer()
            && at <= now
            && let Some(Reverse((_, _, id, step))) = self.timers.pop()
        {
            notify.extend(self.wake(id, Some(step)));
        }
        notify
    }

    fn timer_is_live(&self, number: u64, id: WorkflowId, step: usize) -> bool {
        self.runs.get(&id).and_then(|entry| entry.waits.get(&step)).is_some_and(|wait| wait.timer == number)
    }
}

fn forget_keys(
    signals: &mut HashMap<Arc<str>, HashSet<(WorkflowId, usize)>>,
    keys: &[Arc<str>],
    who: (WorkflowId, usize),
) {
    for key in keys {
        if let Some(waiting) = signals.get_mut(key) {
            waiting.remove(&who);
            if waiting.is_empty() {
                signals.remove(key);
            }
        }
    }
}

/// First come, first served within a project; projects take turns.
#[derive(Default)]
struct ReadyQueue {
    turns: VecDeque<Option<ProjectId>>,
    queues: HashMap<Option<ProjectId>, VecDeque<WorkflowId>>,
    len: usize,
}

impl ReadyQueue {
    fn push(&mut self, project: Option<ProjectId>, id: WorkflowId) {
        let queue = self.queues.entry(project).or_default();
        if queue.is_empty() {
            self.turns.push_back(project);
        }
        queue.push_back(id);
        self.len += 1;
    }

    fn pop(&mut self) -> Option<WorkflowId> {
        let project = self.turns.pop_front()?;
        let queue = self.queues.get_mut(&project)?;
        let id = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&project);
        } else {
            self.turns.push_back(project);
        }
        self.len = self.len.saturating_sub(1);
        id
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nephos_types::Id;

    use super::*;

    fn id(number: u64) -> WorkflowId {
        WorkflowId::from_bits(number)
    }

    fn registry(runs: u64, room: usize) -> Registry<u64> {
        let mut registry = Registry::new(room);
        for number in 0..runs {
            assert!(registry.insert(id(number), None, Arc::new(number)));
        }
        registry
    }

    fn later(seconds: u64) -> Timestamp {
        Timestamp::default().plus(Duration::from_secs(seconds))
    }

    #[test]
    fn projects_take_turns() {
        let mut registry = Registry::new(100);
        let (busy, other) = (ProjectId::from_bits(1), ProjectId::from_bits(2));
        for number in 0..10 {
            let project = if number < 8 { busy } else { other };
            registry.insert(id(number), Some(project), Arc::new(number));
            registry.wake(id(number), None);
        }
        let order: Vec<u64> = std::iter::from_fn(|| registry.next_ready()).map(|cell| *cell).collect();
        assert_eq!(order[..5], [0, 8, 1, 9, 2]);
        assert_eq!(order.len(), 10);
    }

    #[test]
    fn room_is_bounded() {
        let mut registry = registry(3, 2);
        for number in 0..3 {
            registry.wake(id(number), None);
        }
        assert!(registry.next_ready().is_some() && registry.next_ready().is_some());
        assert!(registry.next_ready().is_none());
        registry.task_ended();
        assert!(registry.next_ready().is_some());
    }

    #[test]
    fn a_signal_between_the_look_and_the_wait_is_not_lost() {
        let mut registry = registry(1, 1);
        registry.wake(id(0), None);
        registry.next_ready();
        registry.take_due(id(0));
        let since = registry.signal_count();
        registry.signal("k");
        registry.register(id(0), 3, &["k".into()], later(10), since);
        assert!(!registry.park(id(0)), "it must be driven again");
        assert_eq!(registry.take_due(id(0)), BTreeSet::from([3]));
        let since = registry.signal_count();
        registry.register(id(0), 3, &["k".into()], later(10), since);
        assert!(registry.park(id(0)));
    }

    #[test]
    fn more_signals_than_are_remembered_cost_a_look_not_a_loss() {
        let mut registry = registry(1, 1);
        registry.wake(id(0), None);
        registry.next_ready();
        registry.take_due(id(0));
        let since = registry.signal_count();
        registry.signal("k");
        for number in 0..2 * REMEMBERED_SIGNALS {
            registry.signal(&number.to_string());
        }
        assert!(registry.recent.len() <= REMEMBERED_SIGNALS);
        registry.register(id(0), 0, &["k".into()], later(10), since);
        assert_eq!(registry.take_due(id(0)), BTreeSet::from([0]));
    }

    #[test]
    fn signals_and_timers_wake_once_and_leave_nothing_behind() {
        let mut registry = registry(2, 4);
        for number in 0..2 {
            registry.register(id(number), 0, &["a".into(), "b".into()], later(5 + number), 0);
        }
        registry.signal("b");
        assert!(registry.signals.is_empty());
        assert_eq!(registry.next_timer(), None);
        registry.take_due(id(0));
        registry.register(id(0), 0, &["a".into()], later(5), registry.signal_count());
        registry.register(id(1), 0, &[], later(7), 0);
        assert_eq!(registry.next_timer(), Some(later(5)));
        registry.fire_timers(later(5));
        assert_eq!(registry.take_due(id(0)), BTreeSet::from([0]));
        assert!(registry.signals.is_empty());
        registry.remove(id(1));
        assert_eq!(registry.next_timer(), None);
    }
}
