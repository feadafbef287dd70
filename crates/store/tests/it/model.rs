//! Random transactions, failing ones included, against a model of a few maps; restarts at random.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use nephos_store::{Bound, CommitError, Query, Record, Revision, Store};
use proptest::prelude::*;

use crate::fixture::{Engine, Home, Server, id, kinds, project, server, tx};

/// Few of each, so that transactions meet.
const IDS: u64 = 6;
const KEYS: u64 = 4;

#[derive(Clone, Debug)]
enum Step {
    Create(u64, u32),
    /// With the record as it is now, or as it was when it was first seen.
    Update(u64, u32, bool),
    Delete(u64, bool),
    Expect(u64, bool),
    Claim(u64, u64),
    Release(u64, u64),
    Add(u64, i64, Option<i64>),
}

#[derive(Clone, Debug)]
enum Event {
    Commit(Vec<Step>),
    /// Several at once, in one batch if it comes to that.
    Together(Vec<Vec<Step>>),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let fresh = prop::bool::weighted(0.9);
    prop_oneof![
        4 => (0..IDS, 0..9_u32).prop_map(|(n, size)| Step::Create(n, size)),
        4 => (0..IDS, 0..9_u32, fresh).prop_map(|(n, size, fresh)| Step::Update(n, size, fresh)),
        2 => (0..IDS, fresh).prop_map(|(n, fresh)| Step::Delete(n, fresh)),
        1 => (0..IDS, fresh).prop_map(|(n, fresh)| Step::Expect(n, fresh)),
        2 => (0..KEYS, 0..3_u64).prop_map(|(key, owner)| Step::Claim(key, owner)),
        2 => (0..KEYS, 0..3_u64).prop_map(|(key, owner)| Step::Release(key, owner)),
        2 => (0..KEYS, -5..6_i64, prop::option::of(-6..7_i64)).prop_map(|(key, by, limit)| Step::Add(key, by, limit)),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    let steps = || prop::collection::vec(step(), 1..5);
    prop_oneof![
        8 => steps().prop_map(Event::Commit),
        3 => prop::collection::vec(steps(), 2..6).prop_map(Event::Together),
        1 => Just(Event::Reopen),
    ]
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    newest: u64,
    /// Size and revision.
    records: BTreeMap<u64, (u32, u64)>,
    claims: BTreeMap<String, String>,
    counters: BTreeMap<String, i64>,
}

fn key(n: u64) -> String {
    format!("k/{n}")
}

fn bound(amount: i64, limit: Option<i64>) -> Bound {
    match limit {
        None => Bound::Any,
        Some(limit) if amount < 0 => Bound::AtLeast(limit),
        Some(limit) => Bound::AtMost(limit),
    }
}

/// The steps that can be said at all: updates need a record that was once read, and one write a record is the rule.
fn sayable(steps: &[Step], seen: &BTreeMap<u64, Vec<Record<Server>>>) -> Vec<Step> {
    let mut written = vec![];
    let mut keep = vec![];
    for step in steps {
        let ok = match step {
            Step::Create(n, _) => !written.contains(n),
            Step::Update(n, ..) | Step::Delete(n, _) => !written.contains(n) && seen.contains_key(n),
            Step::Expect(n, _) => seen.contains_key(n),
            _ => true,
        };
        if ok {
            if let Step::Create(n, _) | Step::Update(n, ..) | Step::Delete(n, _) = step {
                written.push(*n);
            }
            keep.push(step.clone());
        }
    }
    keep
}

fn pick(seen: &BTreeMap<u64, Vec<Record<Server>>>, n: u64, fresh: bool) -> &Record<Server> {
    let all = &seen[&n];
    if fresh { all.last().unwrap() } else { &all[0] }
}

fn transaction(steps: &[Step], seen: &BTreeMap<u64, Vec<Record<Server>>>) -> nephos_store::Transaction {
    steps.iter().fold(tx(), |all, step| match step {
        Step::Create(n, size) => all.create(server(*n, *size).project(project(n % 2))),
        Step::Update(n, size, fresh) => all.update(pick(seen, *n, *fresh), Server { size: *size, node: None }),
        Step::Delete(n, fresh) => all.delete(pick(seen, *n, *fresh)),
        Step::Expect(n, fresh) => all.expect(pick(seen, *n, *fresh)),
        Step::Claim(k, owner) => all.claim(key(*k), format!("o{owner}")),
        Step::Release(k, owner) => all.release(key(*k), format!("o{owner}")),
        Step::Add(k, amount, limit) => all.add(key(*k), *amount, bound(*amount, *limit)),
    })
}

/// What the steps make of the model, or that they must be refused.
fn predict(model: &Model, steps: &[Step], seen: &BTreeMap<u64, Vec<Record<Server>>>) -> Option<Model> {
    let mut after = model.clone();
    let current = |n: &u64, fresh: &bool| {
        model.records.get(n).is_some_and(|(_, revision)| *revision == pick(seen, *n, *fresh).meta.revision.0)
    };
    for step in steps {
        match step {
            Step::Create(n, size) => {
                after.newest += 1;
                if after.records.insert(*n, (*size, after.newest)).is_some() {
                    return None;
                }
            }
            Step::Update(n, size, fresh) => {
                after.newest += 1;
                after.records.insert(*n, (*size, after.newest));
                current(n, fresh).then_some(())?;
            }
            Step::Delete(n, fresh) => {
                after.newest += 1;
                after.records.remove(n);
                current(n, fresh).then_some(())?;
            }
            Step::Expect(n, fresh) => current(n, fresh).then_some(())?,
            Step::Claim(k, owner) => {
                let owner = format!("o{owner}");
                if *after.claims.entry(key(*k)).or_insert_with(|| owner.clone()) != owner {
                    return None;
                }
            }
            Step::Release(k, owner) => {
                if after.claims.get(&key(*k)) == Some(&format!("o{owner}")) {
                    after.claims.remove(&key(*k));
                }
            }
            Step::Add(k, amount, limit) => {
                let new = after.counters.remove(&key(*k)).unwrap_or(0) + amount;
                let refused = match limit {
                    Some(limit) if *amount < 0 => new < *limit,
                    Some(limit) if *amount > 0 => new > *limit,
                    _ => false,
                };
                if refused {
                    return None;
                }
                if new != 0 {
                    after.counters.insert(key(*k), new);
                }
            }
        }
    }
    Some(after)
}

fn actual(store: &Store) -> Model {
    let records = store.list::<Server>(&Query::all()).items;
    // The indexes say the same as the records.
    for (index, even) in [("even", true), ("odd", false)] {
        let listed = store.list::<Server>(&Query::all().index("parity", index)).items;
        let expected: Vec<_> = records.iter().filter(|r| r.body.size.is_multiple_of(2) == even).cloned().collect();
        assert_eq!(listed, expected);
    }
    Model {
        newest: store.revision().0,
        records: records.iter().map(|r| (r.id().bits_of(), (r.body.size, r.meta.revision.0))).collect(),
        claims: store.claims("", None, usize::MAX).into_iter().collect(),
        counters: store.counters("", None, usize::MAX).into_iter().collect(),
    }
}

trait BitsOf {
    fn bits_of(self) -> u64;
}

impl<I: nephos_types::Id> BitsOf for I {
    fn bits_of(self) -> u64 {
        self.bits()
    }
}

/// Each event happens on one of several stores, of which each must see what all did.
async fn check(engine: Engine, processes: usize, events: Vec<(usize, Event)>) {
    let home = Home::new(engine);
    let mut stores = vec![];
    for _ in 0..processes {
        stores.push(home.open(kinds()).await.unwrap());
    }
    let mut model = Model::default();
    let mut seen: BTreeMap<u64, Vec<Record<Server>>> = BTreeMap::new();
    for (number, event) in events {
        let store = &mut stores[number % processes];
        let mut asked = true;
        match event {
            Event::Commit(steps) => {
                let steps = sayable(&steps, &seen);
                asked = !steps.is_empty();
                let result = store.commit(transaction(&steps, &seen)).await;
                match predict(&model, &steps, &seen) {
                    Some(after) if asked => {
                        assert_eq!(result.unwrap().revision, Revision(after.newest), "{steps:?}");
                        model = after;
                    }
                    Some(_) => drop(result.unwrap()),
                    None => assert!(!matches!(result.unwrap_err(), CommitError::Failed(_)), "{steps:?}"),
                }
            }
            Event::Together(all) => {
                let all: Vec<_> = all.iter().map(|steps| sayable(steps, &seen)).collect();
                asked = all.iter().any(|steps| !steps.is_empty());
                // Polled in this order, so queued and decided in this order.
                let commits = all.iter().map(|steps| store.commit(transaction(steps, &seen)));
                let results = futures_util::future::join_all(commits).await;
                for (steps, result) in all.iter().zip(results) {
                    let after = predict(&model, steps, &seen);
                    assert_eq!(result.is_ok(), after.is_some(), "{steps:?} {result:?}");
                    model = after.unwrap_or(model);
                }
            }
            Event::Reopen => {
                store.close().await.unwrap();
                *store = home.open(kinds()).await.unwrap();
            }
        }
        // Whoever was answered, whatever the answer, sees all that happened before it.
        if asked {
            assert_eq!(actual(store), model);
        } else {
            reaches(store, &model).await;
        }
        for record in store.list::<Server>(&Query::all()).items {
            let all = seen.entry(record.id().bits_of()).or_default();
            if all.last() != Some(&*record) {
                all.push((*record).clone());
            }
        }
    }
    for store in &stores {
        reaches(store, &model).await;
        let report = store.verify().await.unwrap();
        assert!(report.is_sound(), "{report:#?}");
        // The feed from the beginning leads to the same records.
        let mut watch = store.watch(Some(Revision::ZERO));
        let mut replayed = BTreeMap::new();
        while watch.revision() < store.revision() {
            let change = watch.next().await.unwrap();
            let n = change.id::<Server>().unwrap().bits_of();
            match change.after::<Server>() {
                Some(record) => drop(replayed.insert(n, (record.body.size, record.meta.revision.0))),
                None => drop(replayed.remove(&n)),
            }
        }
        assert_eq!(replayed, model.records);
        // `id` is what the fixture makes of a number.
        assert!(model.records.keys().all(|n| store.get::<Server>(id(*n)).is_some()));
        store.close().await.unwrap();
    }
    let again = home.open(kinds()).await.unwrap();
    assert_eq!(actual(&again), model);
    again.close().await.unwrap();
}

/// Waits until a store that was not asked has followed the others.
async fn reaches(store: &Store, model: &Model) {
    let begin = Instant::now();
    while actual(store) != *model {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?} {model:?}", actual(store));
        tokio::task::yield_now().await;
    }
}

fn run(engine: Engine, processes: usize, events: Vec<(usize, Event)>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(check(engine, processes, events));
}

fn events() -> impl Strategy<Value = Vec<(usize, Event)>> {
    prop::collection::vec((0..6_usize, event()), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_store_on_sqlite_does_what_a_few_maps_would(events in events()) {
        run(Engine::Sqlite, 1, events);
    }

    #[test]
    fn a_store_on_postgresql_does_what_a_few_maps_would(events in events()) {
        run(Engine::Postgres, 1, events);
    }

    #[test]
    fn three_stores_on_one_database_do_what_a_few_maps_would(events in events()) {
        run(Engine::Postgres, 3, events);
    }
}
