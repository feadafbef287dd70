//! The simulated machine: its guests, its clock of things to come, its script.
//!
//! There is no task per guest or per host. What is due by the clock is settled whenever somebody looks, and whoever
//! waits (an event stream, an open console) sleeps until the next thing is due.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use nephos_types::{Bytes, Error, ServerId, Timestamp};
use tokio::{sync::Notify, time::Instant};

use super::{
    SimulatedDriver,
    disk::Files,
    line::Line,
    script::{Behaviour, Effect, Rule, Verb, chance},
    shell::{Action, Shell},
};
use crate::{GuestEvent, GuestSpec, Observation, Power, Presence, Usage};

/// So many events are kept for slow listeners; who falls further behind misses the oldest.
const EVENTS_KEPT: usize = 1024;
/// What is typed while a guest stands still is kept up to here.
const MOST_TYPED: usize = 4096;

/// A simulated machine. Cloning gives another handle to the same one; guests live in it and survive any number of
/// [`SimulatedDriver`]s, as real guests survive their agent.
///
/// An idle host costs about a kilobyte, a guest its spec and its console log.
#[derive(Clone)]
pub struct SimulatedHost {
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    state: Mutex<State>,
    /// Wakes event streams when there is an event or an earlier due time.
    pub(super) changed: Notify,
}

pub(super) struct State {
    seed: u64,
    boot_time: Duration,
    behaviour: [Behaviour; Verb::COUNT],
    calls: [u64; Verb::COUNT],
    script: Vec<Rule>,
    pub(super) guests: BTreeMap<ServerId, Guest>,
    due: BTreeMap<(Instant, u64), Due>,
    serial: u64,
    events: VecDeque<GuestEvent>,
    first_event: u64,
}

pub(super) struct Guest {
    pub(super) spec: GuestSpec,
    since: Timestamp,
    ended: Option<String>,
    pub(super) line: Line,
    pub(super) run: Option<Run>,
    /// The run of a suspended guest.
    saved: Option<Run>,
    pub(super) files: Files,
}

/// From a start to the end of the process.
pub(super) struct Run {
    /// Tells this run from the guest's other runs.
    pub(super) serial: u64,
    started: Instant,
    /// As at the start; later definitions take effect at the next one.
    name: String,
    vcpus: u32,
    memory: Bytes,
    /// `None` while booting.
    shell: Option<Shell>,
    pub(super) paused: bool,
    /// What was typed while it stood still.
    typed: Vec<u8>,
}

enum Due {
    Booted { id: ServerId, run: u64 },
    Crash { id: ServerId, run: u64 },
}

/// What the script and chance make of a call.
pub(super) struct Verdict {
    pub(super) delay: Duration,
    pub(super) hang: bool,
    pub(super) fail: Option<Error>,
    pub(super) crash_after: Option<Duration>,
    pub(super) deaf: bool,
    pub(super) unknown: Option<String>,
}

impl SimulatedHost {
    /// An empty machine on which every call succeeds at once. Equal seeds give equal delays and failures to equal
    /// sequences of calls.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            seed,
            boot_time: Duration::ZERO,
            behaviour: [Behaviour::default(); Verb::COUNT],
            calls: [0; Verb::COUNT],
            script: vec![],
            guests: BTreeMap::new(),
            due: BTreeMap::new(),
            serial: 0,
            events: VecDeque::new(),
            first_event: 0,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// A driver for this machine, as a newly started agent makes one.
    #[must_use]
    pub fn driver(&self) -> SimulatedDriver {
        SimulatedDriver::new(self.clone())
    }

    /// How calls of a verb behave from now on.
    pub fn behave(&self, verb: Verb, behaviour: Behaviour) {
        self.inner.lock().behaviour[verb as usize] = behaviour;
    }

    /// How long guests take from their start to the login prompt, from now on.
    pub fn boot_time(&self, boot_time: Duration) {
        self.inner.lock().boot_time = boot_time;
    }

