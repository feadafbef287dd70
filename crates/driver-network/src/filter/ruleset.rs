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
        let known = before.filter(|before| self.is_shaped_like(before));
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

    /// Whether what bears the same name is of the same kind. If not, all is made anew rather than one by one.
    fn is_shaped_like(&self, before: &Self) -> bool {
        let shape = |set: &Set| (set.kind, set.interval, set.verdicts);
        self.tables == before.tables
            && self.chains.iter().all(|(key, new)| before.chains.get(key).is_none_or(|old| old.hook == new.hook))
            && self.sets.iter().all(|(key, new)| before.sets.get(key).is_none_or(|old| shape(old) == shape(new)))
    }

    fn differences(&self, before: &Self, commands: &mut Vec<Value>) {
        for (key, new) in self.chains.iter().filter(|(key, _)| !before.chains.contains_key(*key)) {
            commands.push(json!({ "add": chain(&key.0, &key.1, new.hook.as_ref()) }));
        }
        for (key, new) in self.sets.iter().filter(|(key, _)| !before.sets.contains_key(*key)) {
            commands.push(json!({ "add": set(&key.0, &key.1, new) }));
        }
        for (key, new) in &self.chains {
            let old = before.chains.get(key);
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
            let old = before.sets.get(key).map_or(&nothing, |old| &old.elements);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would hold, and what it refuses.
    #[derive(Default, Debug, PartialEq)]
    struct Kernel {
        chains: BTreeMap<String, Vec<Value>>,
        sets: BTreeMap<String, BTreeSet<String>>,
    }

    impl Kernel {
        fn used(&self, name: &str) -> bool {
            let text = format!("\"{name}\"");
            let verdict = |element: &String| element.contains(&text);
            self.chains.values().flatten().any(|rule| rule.to_string().contains(&text))
                || self.sets.values().flatten().any(verdict)
        }

        fn run(&mut self, command: &Value) {
            let (verb, object) = command.as_object().unwrap().iter().next().unwrap();
            let (kind, fields) = object.as_object().unwrap().iter().next().unwrap();
            let name = fields["name"].as_str().unwrap_or_default().to_owned();
            let values = || fields["elem"].as_array().unwrap().iter().map(Value::to_string);
            match (verb.as_str(), kind.as_str()) {
                (_, "table") => *self = Self::default(),
                ("add", "chain") => assert!(self.chains.insert(name, vec![]).is_none()),
                ("flush", "chain") => self.chains.get_mut(&name).unwrap().clear(),
                ("delete", "chain") => {
                    assert!(self.chains.remove(&name).unwrap().is_empty());
                    assert!(!self.used(&name), "{name} is used");
                }
                ("add", "rule") => {
                    let chain = fields["chain"].as_str().unwrap();
                    for word in fields["expr"].as_array().unwrap() {
                        let word = word.as_str().unwrap();
                        assert!(self.chains.contains_key(word) || self.sets.contains_key(word), "{word} is not there");
                    }
                    self.chains.get_mut(chain).unwrap().push(fields["expr"].clone());
                }
                ("add", "set" | "map") => assert!(self.sets.insert(name, BTreeSet::new()).is_none()),
                ("delete", "set" | "map") => {
                    self.sets.remove(&name).unwrap();
                    assert!(!self.used(&name), "{name} is used");
                }
                ("add", "element") => {
                    for value in values() {
                        assert!(self.sets.get_mut(&name).unwrap().insert(value));
                    }
                }
                ("delete", "element") => {
                    for value in values() {
                        assert!(self.sets.get_mut(&name).unwrap().remove(&value));
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Rules that only mention chains and sets that are there.
    fn rulesets() -> impl Strategy<Value = Ruleset> {
        let chains =
            prop::collection::btree_map(0..6_u8, (any::<bool>(), prop::collection::vec(0..12_usize, 0..3)), 0..6);
        let sets =
            prop::collection::btree_map(0..4_u8, (any::<bool>(), prop::collection::btree_set(0..8_u8, 0..5)), 0..4);
        (chains, sets).prop_map(|(chains, sets)| {
            let table = Table { family: Family::Bridge, name: "t".into() };
            let names: Vec<String> = chains
                .keys()
                .map(|number| format!("c{number}"))
                .chain(sets.keys().map(|number| format!("s{number}")))
                .collect();
            let chains = chains.into_iter().map(|(number, (hooked, mentions))| {
                let hook = hooked.then_some(Hook { kind: "filter", hook: "forward", priority: 0 });
                let rules = mentions.iter().map(|mention| json!([names[mention % names.len()]])).collect();
                ((table.clone(), format!("c{number}")), Chain { hook, rules })
            });
            let sets = sets.iter().map(|(number, (interval, elements))| {
                let elements = elements.iter().map(u8::to_string).collect();
                let set = Set { kind: "mark", interval: *interval, verdicts: false, elements };
                ((table.clone(), format!("s{number}")), set)
            });
            Ruleset { tables: vec![table.clone()], chains: chains.collect(), sets: sets.collect() }
        })
    }

    fn kernel(rules: &Ruleset) -> Kernel {
        let chains = rules.chains.iter().map(|((_, name), chain)| (name.clone(), chain.rules.clone()));
        let sets = rules.sets.iter().map(|((_, name), set)| (name.clone(), set.elements.clone()));
        Kernel { chains: chains.collect(), sets: sets.collect() }
    }

    proptest! {
        #[test]
        fn the_difference_makes_one_out_of_the_other(before in rulesets(), after in rulesets()) {
            let mut held = Kernel::default();
            for (rules, known) in [(&before, None), (&after, Some(&before)), (&before, None), (&before, Some(&before))] {
                let commands = rules.commands(known);
                prop_assert!(known != Some(rules) || commands.is_empty());
                commands.iter().for_each(|command| held.run(command));
                prop_assert_eq!(&held, &kernel(rules));
            }
        }
    }
}
