//! How an error looks on the terminal: what happened, why, all grounds, what to do, and where to look it up.

use nephos_types::Error;

use crate::{
    client,
    terminal::{Style, Terminal, columns, harmless},
};

/// Column at which the code stands on a wide enough line.
const CODE_COLUMN: usize = 58;

/// The error as a block of lines.
pub(crate) fn render(error: &Error, terminal: &Terminal) -> String {
    let paint = |style, text: &str| terminal.err.paint(style, text);
    let title = harmless(&error.title);
    let gap = CODE_COLUMN.saturating_sub(columns(&title) + 2).max(2);
    let mut text = format!(
        "{} {}{}{}\n",
        paint(Style::Bad, terminal.symbols.bad),
        paint(Style::Bold, &title),
        " ".repeat(gap),
        paint(Style::Dim, &format!("[{}]", harmless(&error.code))),
    );
    for line in error.detail.lines() {
        text.push_str(&format!("  {}\n", harmless(line)));
    }
    let width = |of: fn(&nephos_types::Reason) -> &str| error.reasons.iter().map(|r| columns(of(r))).max().unwrap_or(0);
    let (subject_width, constraint_width) = (width(|r| &r.subject), width(|r| &r.constraint));
    for reason in &error.reasons {
        let pad = |text: &str, width: usize| " ".repeat(width.saturating_sub(columns(text)));
        text.push_str(&format!(
            "    {}{}  {}{}  {}\n",
            harmless(&reason.subject),
            pad(&reason.subject, subject_width),
            harmless(&reason.constraint),
            pad(&reason.constraint, constraint_width),
            harmless(&reason.detail),
        ));
    }
    let mut lead = "Next: ";
    for step in &error.next {
        let line = match &step.cmd {
            // Some steps already spell the command out.
            Some(command) if step.action.contains(command.as_str()) => harmless(&step.action),
            Some(command) => {
                format!("{}   {}", harmless(command), paint(Style::Dim, &format!("# {}", harmless(&step.action))))
            }
            None => harmless(&step.action),
        };
        text.push_str(&format!("  {lead}{line}\n"));
        lead = "      ";
    }
    if let Some(id) = client::request_id(error) {
        text.push_str(&format!("  {}\n", paint(Style::Dim, &format!("request {}", harmless(id)))));
    }
    text
}

#[cfg(test)]
mod tests {
    use nephos_types::ErrorKind;

    use super::*;
    use crate::terminal::{Stream, Terminal};

    #[test]
    fn an_error_says_why_and_what_next() {
        let error = Error::new(ErrorKind::Capacity, "no_placement", "No node can run web-1")
            .detail("flavor large needs 8 GiB; most free is 3.2 GiB on n2")
            .reason("n1", "memory", "need 8 GiB, have 1.1 GiB")
            .reason("node-2", "cpu", "need 4, have 1")
            .next("use a smaller flavor", Some("nephos server create web-1 --flavor small".into()))
            .next("add a node", None);
        let plain = Stream { tty: false, color: false };
        let terminal = Terminal { out: plain, err: plain, ..Terminal::detect(crate::terminal::ColorChoice::Never) };
        let text = render(&error, &terminal).replace(terminal.symbols.bad, "x");
        assert_eq!(
            text,
            "x No node can run web-1                                   [no_placement]\n\
            \x20 flavor large needs 8 GiB; most free is 3.2 GiB on n2\n\
            \x20   n1      memory  need 8 GiB, have 1.1 GiB\n\
            \x20   node-2  cpu     need 4, have 1\n\
            \x20 Next: nephos server create web-1 --flavor small   # use a smaller flavor\n\
            \x20       add a node\n"
        );
    }
}
