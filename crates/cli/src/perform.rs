//! Calling an operation for a person: confirm, call, wait for what was started, print.

use std::time::{Duration, Instant};

use clap::ArgMatches;
use futures_util::StreamExt;
use nephos_ops::{AnswerKind, Entry};
use nephos_types::{Error, ErrorKind, Result};
use serde_json::Value;

use crate::{
    Invocation,
    app::block_on,
    client::Upload,
    command::{
        global::{Globals, Wait},
        leaf, tree,
    },
    console, execute, exit, failure,
    in_parts::InParts,
    output::{self, Format, Printed},
    plan,
    progress::{self, Followed},
    session::Session,
    terminal::{Style, Terminal, harmless},
    trace, transfer,
};

/// How many targets are worked on at once.
const PARALLEL: usize = 8;

/// Does what the command of an operation asks for; gives the exit code.
pub(crate) fn run(entry: &'static Entry, invocation: &Invocation<'_>) -> u8 {
    let command =
        Performance { entry, matches: invocation.matches, globals: &invocation.globals, terminal: invocation.terminal };
    let limit = command.globals.timeout;
    let outcome = block_on(async {
        match limit {
            Some(limit) => tokio::time::timeout(limit, command.perform()).await.unwrap_or_else(|_| {
                Err(Error::new(ErrorKind::Timeout, "timeout", format!("No end within {} s", limit.as_secs()))
                    .detail("what was started in the cloud goes on"))
            }),
            None => command.perform().await,
        }
    });
    outcome.unwrap_or_else(|error| {
        command.report(&error);
        exit::code(&error)
    })
}

struct Performance<'a> {
    entry: &'static Entry,
    matches: &'a ArgMatches,
    globals: &'a Globals,
    terminal: Terminal,
}

