//! Following a workflow: a live block on a terminal, one line per change elsewhere, always on standard error.

use std::{io::Write, time::Duration};

use futures_util::StreamExt;
use nephos_ops::workflow::{ShowWorkflow, Step, StepState, WatchWorkflow, Workflow, WorkflowState};
use nephos_types::{Error, ErrorKind, Result, Timestamp, WorkflowId};

use crate::{
    client::Client,
    command::global::Globals,
    exit, failure,
    output::duration_words,
    terminal::{Style, Terminal, harmless, shorten},
};

/// How many lines the live block takes at most, its head included.
const MAX_LINES: usize = 8;
/// How often the live block is drawn again.
const REDRAW: Duration = Duration::from_millis(100);
/// How long is paused before a stream that ended early is opened again.
const REOPEN: Duration = Duration::from_millis(500);

/// How following ended.
pub(crate) enum Followed {
    /// All is done.
    Succeeded,
    /// It failed, was cancelled, or is stuck; this says why.
    Failed(Error),
    /// The person left; the work goes on.
    Detached,
}

/// Follows a workflow until it is final, for at most `limit`.
pub(crate) async fn follow(
    client: &Client,
    id: &str,
    title: &str,
    limit: Option<Duration>,
    quiet: bool,
    terminal: &Terminal,
) -> Result<Followed> {
    let workflow: WorkflowId = id.parse()?;
    let mut view = View::new(title, id, quiet, *terminal);
    let watching = async {
        tokio::select! {
            followed = watch(client, workflow, &mut view) => followed,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted.map_err(|error| Error::internal("Ctrl-C cannot be watched for", error))?;
                Ok(Followed::Detached)
            }
        }
    };
    let followed = match limit {
        Some(limit) => tokio::time::timeout(limit, watching).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Timeout,
                "timeout",
                format!("{title} is not done within {}", duration_words(limit)),
            )
            .detail("the work goes on")
            .next("wait on", Some(format!("nephos workflow wait {id}"))))
        }),
        None => watching.await,
    };
    view.close();
    if matches!(followed, Ok(Followed::Detached)) {
        eprintln!("\nstill running: {id}   cancel: nephos workflow cancel {id}");
    }
    followed
}

/// Follows a workflow as a command of its own.
pub(crate) async fn report(client: &Client, id: &str, globals: &Globals, terminal: &Terminal) -> Result<u8> {
    let limit = match globals.wait {
        crate::command::global::Wait::AtMost(limit) => Some(limit),
        _ => None,
    };
    Ok(match follow(client, id, "workflow", limit, globals.quiet, terminal).await? {
        Followed::Succeeded => {
            if !globals.quiet {
                eprintln!("{} {id} succeeded", terminal.err.paint(Style::Good, terminal.symbols.done));
            }
            exit::DONE
        }
        Followed::Failed(error) => {
            eprint!("{}", failure::render(&error, terminal));
            if exit::code(&error) == exit::REFUSED { exit::REFUSED } else { exit::FAILED }
        }
        Followed::Detached => exit::INTERRUPTED,
    })
}

async fn watch(client: &Client, id: WorkflowId, view: &mut View) -> Result<Followed> {
    loop {
        let mut events = client.events(WatchWorkflow { workflow: id }).await?;
        let mut ticks = tokio::time::interval(REDRAW);
        loop {
            tokio::select! {
                event = events.0.next() => match event {
                    Some(event) => {
                        let event = event?;
                        if event.name != "workflow" {
                            continue;
                        }
                        let now: Workflow = serde_json::from_str(&event.data)
                            .map_err(|error| Error::internal("The cloud's workflow is not understood", error))?;
                        view.update(now);
                        if let Some(followed) = view.outcome() {
                            return Ok(followed);
                        }
                    }
                    None => break,
                },
                _ = ticks.tick(), if view.live() => view.draw(),
            }
        }
        // A stream may end before the workflow does, e.g. when the cloud shuts down.
        view.update(client.call(ShowWorkflow { workflow: id }).await?);
        if let Some(followed) = view.outcome() {
            return Ok(followed);
        }
        tokio::time::sleep(REOPEN).await;
    }
}

/// What is on the screen.
struct View {
    title: String,
    id: String,
    quiet: bool,
    terminal: Terminal,
    workflow: Option<Workflow>,
    /// Lines of the block that stands on the screen now.
    drawn: usize,
    frame: usize,
    headed: bool,
}

impl View {
    fn new(title: &str, id: &str, quiet: bool, terminal: Terminal) -> Self {
        Self {
            title: title.to_owned(),
            id: id.to_owned(),
            quiet,
            terminal,
            workflow: None,
            drawn: 0,
            frame: 0,
            headed: false,
        }
    }

    fn live(&self) -> bool {
        self.terminal.err.tty && !self.quiet
    }

    fn outcome(&self) -> Option<Followed> {
        let workflow = self.workflow.as_ref()?;
        match workflow.state {
            WorkflowState::Succeeded => Some(Followed::Succeeded),
            state if state.is_final() => Some(Followed::Failed(failure_of(workflow, &self.title))),
            _ => None,
        }
    }

    fn update(&mut self, now: Workflow) {
        if self.quiet {
            self.workflow = Some(now);
            return;
        }
        if !std::mem::replace(&mut self.headed, true) && !self.live() {
            eprintln!("{}", self.head());
        }
        if !self.live() {
            let before = self.workflow.as_ref().map(|workflow| workflow.steps.as_slice()).unwrap_or_default();
            for (index, step) in now.steps.iter().enumerate() {
                let known = before.get(index).map_or(StepState::Pending, |step| phase(step.state));
                if known != phase(step.state) {
                    eprintln!("{}", self.line(step));
                }
            }
        }
        self.workflow = Some(now);
        if self.live() {
            self.draw();
        }
    }

