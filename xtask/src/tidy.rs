//! `cargo xtask tidy`: the rules that no compiler checks.
//!
//! - Crates depend downwards only, along the rows of ARCHITECTURE.md.
//! - Every module says in a `//!` header what it is for.
//! - Files stay small enough to be one thing.
//! - Nothing names a developer's machine.
//! - Every crate of the workspace is in ARCHITECTURE.md, and its lints are the workspace's.
//!
//! That no operation lacks route, permission, help and documentation is checked by the tests of `ops` and `nephos`,
//! which see the table itself.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use crate::process::{Outcome, root};

/// A file longer than this holds more than one thing.
const MAX_LINES: usize = 900;

/// Rows of ARCHITECTURE.md. A crate may use crates of lower rows; exceptions are named with their reason there.
const ROWS: &[(&str, u8)] = &[
    ("types", 0),
    ("wire", 0),
    ("testkit-postgres", 0),
    ("ops", 1),
    ("workflow", 1),
    ("driver", 1),
    ("host", 1),
    ("node-api", 1),
    ("sandbox", 1),
    ("http", 1),
    ("store", 2),
    ("auth", 2),
    ("driver-container", 2),
    ("driver-network", 2),
    ("driver-qemu", 2),
    ("image-build", 2),
    ("network-services", 2),
    ("api-native", 2),
    ("cli", 2),
    ("cloud", 3),
    ("agent", 3),
    ("nephos", 4),
    ("testkit", 5),
];

/// Pairs of one row that may know each other: two sides of one boundary.
const SAME_ROW: &[(&str, &str)] = &[("node-api", "driver")];

pub(crate) fn run() -> Outcome {
    let root = root();
    let mut findings = vec![];
    crates(&root, &mut findings)?;
    let mut files = vec![];
    for folder in ["crates", "xtask", "docs", ".ci"] {
        collect(&root.join(folder), &mut files)?;
    }
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "Cargo.toml", "deny.toml"] {
        files.push(root.join(name));
    }
    for file in &files {
        source(&root, file, &mut findings)?;
    }
    if findings.is_empty() {
        println!("tidy: {} files, nothing to say", files.len());
        Ok(())
    } else {
        Err(format!("tidy: {} findings\n  {}", findings.len(), findings.join("\n  ")))
    }
}

fn read(path: &Path) -> Outcome<String> {
    fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Outcome {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|error| format!("{}: {error}", folder.display()))?.path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else {
            files.push(path);
        }
    }
    Ok(())
}

fn crates(root: &Path, findings: &mut Vec<String>) -> Outcome {
    let rows: BTreeMap<&str, u8> = ROWS.iter().copied().collect();
    let map = read(&root.join("ARCHITECTURE.md"))?;
    let folders = fs::read_dir(root.join("crates")).map_err(|error| format!("crates: {error}"))?;
    for folder in folders.flatten() {
        let name = folder.file_name().to_string_lossy().into_owned();
        let manifest = read(&folder.path().join("Cargo.toml"))?;
        if !map.contains(&format!("`{name}`")) {
            findings.push(format!("crates/{name}: not in ARCHITECTURE.md"));
        }
        if !manifest.contains("[lints]\nworkspace = true") {
            findings.push(format!("crates/{name}/Cargo.toml: does not take the workspace's lints"));
        }
        let Some(row) = rows.get(name.as_str()) else {
            findings.push(format!("crates/{name}: has no row in xtask/src/tidy.rs"));
            continue;
        };
        // Tests may look upwards; the product may not.
        let product = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for line in product.lines() {
            let Some(dependency) = line.strip_prefix("nephos-").and_then(|rest| rest.split(['.', ' ', '=']).next())
            else {
                continue;
            };
            let allowed = rows.get(dependency).is_some_and(|below| below < row)
                || SAME_ROW.contains(&(name.as_str(), dependency));
            if !allowed {
                findings.push(format!("crates/{name}: may not know `{dependency}` (row {row})"));
            }
        }
    }
    Ok(())
}

fn source(root: &Path, file: &Path, findings: &mut Vec<String>) -> Outcome {
    let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
    let Ok(text) = fs::read_to_string(file) else {
        return Ok(());
    };
    let rust = file.extension().is_some_and(|extension| extension == "rs");
    if rust && !text.starts_with("//!") {
        findings.push(format!("{name}: does not begin with a `//!` header"));
    }
    if rust && text.lines().count() > MAX_LINES {
        findings.push(format!("{name}: over {MAX_LINES} lines; split it"));
    }
    // Spelled in parts so that this file does not find itself.
    for word in [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/.ca"),
        concat!("/ro", "ot/.ru"),
    ] {
        if let Some(line) = text.lines().position(|line| line.contains(word)) {
            findings.push(format!("{name}:{}: has `{word}`", line + 1));
        }
    }
    Ok(())
}