impl Performance<'_> {
    async fn perform(&self) -> Result<u8> {
        let inputs = leaf::inputs(self.entry, self.matches)?;
        let spec = &self.entry.spec;
        if self.globals.explain || self.globals.curl {
            let session = Session::open(self.globals, &self.terminal)?;
            for input in &inputs {
                let prepared = session.anonymous().prepare(spec, input)?;
                let text = if self.globals.curl {
                    trace::curl(&prepared, self.file())
                } else {
                    trace::explain(spec, input, &prepared)
                };
                output::write_out(text.as_bytes())?;
            }
            return Ok(exit::DONE);
        }
        if self.globals.plan {
            return self.plan(&inputs).await;
        }
        self.confirm(&inputs)?;
        let mut session = Session::open(self.globals, &self.terminal)?;
        let Some(first) = inputs.first() else { return Ok(exit::DONE) };
        match self.entry.answer {
            AnswerKind::Download => {
                let client = session.client().await?;
                let download = client.download_bytes(spec, first).await?;
                transfer::save(download, self.file(), self.globals, &self.terminal).await?;
                Ok(exit::DONE)
            }
            AnswerKind::Events => self.follow(&mut session, first).await,
            AnswerKind::Tunnel => {
                let client = session.client().await?;
                let tunnel = client.open_tunnel(spec, first).await?;
                console::attach(tunnel, &self.subject(first), &self.terminal, self.globals.quiet).await
            }
            AnswerKind::Json | AnswerKind::Started | AnswerKind::Nothing => {
                self.change_or_read(&mut session, inputs).await
            }
        }
    }

    async fn plan(&self, inputs: &[Value]) -> Result<u8> {
        let mut session = Session::open(self.globals, &self.terminal)?;
        let mut plans = Vec::new();
        for input in inputs {
            plans.extend(plan::of(self.entry, input, &mut session).await?);
        }
        if matches!(self.globals.format, None | Some(Format::Table | Format::Wide)) {
            let text: String = plans.iter().map(plan::words).collect();
            output::write_out(text.as_bytes())?;
            if plans.is_empty() && !self.globals.quiet {
                eprintln!("Nothing would change");
            }
        } else {
            self.print(&Value::Array(plans.clone()), &session)?;
        }
        Ok(if plans.is_empty() { exit::DONE } else { exit::PLANNED })
    }

    async fn change_or_read(&self, session: &mut Session, inputs: Vec<Value>) -> Result<u8> {
        if inputs.len() > 1 {
            return self.each(session, inputs).await;
        }
        let Some(input) = inputs.into_iter().next() else { return Ok(exit::DONE) };
        let started = Instant::now();
        if self.entry.spec.upload
            && let Some(parts) = InParts::beside(self.entry)
            && let Some(file) = self.file()
            && InParts::suit(file).await
        {
            let target =
                self.entry.spec.path_fields().next().and_then(|field| input.get(field)).cloned().unwrap_or_default();
            let answer = parts.send(session, &target, file, self.globals, &self.terminal).await?;
            return self.settle(session, &input, &answer, started).await;
        }
        let mut then = None;
        if let Some(upload) = leaf::upload_after(self.entry)
            && let Some(file) = self.file()
        {
            // Opened first: a file that is not there shall leave nothing behind.
            then = Some((upload, file, transfer::open(file, self.globals, &self.terminal).await?));
        }
        if self.entry.spec.name == execute::OPERATION && self.globals.format.is_none() {
            let result = self.call(session, &execute::exact(input)).await?;
            return execute::show(&result, self.globals.quiet);
        }
        if let Some(pause) = self.watch() {
            return self.watch_value(session, &input, pause).await;
        }
        let mut answer = self.call(session, &input).await?;
        if let Some((upload, file, body)) = then {
            if let Some(parts) = InParts::beside(upload)
                && InParts::suit(file).await
            {
                let target = answer.get("id").cloned().unwrap_or_default();
                let sent = parts.send(session, &target, file, self.globals, &self.terminal).await;
                let answer = sent.map_err(|error| send_again(error, upload, &target, file))?;
                return self.settle(session, &input, &answer, started).await;
            }
            answer = self.upload_created(session, upload, &answer, file, body).await?;
        }
        if self.entry.answer == AnswerKind::Started {
            return self.settle(session, &input, &answer, started).await;
        }
        if self.entry.answer == AnswerKind::Nothing {
            self.say_done(&input);
            return Ok(exit::DONE);
        }
        self.print(&list_items(answer, self.globals), session)?;
        Ok(exit::DONE)
    }

    /// How often to ask again, if the answer is to be watched.
    fn watch(&self) -> Option<Duration> {
        self.matches
            .try_get_one::<Duration>(leaf::WATCH)
            .ok()
            .flatten()
            .map(|pause| (*pause).max(Duration::from_millis(500)))
    }

    /// Prints an answer again and again until interrupted; on a terminal always in the same place.
    async fn watch_value(&self, session: &mut Session, input: &Value, pause: Duration) -> Result<u8> {
        loop {
            let answer = self.call(session, input).await?;
            if self.terminal.out.tty {
                output::write_out(b"\x1b[H\x1b[2J")?;
            }
            self.print(&list_items(answer, self.globals), session)?;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                interrupted = tokio::signal::ctrl_c() => {
                    return interrupted
                        .map(|()| exit::INTERRUPTED)
                        .map_err(|error| Error::internal("Signals cannot be watched for", error));
                }
            }
        }
    }

    /// Calls the operation once, following the pages of a list if asked to.
    async fn call(&self, session: &mut Session, input: &Value) -> Result<Value> {
        let spec = &self.entry.spec;
        if spec.upload {
            let file = self.file().unwrap_or("-");
            let upload = transfer::open(file, self.globals, &self.terminal).await?;
            return session.client().await?.upload_json(spec, input, upload).await;
        }
        let mut answer = session.call(spec, input).await?;
        if !self.globals.all {
            return Ok(answer);
        }
        let mut input = input.clone();
        while let Some(next) = answer.get("next").filter(|next| !next.is_null()).cloned() {
            let Some(fields) = input.as_object_mut() else { break };
            if fields.get("after") == Some(&next) {
                return Err(Error::bug("The cloud's list does not move on"));
            }
            fields.insert("after".to_owned(), next);
            let mut page = session.call(spec, &input).await?;
            let more = page.get_mut("items").map(Value::take);
            let rest = page.get_mut("next").map(Value::take).unwrap_or_default();
            if let (Some(Value::Array(items)), Some(Value::Array(more))) = (answer.get_mut("items"), more) {
                items.extend(more);
            }
            if let Some(fields) = answer.as_object_mut() {
                fields.insert("next".to_owned(), rest);
            }
        }
        Ok(answer)
    }

    /// Sends a file into what was just created.
    async fn upload_created(
        &self,
        session: &mut Session,
        upload: &'static Entry,
        created: &Value,
        file: &str,
        body: Upload,
    ) -> Result<Value> {
        let field = upload.spec.path_fields().next().unwrap_or_default();
        let id = created.get("id").cloned().unwrap_or_default();
        let input = Value::Object([(field.to_owned(), id.clone())].into_iter().collect());
        let sent = session.client().await?.upload_json(&upload.spec, &input, body).await;
        sent.map_err(|error| send_again(error, upload, &id, file))
    }

    /// Several targets: all are called, then what they started is waited for, in the order they were named.
    async fn each(&self, session: &mut Session, inputs: Vec<Value>) -> Result<u8> {
        session.client().await?;
        let started = Instant::now();
        let shared = &*session;
        let spec = &self.entry.spec;
        let answers: Vec<(Value, Result<Value>)> = futures_util::stream::iter(inputs)
            .map(|input| async move {
                let answer = shared.call_ready(spec, &input).await;
                (input, answer)
            })
            .buffered(PARALLEL)
            .collect()
            .await;
        let mut codes = Vec::new();
        let mut read = Vec::new();
        for (input, answer) in answers {
            let outcome = match answer {
                Ok(answer) if self.entry.answer == AnswerKind::Started => {
                    self.settle(session, &input, &answer, started).await
                }
                Ok(answer) => {
                    if self.entry.answer == AnswerKind::Nothing {
                        self.say_done(&input);
                    } else {
                        read.push(answer);
                    }
                    Ok(exit::DONE)
                }
                Err(error) => Err(error),
            };
            codes.push(outcome.unwrap_or_else(|error| {
                self.report(&error);
                exit::code(&error)
            }));
        }
        if !read.is_empty() {
            self.print(&Value::Array(read), session)?;
        }
        let failed = codes.iter().filter(|code| **code != exit::DONE).count();
        Ok(match codes.first() {
            _ if failed == 0 => exit::DONE,
            Some(code) if failed == codes.len() => *code,
            _ => {
                eprintln!("{failed} of {} failed", codes.len());
                exit::PARTIAL
            }
        })
    }

    /// Waits for what was started, as far as wanted, and prints the resource as it then is.
    async fn settle(&self, session: &mut Session, input: &Value, answer: &Value, started: Instant) -> Result<u8> {
        let workflow = answer.get("workflow").and_then(Value::as_str).unwrap_or_default().to_owned();
        let resource = answer.get("resource").cloned().unwrap_or_default();
        let subject = resource.get("name").and_then(Value::as_str).map_or_else(|| self.subject(input), harmless);
        let noun = leaf::noun(self.entry);
        let limit = match self.globals.wait {
            Wait::No => {
                if !self.globals.quiet {
                    eprintln!("{noun} {subject}: started {workflow}  (follow: nephos workflow wait {workflow})");
                }
                self.print(&resource, session)?;
                return Ok(exit::DONE);
            }
            Wait::AtMost(limit) => Some(limit),
            Wait::Forever => None,
        };
        let title = format!("{noun} {subject}");
        let client = session.client().await?.clone();
        match progress::follow(&client, &workflow, &title, limit, self.globals.quiet, &self.terminal).await? {
            Followed::Succeeded => {}
            Followed::Failed(error) => {
                self.report(&error);
                // The failure is the workflow's, whatever its class; but scripts tell "no room" apart.
                return Ok(if exit::code(&error) == exit::REFUSED { exit::REFUSED } else { exit::FAILED });
            }
            Followed::Detached => return Ok(exit::INTERRUPTED),
        }
        let now = self.refreshed(session, &resource).await;
        if !self.globals.quiet {
            let took = output::duration_words(started.elapsed());
            let state =
                now.as_ref().and_then(|now| now.get("state").or_else(|| now.get("status"))).and_then(Value::as_str);
            let what = match (&now, state) {
                (None, _) if tree::is_destructive(self.entry) => format!("{title} is deleted"),
                (_, Some(state)) => format!("{title} is {}", harmless(state)),
                _ => format!("{title}: done"),
            };
            eprintln!("{} {what} in {took}", self.terminal.err.paint(Style::Good, self.terminal.symbols.done));
        }
        match now {
            Some(now) => self.print(&now, session)?,
            // For people there is nothing left to show; programs get what was there.
            None if matches!(self.globals.format, None | Some(Format::Table | Format::Wide)) && !self.globals.quiet => {
            }
            None => self.print(&resource, session)?,
        }
        Ok(exit::DONE)
    }

    /// The resource after the work; `None` if it is gone or cannot be shown.
    async fn refreshed(&self, session: &mut Session, resource: &Value) -> Option<Value> {
        let show = leaf::entry(&format!("{}.show", self.entry.spec.noun()))?;
        let field = show.spec.path_fields().next()?;
        let id = resource.get("id")?.clone();
        let input = Value::Object([(field.to_owned(), id)].into_iter().collect());
        session.call(&show.spec, &input).await.ok()
    }

    async fn follow(&self, session: &mut Session, input: &Value) -> Result<u8> {
        let client = session.client().await?.clone();
        let people = matches!(self.globals.format, None | Some(Format::Table | Format::Wide));
        if self.entry.spec.name == "workflow.watch" && people {
            let id = self.subject(input);
            return progress::report(&client, &id, self.globals, &self.terminal).await;
        }
        let mut events = client.event_stream(&self.entry.spec, input).await?;
        while let Some(event) = events.0.next().await {
            let event = event?;
            let data: Value = serde_json::from_str(&event.data).unwrap_or_else(|_| event.data.clone().into());
            let line = if people {
                let cell = output::Cell::of("event", Some(&data), &self.terminal.symbols);
                format!("{}  {}\n", self.terminal.out.paint(Style::Bold, &harmless(&event.name)), cell.text)
            } else {
                format!("{}\n", serde_json::json!({"event": event.name, "id": event.id, "data": data}))
            };
            output::write_out(line.as_bytes())?;
        }
        Ok(exit::DONE)
    }

    fn print(&self, answer: &Value, session: &Session) -> Result<()> {
        let noun = leaf::noun(self.entry);
        let create = leaf::entry(&format!("{}.create", self.entry.spec.noun()));
        let example = create.and_then(|create| create.spec.examples.first());
        let project = session.project().map(|project| format!("in project {project}"));
        let about = Printed {
            noun: &noun,
            columns: self.entry.spec.columns,
            place: project,
            hint: example.map(|example| format!("Create one: {}", example.command)),
        };
        output::print(answer, &about, self.globals, &self.terminal)
    }

    fn say_done(&self, input: &Value) {
        if !self.globals.quiet {
            let done = self.terminal.err.paint(Style::Good, self.terminal.symbols.done);
            let verb = leaf::verb(self.entry);
            let noun = leaf::noun(self.entry);
            let subject = self.subject(input);
            if verb == "delete" {
                eprintln!("{done} {noun} {subject} is deleted");
            } else {
                eprintln!("{done} {noun} {verb} {subject}: done");
            }
        }
    }

    fn confirm(&self, inputs: &[Value]) -> Result<()> {
        if !tree::is_destructive(self.entry) || self.globals.yes {
            return Ok(());
        }
        let names: Vec<_> = inputs.iter().map(|input| self.subject(input)).collect();
        let what = format!("{} {} {}", leaf::verb(self.entry), leaf::noun(self.entry), names.join(", "));
        crate::terminal::confirm(&what)
    }

    /// What the call is about, as the caller named it.
    fn subject(&self, input: &Value) -> String {
        let fields = self.entry.spec.positional.iter().copied().chain(self.entry.spec.path_fields());
        let value = fields.filter_map(|field| input.get(field)).next();
        value.map(|value| value.as_str().map_or_else(|| value.to_string(), harmless)).unwrap_or_default()
    }

    fn file(&self) -> Option<&str> {
        self.matches.try_get_one::<String>(leaf::FILE).ok().flatten().map(String::as_str)
    }

    fn report(&self, error: &Error) {
        eprint!("{}", failure::render(error, &self.terminal));
        if self.globals.debug {
            eprintln!("  {}", error.chain());
        }
    }
}

/// What to do after a file did not get into what was just created.
fn send_again(error: Error, upload: &Entry, id: &Value, file: &str) -> Error {
    let id = id.as_str().unwrap_or_default();
    let again = format!("nephos {} {} {id} --file {file}", leaf::noun(upload), leaf::verb(upload));
    error.next("the record exists; send the file again", Some(again))
}

/// A page becomes the list of its items; that there are more is said beside it.
fn list_items(mut answer: Value, globals: &Globals) -> Value {
    let is_page = answer.as_object().is_some_and(|fields| {
        fields.get("items").is_some_and(Value::is_array) && fields.keys().all(|key| key == "items" || key == "next")
    });
    if !is_page {
        return answer;
    }
    if let Some(next) = answer.get("next").filter(|next| !next.is_null())
        && !globals.quiet
    {
        let next = next.as_str().map_or_else(|| next.to_string(), harmless);
        eprintln!("There are more: --all, or --after {next}");
    }
    answer.get_mut("items").map(Value::take).unwrap_or_default()
}
