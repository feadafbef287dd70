//! `docs/operations.md` says what the table says. `NEPHOS_WRITE_DOCS=1 cargo test -p nephos-ops` writes it anew.

use std::{fmt::Write, fs, path::Path};

use nephos_ops::{AnswerKind, Effect, Entry, Grant, schema::Fields, table};

fn grant(grant: &Grant) -> String {
    match grant {
        Grant::Anyone => "anyone".to_owned(),
        Grant::LoggedIn => "any login".to_owned(),
        Grant::Project(role) => format!("{} of the project", role.name()),
        Grant::Domain(role) => format!("{} of the domain", role.name()),
        Grant::System(role) => format!("{} of the system", role.name()),
    }
}

fn operation(text: &mut String, entry: &Entry) {
    let spec = entry.spec;
    let answer = match entry.answer {
        AnswerKind::Json => "JSON",
        AnswerKind::Started => "the resource and the workflow that goes on",
        AnswerKind::Nothing => "nothing",
        AnswerKind::Download => "a stream of bytes",
        AnswerKind::Events => "server-sent events",
        AnswerKind::Tunnel => "a WebSocket with binary frames",
    };
    let who: Vec<String> = spec.permission.0.iter().map(grant).collect();
    let _ = writeln!(text, "### `{}`\n\n{}. {}\n", spec.name, spec.summary, spec.description);
    let _ = writeln!(text, "- `{} {}` · answers with {answer}", spec.method.as_str(), spec.path);
    let _ = writeln!(text, "- allowed: {}, or admin", who.join(", "));
    if spec.effect == Effect::Creates {
        let _ = writeln!(text, "- takes an idempotency key");
    }
    let fields = Fields::of(entry);
    let names: Vec<&str> = fields.names().collect();
    if !names.is_empty() {
        let _ = writeln!(text, "\n| field | type | |\n| --- | --- | --- |");
        for name in names {
            let need = if fields.required(name) { "required. " } else { "" };
            let help = fields.description(name).unwrap_or_default().replace('\n', " ").replace('|', "\\|");
            let _ = writeln!(text, "| `{name}` | {} | {need}{help} |", fields.json_type(name));
        }
    }
    for example in spec.examples {
        let _ = writeln!(text, "\n{}:\n\n```\n{}\n```", example.title, example.command);
    }
    text.push('\n');
}

#[test]
fn the_reference_is_what_the_table_says() {
    let mut text = String::from(
        "# Operations\n\nEverything that can be done, by noun. The name is also the XML-RPC method; the command line is\n\
         `nephos NOUN VERB`. Written from the operation table; do not edit.\n",
    );
    let mut noun = "";
    let mut entries: Vec<&Entry> = table().iter().collect();
    entries.sort_by_key(|entry| entry.spec.noun());
    for entry in entries {
        if entry.spec.noun() != noun {
            noun = entry.spec.noun();
            let _ = writeln!(text, "\n## {noun}\n");
        }
        operation(&mut text, entry);
    }
    let path = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../../docs/operations.md");
    if std::env::var_os("NEPHOS_WRITE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/operations.md is out of date; write it with NEPHOS_WRITE_DOCS=1 cargo test -p nephos-ops"
    );
}
