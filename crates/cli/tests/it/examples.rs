//! Every command line that the operations' help shows is one that works.

use std::{any::Any, future::Future, pin::Pin, sync::Arc};

use nephos_cli::App;
use nephos_ops::{Caller, Cloud, Context, Core, Credentials, Identity};
use nephos_types::{Error, ErrorKind, Result};
use serde_json::Value;

/// A core that refuses everything, so that a call shows whether its input was understood.
struct Nothing;

impl Core for Nothing {
    fn identify<'a>(&'a self, _: Credentials) -> Pin<Box<dyn Future<Output = Result<Arc<Identity>>> + Send + 'a>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unauthenticated, "nobody", "Nobody")) })
    }

    fn call(
        &self,
        _: std::any::TypeId,
        _: Context,
        _: Box<dyn Any + Send>,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn Any + Send>>> + Send + '_>> {
        Box::pin(async { Err(Error::new(ErrorKind::Unsupported, "understood", "Understood")) })
    }
}

#[tokio::test]
async fn every_example_parses_into_its_operations_input() {
    let app = App::new("nephos", "0");
    let cloud = Cloud::new(Arc::new(Nothing));
    let mut wrong = Vec::new();
    for entry in nephos_ops::table() {
        for example in entry.spec.examples {
            let Some(mut words) = shlex::split(example.command) else {
                wrong.push(format!("{}: cannot be split", example.command));
                continue;
            };
            // What stands behind a redirection belongs to the shell.
            words.truncate(
                words.iter().position(|word| matches!(word.as_str(), ">" | "|" | "<")).unwrap_or(words.len()),
            );
            match app.understand(words.iter().map(Into::into)) {
                Ok((name, inputs)) => {
                    if name != entry.spec.name {
                        wrong.push(format!("{}: is {name}, not {}", example.command, entry.spec.name));
                    }
                    for input in inputs {
                        let caller = Caller { identity: None, address: "test".into(), front_end: "test" };
                        let outcome = (entry.call)(cloud.context(Arc::new(caller).as_ref().clone()), input).await;
                        match outcome {
                            Err(error) if error.code == "understood" => {}
                            Err(error) => wrong.push(format!("{}: {error}", example.command)),
                            Ok(_) => wrong.push(format!("{}: a core without operations answered", example.command)),
                        }
                    }
                }
                Err(why) => wrong.push(format!("{}: {why}", example.command)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_operation_has_a_command_with_help() {
    let mut tree = App::new("nephos", "0").command_tree();
    // clap checks every argument of every command while building, and panics on a conflict.
    tree.build();
    for entry in nephos_ops::table() {
        let noun = entry.spec.noun().replace('_', "-");
        let verb = entry.spec.verb().replace(['_', '.'], "-");
        let command = tree
            .find_subcommand_mut(&noun)
            .and_then(|noun| noun.find_subcommand_mut(&verb))
            .unwrap_or_else(|| panic!("no command for {}", entry.spec.name));
        let short = command.render_help().to_string();
        let long = command.render_long_help().to_string().replace('\u{e000}', " ");
        assert!(short.starts_with(entry.spec.summary), "{}: {short}", entry.spec.name);
        for example in entry.spec.examples {
            assert!(long.contains(example.command), "{}: {long}", entry.spec.name);
        }
        for field in entry.spec.positional {
            assert!(short.contains(&field.replace('_', "-").to_uppercase()), "{}: {short}", entry.spec.name);
        }
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    let app = App::new("nephos", "0");
    let understand = |line: &str| app.understand(shlex::split(line).unwrap().iter().map(Into::into));
    for bad in [
        "nephos flavor create",
        "nephos flavor create a --vcpus x --memory-mib 1",
        "nephos flavor create a --vcpus 1 --memory-mib 1 --sides 2",
        "nephos flavor show",
        "nephos workflow show a b --nonsense",
    ] {
        assert!(understand(bad).is_err(), "{bad}");
    }
    let (name, inputs) = understand("nephos flavors new a --vcpus 1 --memory-mib 2G --label a=b --label c=d").unwrap();
    assert_eq!(name, "flavor.create");
    let expected = serde_json::json!({"name": "a", "vcpus": 1, "memory_mib": 2048, "labels": {"a": "b", "c": "d"}});
    assert_eq!(inputs, [expected]);
    let (_, inputs) = understand("nephos flavor rm a b").unwrap();
    assert_eq!(inputs, [serde_json::json!({"flavor": "a"}), serde_json::json!({"flavor": "b"})] as [Value; 2]);
}
