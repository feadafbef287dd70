//! What the terminal can: colors, symbols, width. Decided once per run, from flags, environment and the streams.

use std::{
    env,
    io::{BufRead, IsTerminal, stderr, stdin, stdout},
};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use nephos_types::{Error, Result};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// When colors are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColorChoice {
    Auto,
    Always,
    Never,
}

impl ColorChoice {
    pub(crate) fn parser() -> impl TypedValueParser<Value = Self> {
        PossibleValuesParser::new(["auto", "always", "never"]).map(|word| match word.as_str() {
            "always" => Self::Always,
            "never" => Self::Never,
            _ => Self::Auto,
        })
    }
}

/// One of the 16 ANSI colors, as a word for what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Good,
    Changing,
    Bad,
    Dim,
    Bold,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "32",
            Self::Changing => "33",
            Self::Bad => "31",
            Self::Dim => "2",
            Self::Bold => "1",
        }
    }
}

/// Marks that carry the meaning of a color for those who do not see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbols {
    pub(crate) good: &'static str,
    pub(crate) changing: &'static str,
    pub(crate) idle: &'static str,
    pub(crate) bad: &'static str,
    pub(crate) done: &'static str,
    pub(crate) pending: &'static str,
    pub(crate) ellipsis: &'static str,
    pub(crate) spinner: &'static [&'static str],
}

const UNICODE: Symbols = Symbols {
    good: "●",
    changing: "◐",
    idle: "○",
    bad: "✖",
    done: "✔",
    pending: "·",
    ellipsis: "…",
    spinner: &["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"],
};

const ASCII: Symbols = Symbols {
    good: "*",
    changing: "~",
    idle: "o",
    bad: "!",
    done: "+",
    pending: ".",
    ellipsis: "...",
    spinner: &["|", "/", "-", "\\"],
};

/// What one output stream can.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    pub(crate) tty: bool,
    pub(crate) color: bool,
}

impl Stream {
    /// The text in this style, if the stream shows styles.
    pub(crate) fn paint(self, style: Style, text: &str) -> String {
        if self.color && style != Style::Plain && !text.is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", style.code())
        } else {
            text.to_owned()
        }
    }
}

/// Both streams and what they have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terminal {
    pub(crate) out: Stream,
    pub(crate) err: Stream,
    pub(crate) symbols: Symbols,
    /// Columns of the screen.
    pub(crate) width: usize,
}

impl Terminal {
    pub(crate) fn detect(choice: ColorChoice) -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let forced = ["CLICOLOR_FORCE", "FORCE_COLOR"]
            .iter()
            .any(|name| set(name) && env::var_os(name).is_some_and(|value| value != "0"));
        let surroundings = Surroundings {
            no_color: env::var_os("NO_COLOR").is_some(),
            forced,
            dumb: env::var_os("TERM").is_some_and(|term| term == "dumb"),
        };
        let stream = |tty| Stream { tty, color: wants_color(choice, surroundings, tty) };
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].iter().filter_map(env::var_os).find(|value| !value.is_empty());
        Self {
            out: stream(stdout().is_terminal()),
            err: stream(stderr().is_terminal()),
            symbols: symbols(locale.as_ref().and_then(|value| value.to_str())),
            width: width(),
        }
    }
}

#[derive(Clone, Copy)]
struct Surroundings {
    no_color: bool,
    forced: bool,
    dumb: bool,
}

/// Flag before environment before what the stream is.
fn wants_color(choice: ColorChoice, surroundings: Surroundings, tty: bool) -> bool {
    match choice {
        ColorChoice::Always => true,
        ColorChoice::Never => false,
        ColorChoice::Auto => !surroundings.no_color && (surroundings.forced || (tty && !surroundings.dumb)),
    }
}

/// No locale at all is the usual state of containers and services, whose readers understand UTF-8.
fn symbols(locale: Option<&str>) -> Symbols {
    let utf8 = locale.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    });
    if utf8 { UNICODE } else { ASCII }
}

fn width() -> usize {
    let from_environment = || env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    screen_width().or_else(from_environment).filter(|width| *width >= 20).unwrap_or(80)
}

fn screen_width() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// How many columns a text takes.
pub(crate) fn columns(text: &str) -> usize {
    UnicodeWidthStr::width(text)
}

/// The text in at most `width` columns.
pub(crate) fn shorten(text: &str, width: usize, ellipsis: &str) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(columns(ellipsis));
    let mut used = 0;
    let mut short = String::new();
    for character in text.chars() {
        used += character.width().unwrap_or(0);
        if used > room {
            break;
        }
        short.push(character);
    }
    short.push_str(ellipsis);
    short
}

/// The text without what could steer a terminal: names and messages come from other people.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// Asks before something is lost. Without a person to ask, the caller has to say yes beforehand.
pub(crate) fn confirm(what: &str) -> Result<()> {
    if !stdin().is_terminal() {
        return Err(Error::invalid("confirmation_missing", format!("{what}: not confirmed"))
            .detail("there is no terminal to ask on")
            .next("confirm beforehand: --yes", None));
    }
    eprint!("{what}? [y/N] ");
    let mut line = String::new();
    let read = stdin().lock().read_line(&mut line);
    match read {
        Ok(_) if matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes") => Ok(()),
        _ => Err(Error::invalid("confirmation_missing", format!("{what}: not confirmed")).detail("nothing was done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn color_is_decided_by_flag_then_environment_then_stream() {
        let nothing = Surroundings { no_color: false, forced: false, dumb: false };
        let no_color = Surroundings { no_color: true, ..nothing };
        let forced = Surroundings { forced: true, ..nothing };
        let dumb = Surroundings { dumb: true, ..nothing };
        for (choice, surroundings, tty, wanted) in [
            (ColorChoice::Auto, nothing, true, true),
            (ColorChoice::Auto, nothing, false, false),
            (ColorChoice::Auto, no_color, true, false),
            (ColorChoice::Auto, forced, false, true),
            (ColorChoice::Auto, dumb, true, false),
            (ColorChoice::Always, no_color, false, true),
            (ColorChoice::Never, forced, true, false),
        ] {
            assert_eq!(wants_color(choice, surroundings, tty), wanted);
        }
    }

    #[test]
    fn text_is_cut_by_what_is_seen() {
        assert_eq!(shorten("größe", 5, "…"), "größe");
        assert_eq!(shorten("größe!", 5, "…"), "größ…");
        assert_eq!(shorten("日本語", 5, "…"), "日本…");
        assert_eq!(harmless("a\x1b[2Jb"), "a\u{fffd}[2Jb");
    }

    #[test]
    fn symbols_follow_the_locale() {
        assert_eq!(symbols(Some("C")).good, "*");
        assert_eq!(symbols(Some("de_DE.UTF-8")).good, "●");
        assert_eq!(symbols(None).good, "●");
    }
}