    /// Adds a rule. The first one that hits a call decides.
    pub fn order(&self, rule: Rule) {
        self.inner.lock().script.push(rule);
    }

    /// Drops all rules.
    pub fn forget_orders(&self) {
        self.inner.lock().script.clear();
    }

    /// Ends a running guest as if its process had died; nothing happens if it does not run.
    pub fn crash(&self, id: ServerId, why: &str) {
        let mut state = self.inner.lock();
        if state.guests.get(&id).is_some_and(|guest| guest.run.is_some()) {
            state.end(id, Some(format!("crashed: {why}")), Some(GuestEvent::Crashed(id, why.to_owned())));
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Ends a running guest as if it had shut itself down; nothing happens if it does not run.
    pub fn shut_down(&self, id: ServerId) {
        let mut state = self.inner.lock();
        if state.guests.get(&id).is_some_and(|guest| guest.run.is_some()) {
            state.end(id, Some("shutdown".to_owned()), Some(GuestEvent::ShutDown(id)));
        }
        drop(state);
        self.inner.changed.notify_waiters();
    }

    /// Ends all guests at once without any event, as when the machine loses power.
    pub fn lose_power(&self) {
        let mut state = self.inner.lock();
        let running: Vec<ServerId> =
            state.guests.iter().filter(|(_, guest)| guest.run.is_some()).map(|(id, _)| *id).collect();
        for id in running {
            state.end(id, Some("crashed: the machine restarted".to_owned()), None);
        }
    }

    /// The definition of a guest as last given.
    #[must_use]
    pub fn spec(&self, id: ServerId) -> Option<GuestSpec> {
        self.inner.lock().guests.get(&id).map(|guest| guest.spec.clone())
    }

    /// How often a verb has been called.
    #[must_use]
    pub fn calls(&self, verb: Verb) -> u64 {
        self.inner.lock().calls[verb as usize]
    }
}

impl Inner {
    /// The state, with all that is due by now done.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another holder leaves at worst a guest in an odd state, which is what simulations are for.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.due.is_empty() {
            state.settle(Instant::now());
        }
        state
    }
}

impl State {
    /// Counts a call and says what becomes of it.
    pub(super) fn judge(&mut self, verb: Verb, guest: Option<ServerId>) -> Verdict {
        let behaviour = self.behaviour[verb as usize];
        let call = self.calls[verb as usize];
        self.calls[verb as usize] += 1;
        let jitter = behaviour.jitter.mul_f64(chance(self.seed, verb, call, 0) as f64 / u64::MAX as f64);
        let mut verdict = Verdict {
            delay: behaviour.latency + jitter,
            hang: false,
            fail: None,
            crash_after: None,
            deaf: false,
            unknown: None,
        };
        if chance(self.seed, verb, call, 1) % 1_000_000 < u64::from(behaviour.failures_per_million) {
            verdict.fail = Some(
                Error::new(nephos_types::ErrorKind::Unavailable, "simulated_failure", "The simulated machine failed")
                    .detail(format!("{verb:?} was chosen to fail")),
            );
        }
        // Every rule counts every call it is about; the first one that hits decides.
        let mut effect = None;
        for rule in &mut self.script {
            let hit = rule.hit(verb, guest);
            effect = effect.or(hit);
        }
        self.script.retain(|rule| !rule.spent());
        match effect {
            None => {}
            Some(Effect::Fail(error)) => verdict.fail = Some(error),
            Some(Effect::Hang) => verdict.hang = true,
            Some(Effect::Delay(delay)) => verdict.delay += delay,
            Some(Effect::CrashAfter(after)) => verdict.crash_after = Some(after),
            Some(Effect::IgnorePowerButton) => verdict.deaf = true,
            Some(Effect::Unknown(reason)) => verdict.unknown = Some(reason),
        }
        verdict
    }