    fn head(&self) -> String {
        format!("{}  {}  (resume: nephos workflow wait {})", self.title, self.id, self.id)
    }

    /// Draws the live block over the one before.
    fn draw(&mut self) {
        let Some(workflow) = &self.workflow else { return };
        self.frame = self.frame.wrapping_add(1);
        // A line that wraps would be two on the screen, and only one of them be taken off again.
        let mut lines = vec![shorten(&self.head(), self.terminal.width, self.terminal.symbols.ellipsis)];
        let room = MAX_LINES - lines.len();
        let current = workflow.steps.iter().position(|step| step.state != StepState::Succeeded);
        let current = current.unwrap_or(workflow.steps.len());
        // What is done scrolls out above, what is far ahead stays out below.
        let first = if workflow.steps.len() > room {
            current.saturating_sub(room / 2).min(workflow.steps.len() - room)
        } else {
            0
        };
        lines.extend(workflow.steps.iter().skip(first).take(room).map(|step| self.line(step)));
        let mut text = self.erase();
        for line in &lines {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = lines.len();
        put(&text);
    }

    fn erase(&self) -> String {
        if self.drawn == 0 { String::new() } else { format!("\x1b[{}A\x1b[J", self.drawn) }
    }

    /// Takes the live block off the screen; the outcome takes its place.
    fn close(&mut self) {
        let failed = self.workflow.as_ref().is_some_and(|workflow| workflow.state != WorkflowState::Succeeded);
        if self.live() && !failed {
            put(&self.erase());
        }
        self.drawn = 0;
    }

    fn line(&self, step: &Step) -> String {
        let symbols = &self.terminal.symbols;
        let (symbol, style) = match step.state {
            StepState::Pending => (symbols.pending, Style::Dim),
            StepState::Running | StepState::Waiting if self.live() => (
                symbols.spinner.get(self.frame % symbols.spinner.len().max(1)).copied().unwrap_or("-"),
                Style::Changing,
            ),
            StepState::Running | StepState::Waiting => (symbols.changing, Style::Changing),
            StepState::Succeeded => (symbols.done, Style::Good),
            StepState::Undoing => (symbols.changing, Style::Changing),
            StepState::Undone => (symbols.idle, Style::Dim),
            StepState::Failed | StepState::UndoFailed => (symbols.bad, Style::Bad),
        };
        let word = match step.state {
            StepState::Undoing => "undoing ",
            StepState::Undone => "undone ",
            StepState::UndoFailed => "not undone ",
            _ => "",
        };
        let mut notes = Vec::new();
        if let Some(time) = taken(step) {
            notes.push(format!("{:>7}", duration_words(time)));
        }
        if let Some(percent) = step.percent.filter(|_| step.state == StepState::Running) {
            notes.push(format!("{percent}%"));
        }
        if step.attempts > 1 {
            notes.push(format!("attempt {}", step.attempts));
        }
        let why =
            if matches!(step.state, StepState::Succeeded | StepState::Pending) { None } else { step.error.as_ref() };
        if let Some(text) = why.or(step.detail.as_ref()) {
            notes.push(harmless(&text.replace('\n', " ")));
        }
        let name = format!("{word}{}", harmless(&step.name));
        let text = format!("{name:<26} {}", notes.join("  "));
        let text = text.trim_end();
        let text = if self.live() {
            shorten(text, self.terminal.width.saturating_sub(5), symbols.ellipsis)
        } else {
            text.to_owned()
        };
        format!("  {} {text}", self.terminal.err.paint(style, symbol))
    }
}

/// What a person is told apart: a step that waits goes on for them.
fn phase(state: StepState) -> StepState {
    if state == StepState::Waiting { StepState::Running } else { state }
}

/// How long a step took, or takes so far.
fn taken(step: &Step) -> Option<Duration> {
    let started = step.started_at?;
    match (step.finished_at, step.state) {
        (Some(finished), _) => Some(finished.since(started)),
        (None, StepState::Running | StepState::Waiting) => {
            Some(Timestamp::now().since(started)).filter(|time| *time >= REDRAW)
        }
        _ => None,
    }
}

fn put(text: &str) {
    let mut err = std::io::stderr().lock();
    // A terminal that is gone is noticed elsewhere.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

fn failure_of(workflow: &Workflow, title: &str) -> Error {
    let id = workflow.id;
    let error = workflow.error.clone().unwrap_or_else(|| {
        let step = workflow.steps.iter().rev().find_map(|step| step.error.clone());
        Error::new(ErrorKind::Internal, "workflow_failed", format!("{title}: {} did not succeed", workflow.name))
            .detail(step.unwrap_or_default())
    });
    let show = Some(format!("nephos workflow show {id}"));
    match workflow.state {
        WorkflowState::Cancelled => {
            Error::new(ErrorKind::Internal, "workflow_cancelled", format!("{title}: {} was cancelled", workflow.name))
                .detail("what it had done is undone")
        }
        WorkflowState::Stuck => error
            .next("undoing failed; see which step", show)
            .next("when its cause is gone, try again", Some(format!("nephos workflow retry {id}"))),
        _ => error.next("see its steps", show),
    }
}
