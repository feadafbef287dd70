//! Makes a namespace's packet filter be so.
//!
//! What is there is not read back rule by rule. The kernel counts the generations of a namespace's packet filter, and on
//! the alias of the namespace's loopback interface stands which generation was ours and what it held. If both are as they
//! should be, so is the filter, whoever made it; if somebody else changed anything, all of ours is made anew, in one
//! transaction, so that not a packet passes by it.

use std::{io, path::Path};

use serde_json::json;

use super::Ruleset;
use crate::netlink::Space;

/// What this process knows to be in the kernel.
#[derive(Default)]
pub(crate) struct Committed {
    rules: Option<Ruleset>,
    generation: u32,
}

impl Committed {
    /// Whether this process has made the rules, and nobody has changed any since.
    pub(crate) fn holds(&self, space: &mut Space) -> io::Result<bool> {
        Ok(self.rules.is_some() && space.generation()? == self.generation)
    }
}

fn mark(generation: u32, rules: &Ruleset) -> String {
    format!("nft {generation} {}", rules.fingerprint())
}

/// Makes the packet filter of a namespace, which is all ours, be so. Returns whether it was something else.
pub(crate) fn commit(space: &mut Space, nft: &Path, committed: &mut Committed, rules: Ruleset) -> io::Result<bool> {
    let generation = space.generation()?;
    let before = committed.rules.take().filter(|_| committed.generation == generation);
    if before.as_ref() == Some(&rules) {
        committed.rules = before;
        return Ok(false);
    }
    let loopback = space.link("lo")?.ok_or_else(|| io::Error::other("there is no loopback interface"))?;
    if before.is_none() && loopback.alias == mark(generation, &rules) {
        *committed = Committed { rules: Some(rules), generation };
        return Ok(false);
    }
    let commands = rules.commands(before.as_ref());
    if !commands.is_empty() {
        space.changes().one();
        run(space, nft, &commands)?;
    }
    let generation = space.generation()?;
    space.set_alias(loopback.index, &mark(generation, &rules))?;
    *committed = Committed { rules: Some(rules), generation };
    Ok(true)
}

/// Carries commands out, in one transaction.
pub(crate) fn run(space: &Space, nft: &Path, commands: &[serde_json::Value]) -> io::Result<()> {
    let text = json!({ "nftables": commands }).to_string();
    space.inside(|| {
        nftables::helper::apply_ruleset_raw(&text, Some(nft), NO_ARGUMENTS).map(drop).map_err(io::Error::other)
    })
}

const NO_ARGUMENTS: [&str; 0] = [];
