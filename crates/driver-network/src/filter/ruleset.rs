//! Sets of rules, and what makes one into another.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::Serialize;
use serde_json::{Value, json};

/// Families of tables that are used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    Inet,
    Bridge,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
}

/// Where the kernel begins with a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hook {
    pub(crate) kind: &'static str,
    pub(crate) hook: &'static str,
    pub(crate) priority: i32,
}

/// A chain of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Chain {
    pub(crate) hook: Option<Hook>,
    /// Each a list of expressions.
    pub(crate) rules: Vec<Value>,
}

/// A named set, or a map to verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Set {
    /// Type of its elements.
    pub(crate) kind: &'static str,
    /// Whether elements are ranges.
    pub(crate) interval: bool,
    /// What elements lead to, if it is a map.
    pub(crate) verdicts: bool,
    /// Elements, as nftables writes them in JSON.
    pub(crate) elements: BTreeSet<String>,
}

/// All that is in tables of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ruleset {
    pub(crate) tables: Vec<Table>,
    pub(crate) chains: BTreeMap<(Table, String), Chain>,
    pub(crate) sets: BTreeMap<(Table, String), Set>,
}

fn names(table: &Table, name: &str) -> serde_json::Map<String, Value> {
    let Value::Object(fields) = json!({ "family": table.family, "table": table.name, "name": name }) else {
        return serde_json::Map::new();
    };
    fields
}

fn chain(table: &Table, name: &str, hook: Option<&Hook>) -> Value {
    let mut fields = names(table, name);
    if let Some(hook) = hook {
        fields.insert("type".into(), hook.kind.into());
        fields.insert("hook".into(), hook.hook.into());
        fields.insert("prio".into(), hook.priority.into());
        fields.insert("policy".into(), "accept".into());
    }
    json!({ "chain": fields })
}

fn set(table: &Table, name: &str, set: &Set) -> Value {
    let mut fields = names(table, name);
    fields.insert("type".into(), set.kind.into());
    if set.interval {
        fields.insert("flags".into(), json!(["interval"]));
    }
    if set.verdicts {
        fields.insert("map".into(), "verdict".into());
        json!({ "map": fields })
    } else {
        json!({ "set": fields })
    }
}

fn elements<'a>(table: &Table, name: &str, elements: impl Iterator<Item = &'a String>) -> Option<Value> {
    let values: Vec<Value> = elements.filter_map(|element| serde_json::from_str(element).ok()).collect();
    if values.is_empty() {
        return None;
    }
    let mut fields = names(table, name);
    fields.insert("elem".into(), values.into());
    Some(json!({ "element": fields }))
}

fn rule(table: &Table, chain: &str, expressions: &Value) -> Value {
    json!({ "rule": { "family": table.family, "table": table.name, "chain": chain, "expr": expressions } })
}

impl Ruleset {
    /// What tells one set of rules from another.
    pub(crate) fn fingerprint(&self) -> String {
        // Made and compared by the same program: another one may well make the rules anew.
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }

    /// The commands that make this out of what was, or out of whatever is there; one transaction of the kernel. None if
    /// nothing has to be done.
    pub(crate) fn commands(&self, before: Option<&Self>) -> Vec<Value> {
        let mut commands = vec![];
        let nothing = Self::default();
        let known = before.filter(|before| before.tables == self.tables);
        if known.is_none() {
            let old = before.map(|before| before.tables.as_slice()).unwrap_or_default();
            for table in self.tables.iter().chain(old.iter().filter(|table| !self.tables.contains(table))) {
                // One that is not there cannot be deleted.
                commands.push(json!({ "add": { "table": table } }));
                commands.push(json!({ "delete": { "table": table } }));
            }
            commands.extend(self.tables.iter().map(|table| json!({ "add": { "table": table } })));
        }
        self.differences(known.unwrap_or(&nothing), &mut commands);
        commands
    }

    fn differences(&self, before: &Self, commands: &mut Vec<Value>) {
        // A chain that begins elsewhere is another chain.
        let same = |key: &(Table, String), chain: &Chain| before.chains.get(key).filter(|old| old.hook == chain.hook);
        for (key, old) in &before.chains {
            if self.chains.get(key).is_some_and(|new| new.hook != old.hook) {
                commands.push(json!({ "flush": chain(&key.0, &key.1, None) }));
                commands.push(json!({ "delete": chain(&key.0, &key.1, None) }));
            }
        }
        for (key, new) in &self.chains {
            if same(key, new).is_none() {
                commands.push(json!({ "add": chain(&key.0, &key.1, new.hook.as_ref()) }));
            }
        }
        let kept = |key: &(Table, String), new: &Set| {
            before
                .sets
                .get(key)
                .filter(|old| (old.kind, old.interval, old.verdicts) == (new.kind, new.interval, new.verdicts))
        };
        for (key, new) in &self.sets {
            if kept(key, new).is_none() {
                commands.push(json!({ "add": set(&key.0, &key.1, new) }));
            }
        }
        for (key, new) in &self.chains {
            let old = same(key, new);
            if old.is_some_and(|old| old.rules == new.rules) {
                continue;
            }
            if old.is_some_and(|old| !old.rules.is_empty()) {
                commands.push(json!({ "flush": chain(&key.0, &key.1, None) }));
            }
            commands.extend(new.rules.iter().map(|expressions| json!({ "add": rule(&key.0, &key.1, expressions) })));
        }
        for (key, new) in &self.sets {
            let nothing = BTreeSet::new();
            let old = kept(key, new).map_or(&nothing, |old| &old.elements);
            let gone = elements(&key.0, &key.1, old.difference(&new.elements));
            commands.extend(gone.map(|gone| json!({ "delete": gone })));
            let come = elements(&key.0, &key.1, new.elements.difference(old));
            commands.extend(come.map(|come| json!({ "add": come })));
        }
        let gone: Vec<_> = before.chains.keys().filter(|key| !self.chains.contains_key(*key)).collect();
        commands.extend(gone.iter().map(|key| json!({ "flush": chain(&key.0, &key.1, None) })));
        for (key, old) in &before.sets {
            if !self.sets.contains_key(key) {
                let kind = if old.verdicts { "map" } else { "set" };
                commands.push(json!({ "delete": { kind: names(&key.0, &key.1) } }));
            }
        }
        commands.extend(gone.iter().map(|key| json!({ "delete": chain(&key.0, &key.1, None) })));
    }
}
