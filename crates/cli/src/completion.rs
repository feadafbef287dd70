//! Completing what is being typed: words from the tree, names of resources from the cloud.
//!
//! The shell runs the program for each completion. Names are asked for within [`LIMIT`] and kept for [`FRESH`], since a
//! person presses the key several times; whatever goes wrong, nothing is offered and nothing is said.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Command, builder::StyledStr};
use clap_complete::{
    CompleteEnv, CompletionCandidate,
    engine::{ArgValueCompleter, ValueCompleter},
};
use nephos_ops::Entry;
use nephos_types::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    app::block_on,
    command::{global::Globals, leaf},
    session::{Session, Source, cache},
};

/// Set by the shell when it asks for completions.
pub(crate) const VARIABLE: &str = "NEPHOS_COMPLETE";
/// How long the cloud may take to name its resources.
const LIMIT: Duration = Duration::from_millis(200);
/// How long names are remembered.
const FRESH: Duration = Duration::from_secs(5);
/// How many names are asked for.
const MOST: u32 = 1000;

/// Answers the shell if it is the one that asks; `false` for an ordinary command line.
pub(crate) fn answer(tree: impl Fn() -> Command, args: &[OsString]) -> Result<bool> {
    let folder = std::env::current_dir().ok();
    CompleteEnv::with_factory(tree)
        .var(VARIABLE)
        .try_complete(args.iter().cloned(), folder.as_deref())
        .map_err(|error| Error::invalid("usage", "The shell's request is not understood").detail(error.to_string()))
}

/// What completes a field that names a resource; `None` for other fields.
pub(crate) fn of_field(name: &str) -> Option<ArgValueCompleter> {
    let list = leaf::entry(&format!("{name}.list"))?;
    Some(ArgValueCompleter::new(Names { list }))
}

/// Names and ids of the resources that an operation lists.
struct Names {
    list: &'static Entry,
}

#[derive(Serialize, Deserialize)]
struct Known {
    id: String,
    name: Option<String>,
}

impl ValueCompleter for Names {
    fn complete(&self, current: &OsStr) -> Vec<CompletionCandidate> {
        let Some(typed) = current.to_str() else { return vec![] };
        let known = self.known().unwrap_or_default();
        let begins = |text: &str| text.starts_with(typed);
        let by_name = known.iter().filter_map(|one| {
            let name = one.name.as_deref().filter(|name| begins(name))?;
            Some(CompletionCandidate::new(name).help(Some(StyledStr::from(one.id.clone()))))
        });
        let candidates: Vec<_> = by_name.collect();
        if !candidates.is_empty() {
            return candidates;
        }
        // Ids only once nothing else fits: nobody wants both of each.
        let by_id = known.iter().filter(|one| begins(&one.id));
        by_id.map(|one| CompletionCandidate::new(&one.id).help(one.name.clone().map(StyledStr::from))).collect()
    }
}

impl Names {
    fn known(&self) -> Result<Vec<Known>> {
        let globals = Globals::default();
        let source = Source::find(&globals)?;
        let place = self.place(&source);
        if let Some(known) = place.as_deref().and_then(remembered) {
            return Ok(known);
        }
        let mut session = Session::of(source, &globals)?;
        let known: Vec<Known> = block_on(async {
            let input = json!({ "limit": MOST });
            let asking = session.call(&self.list.spec, &input);
            let answer = tokio::time::timeout(LIMIT, asking).await.map_err(|_| {
                Error::new(ErrorKind::Timeout, "timeout", "The cloud took too long to name its resources")
            })??;
            let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
            let text = |item: &Value, field: &str| item.get(field).and_then(Value::as_str).map(str::to_owned);
            Ok(items
                .iter()
                .filter_map(|item| Some(Known { id: text(item, "id")?, name: text(item, "name") }))
                .collect())
        })?;
        if let Some(place) = place {
            remember(&place, &known);
        }
        Ok(known)
    }

    /// Where names are kept: one file for each cloud, identity and kind.
    fn place(&self, source: &Source) -> Option<PathBuf> {
        let mut parts = source.parts();
        parts.push(self.list.spec.name.to_owned());
        Some(cache::folder()?.join(format!("names-{}.json", cache::digest(&parts))))
    }
}

fn remembered(place: &Path) -> Option<Vec<Known>> {
    let age = fs::metadata(place).ok()?.modified().ok()?.elapsed().ok()?;
    if age > FRESH {
        return None;
    }
    serde_json::from_slice(&fs::read(place).ok()?).ok()
}

/// That this fails costs a request next time, so it is no error.
fn remember(place: &Path, known: &[Known]) {
    if let Ok(text) = serde_json::to_vec(known) {
        let _ = cache::write_private(place, &text);
    }
}