    /// When the next thing is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.keys().next().map(|(when, _)| *when)
    }

    /// The event with this number, or the oldest one kept after it, and the number of the one that follows.
    pub(super) fn event(&self, number: u64) -> Option<(GuestEvent, u64)> {
        let number = number.max(self.first_event);
        let event = self.events.get(usize::try_from(number - self.first_event).ok()?)?;
        Some((event.clone(), number + 1))
    }

    /// The number that the next event will have.
    pub(super) fn next_event(&self) -> u64 {
        self.first_event + self.events.len() as u64
    }

    pub(super) fn observe(&self, id: ServerId) -> Presence {
        let Some(guest) = self.guests.get(&id) else { return Presence::Gone };
        Presence::Present(Observation {
            power: guest.power(),
            since: guest.since,
            ended: guest.ended.clone(),
            pid: None,
        })
    }

    pub(super) fn define(&mut self, spec: &GuestSpec) {
        match self.guests.get_mut(&spec.id) {
            Some(guest) => {
                if guest.spec.disk.incarnation != spec.disk.incarnation {
                    guest.files = files_of(spec);
                }
                guest.spec.clone_from(spec);
            }
            None => {
                let guest = Guest {
                    spec: spec.clone(),
                    since: Timestamp::now(),
                    ended: None,
                    line: Line::default(),
                    run: None,
                    saved: None,
                    files: files_of(spec),
                };
                self.guests.insert(spec.id, guest);
            }
        }
    }

    /// Starts a guest that does not run; `false` if there is none.
    pub(super) fn start(&mut self, id: ServerId, crash_after: Option<Duration>) -> bool {
        let now = Instant::now();
        let serial = self.next_serial();
        let Some(guest) = self.guests.get_mut(&id) else { return false };
        if let Some(run) = &mut guest.run {
            if std::mem::take(&mut run.paused) {
                guest.since = Timestamp::now();
                let typed = std::mem::take(&mut run.typed);
                self.typed(id, &typed);
            }
            return true;
        }
        if let Some(saved) = guest.saved.take() {
            guest.since = Timestamp::now();
            guest.run = Some(Run { serial, started: now, paused: false, ..saved });
            return true;
        }
        guest.since = Timestamp::now();
        guest.ended = None;
        guest.run = Some(Run {
            serial,
            started: now,
            name: guest.spec.name.clone(),
            vcpus: guest.spec.vcpus,
            memory: guest.spec.memory,
            shell: None,
            paused: false,
            typed: vec![],
        });
        self.boot(id);
        if let Some(after) = crash_after {
            let when = (now + after, self.next_serial());
            self.due.insert(when, Due::Crash { id, run: serial });
        }
        true
    }

    /// The run's shell starts anew, at once or after the boot time.
    fn boot(&mut self, id: ServerId) {
        let boot_time = self.boot_time;
        let number = self.next_serial();
        let Some(guest) = self.guests.get_mut(&id) else { return };
        let Some(run) = &mut guest.run else { return };
        if boot_time.is_zero() {
            run.show_login(&mut guest.line);
        } else {
            run.shell = None;
            self.due.insert((Instant::now() + boot_time, number), Due::Booted { id, run: run.serial });
        }
    }

    /// A guest starts again within its run.
    pub(super) fn reset(&mut self, id: ServerId) {
        if let Some(guest) = self.guests.get_mut(&id) {
            guest.since = Timestamp::now();
        }
        self.boot(id);
    }

    /// Ends a run, if there is one.
    pub(super) fn end(&mut self, id: ServerId, ended: Option<String>, event: Option<GuestEvent>) {
        let Some(guest) = self.guests.get_mut(&id) else { return };
        if guest.run.take().or(guest.saved.take()).is_none() {
            return;
        }
        guest.since = Timestamp::now();
        guest.ended = ended;
        guest.line.wake();
        if let Some(event) = event {
            self.tell(event);
        }
    }

    /// A running guest stands still from now on; `false` if it does not run.
    pub(super) fn pause(&mut self, id: ServerId) -> bool {
        let Some(guest) = self.guests.get_mut(&id) else { return false };
        let Some(run) = &mut guest.run else { return false };
        if !std::mem::replace(&mut run.paused, true) {
            guest.since = Timestamp::now();
        }
        true
    }

    /// A running guest is suspended from now on; `false` if it is off.
    pub(super) fn suspend(&mut self, id: ServerId) -> bool {
        let Some(guest) = self.guests.get_mut(&id) else { return false };
        if let Some(run) = guest.run.take() {
            guest.saved = Some(run);
            guest.since = Timestamp::now();
            guest.line.wake();
        }
        guest.saved.is_some()
    }

    /// Passes what was typed to a guest's shell. `true` if there is an event now.
    pub(super) fn typed(&mut self, id: ServerId, bytes: &[u8]) -> bool {
        let Some(guest) = self.guests.get_mut(&id) else { return false };
        let Some(run) = &mut guest.run else { return false };
        if run.paused {
            let room = MOST_TYPED.saturating_sub(run.typed.len()).min(bytes.len());
            run.typed.extend_from_slice(&bytes[..room]);
            return false;
        }
        let Some(shell) = &mut run.shell else { return false };
        let (shown, action) = shell.feed(bytes, &mut guest.files);
        guest.line.write(&shown);
        match action {
            None => return false,
            Some(Action::PowerOff) => self.end(id, Some("shutdown".to_owned()), Some(GuestEvent::ShutDown(id))),
            Some(Action::Crash) => {
                let why = "it was told to";
                self.end(id, Some(format!("crashed: {why}")), Some(GuestEvent::Crashed(id, why.to_owned())));
            }
            Some(Action::Reboot) => {
                self.reset(id);
                self.tell(GuestEvent::Restarted(id));
            }
        }
        true
    }

    pub(super) fn usage(&self, id: ServerId) -> Option<Usage> {
        let guest = self.guests.get(&id)?;
        Some(guest.run.as_ref().map_or_else(Usage::default, |run| Usage {
            // As a guest that keeps a tenth of one CPU busy.
            cpu: run.started.elapsed() / 10,
            memory: Bytes(run.memory.0 / 4),
            disk_written: guest.files.size(),
            ..Usage::default()
        }))
    }

    fn settle(&mut self, now: Instant) {
        while let Some(entry) = self.due.first_entry() {
            if entry.key().0 > now {
                break;
            }
            match entry.remove() {
                Due::Booted { id, run } => {
                    if let Some(guest) = self.guests.get_mut(&id)
                        && let Some(current) = guest.run.as_mut().filter(|current| current.serial == run)
                    {
                        current.show_login(&mut guest.line);
                    }
                }
                Due::Crash { id, run } => {
                    if self.guests.get(&id).and_then(|guest| guest.run.as_ref()).is_some_and(|r| r.serial == run) {
                        let why = "it was ordered to";
                        self.end(id, Some(format!("crashed: {why}")), Some(GuestEvent::Crashed(id, why.to_owned())));
                    }
                }
            }
        }
    }

    fn tell(&mut self, event: GuestEvent) {
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
            self.first_event += 1;
        }
        self.events.push_back(event);
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

impl Guest {
    pub(super) fn power(&self) -> Power {
        match (&self.run, &self.saved) {
            (Some(run), _) if run.paused => Power::Paused,
            (Some(_), _) => Power::On,
            (None, Some(_)) => Power::Suspended,
            (None, None) => Power::Off,
        }
    }
}

/// What is on a guest's disk at first.
fn files_of(spec: &GuestSpec) -> Files {
    spec.disk.base.as_ref().map(|(image, _)| Files::of_image(image)).unwrap_or_default()
}

impl Run {
    fn show_login(&mut self, line: &mut Line) {
        let (shell, greeting) = Shell::boot(&self.name, self.vcpus);
        self.shell = Some(shell);
        line.write(&greeting);
    }
}
