//! What is known about the codes of errors: the tables of `docs/errors.md`, which is also what people read.

use crate::command::leaf;

/// The page itself.
const PAGE: &str = include_str!("../../../../docs/errors.md");

/// What to do about an error with this code, if it is one that the cloud or this program gives.
pub(super) fn explain(code: &str) -> Option<String> {
    let lists = PAGE.split("## Common codes").nth(1).unwrap_or_default();
    let quoted = format!("`{code}`");
    let row = lists.lines().find_map(|line| {
        let (codes, advice) = line.strip_prefix("| ")?.strip_suffix(" |")?.split_once(" | ")?;
        codes.split(", ").any(|listed| listed == quoted).then_some((codes, advice))
    });
    let (advice, related) = match row {
        Some((codes, advice)) => {
            let related: Vec<&str> = codes.split(", ").filter(|listed| *listed != quoted).collect();
            (plain(advice), related.join(", ").replace('`', ""))
        }
        None => {
            let thing = code.strip_suffix("_not_found").filter(|thing| !thing.is_empty())?.replace('_', "-");
            let mut advice = format!("there is no such {thing}, or it belongs to a project that you do not work in");
            if nephos_ops::table().iter().any(|entry| leaf::noun(entry) == thing && entry.spec.verb() == "list") {
                advice.push_str(&format!(": `nephos {thing} list`, and `nephos` alone for the project"));
            }
            (advice, String::new())
        }
    };
    let mut text = format!("{code}\n  {advice}\n");
    if !related.is_empty() {
        text.push_str(&format!("\nLikewise: {related}\n"));
    }
    Some(text)
}

/// Links and escapes mean nothing in a terminal.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, link)) = rest.split_once('[') {
        plain.push_str(before);
        match link.split_once("](").and_then(|(word, after)| Some((word, after.split_once(')')?.1))) {
            Some((word, after)) => {
                plain.push_str(word);
                rest = after;
            }
            None => {
                plain.push('[');
                rest = link;
            }
        }
    }
    plain.push_str(rest);
    plain.replace("\\|", "|")
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    /// The codes that this source gives to errors, outside of its tests.
    fn codes(source: &str) -> BTreeSet<String> {
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut codes = BTreeSet::new();
        for call in
            ["Error::new(", "Self::new(", "Error::invalid(", "Self::invalid(", "Error::conflict(", "Self::conflict("]
        {
            for rest in source.split(call).skip(1) {
                // The first argument is the code, or the kind before it.
                let first = rest.trim_start();
                let code = match first.strip_prefix('"') {
                    Some(text) => Some(text),
                    None => first
                        .split_once(',')
                        .filter(|(kind, _)| kind.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'))
                        .and_then(|(_, after)| after.trim_start().strip_prefix('"')),
                };
                let code = code.and_then(|text| text.split_once('"')).map(|(code, _)| code);
                codes.extend(
                    code.filter(|code| {
                        !code.is_empty()
                            && code.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
                    })
                    .map(str::to_owned),
                );
            }
        }
        codes
    }

    fn sources(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                // Made to be used by tests alone.
                if !["testing", "contract", "bin"].contains(&name.as_str()) {
                    sources(&path, found);
                }
            } else if name.ends_with(".rs") && name != "tests.rs" {
                found.push(fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn every_code_in_the_source_is_explained_and_nothing_else() {
        let package = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        let crates = Path::new(&package).parent().unwrap();
        let mut all = vec![];
        for entry in fs::read_dir(crates).unwrap() {
            let source = entry.unwrap().path().join("src");
            if source.is_dir() {
                sources(&source, &mut all);
            }
        }
        let used: BTreeSet<String> = all.iter().flat_map(|source| codes(source)).collect();
        assert!(used.len() > 200, "only {} codes were found", used.len());
        let missing: Vec<_> = used.iter().filter(|code| explain(code).is_none()).collect();
        assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
        let text = all.concat();
        let listed = PAGE.split("## Common codes").nth(1).unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
        let listed = listed.flat_map(|line| line.split(" | ").next().unwrap().split(", "));
        let stale: Vec<_> =
            listed.map(|code| code.trim_matches('`')).filter(|code| !text.contains(&format!("\"{code}\""))).collect();
        assert!(stale.is_empty(), "in docs/errors.md, but nobody gives it: {stale:?}");
    }

    #[test]
    fn codes_of_things_that_are_not_found_are_explained_for_each_thing() {
        assert!(explain("server_not_found").unwrap().contains("nephos server list"));
        assert!(explain("access_key_not_found").unwrap().contains("nephos access-key list"));
        assert!(!explain("workflow_definition_not_found").unwrap().contains("nephos"));
        assert_eq!(explain("_not_found"), None);
        assert_eq!(explain("code"), None);
        let text = explain("invalid_input").unwrap();
        assert!(text.contains("operations.md") && !text.contains("]("), "{text}");
    }
}
