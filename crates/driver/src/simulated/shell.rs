//! What a simulated guest does on its serial line: a login prompt, and behind it a shell that knows a few commands.

use std::mem;

use super::disk::Files;

/// The longest line that is kept; what goes beyond is dropped, as a terminal in canonical mode does.
const MAX_LINE: usize = 4096;

/// What the guest does besides answering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// `poweroff`
    PowerOff,
    /// `reboot`
    Reboot,
    /// `crash`
    Crash,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Mode {
    Login,
    Password { user: String },
    Shell,
}

/// The state of one serial line.
#[derive(Clone, Debug)]
pub(super) struct Shell {
    host_name: String,
    vcpus: u32,
    mode: Mode,
    line: Vec<u8>,
    after_return: bool,
}

impl Shell {
    /// A guest that has just been switched on, and what it writes while booting.
    pub(super) fn boot(host_name: &str, vcpus: u32) -> (Self, Vec<u8>) {
        // A host name may hold anything; on a line it must not be taken for a control sequence.
        let host_name: String = host_name.chars().filter(|c| !c.is_control()).take(255).collect();
        let greeting =
            format!("Linux version 0.0.0-simulated\r\nsimulated guest, {vcpus} CPUs\r\n\r\n{host_name} login: ");
        let shell = Self { host_name, vcpus, mode: Mode::Login, line: vec![], after_return: false };
        (shell, greeting.into_bytes())
    }

    /// Takes what was typed; returns what appears and what the guest does.
    pub(super) fn feed(&mut self, typed: &[u8], files: &mut Files) -> (Vec<u8>, Option<Action>) {
        let mut shown = vec![];
        for byte in typed {
            let after_return = mem::replace(&mut self.after_return, *byte == b'\r');
            match *byte {
                b'\n' if after_return => {}
                b'\r' | b'\n' => {
                    shown.extend_from_slice(b"\r\n");
                    let line = mem::take(&mut self.line);
                    if let Some(action) = self.enter(String::from_utf8_lossy(&line).trim(), files, &mut shown) {
                        return (shown, Some(action));
                    }
                }
                0x08 | 0x7f => {
                    let erased = self.line.pop().is_some();
                    if erased && self.echoes() {
                        shown.extend_from_slice(b"\x08 \x08");
                    }
                }
                byte if byte >= b' ' && self.line.len() < MAX_LINE => {
                    self.line.push(byte);
                    if self.echoes() {
                        shown.push(byte);
                    }
                }
                _ => {}
            }
        }
        (shown, None)
    }

    fn echoes(&self) -> bool {
        !matches!(self.mode, Mode::Password { .. })
    }

    fn enter(&mut self, line: &str, files: &mut Files, shown: &mut Vec<u8>) -> Option<Action> {
        match mem::replace(&mut self.mode, Mode::Shell) {
            Mode::Login if line.is_empty() => self.mode = Mode::Login,
            Mode::Login => self.mode = Mode::Password { user: line.to_owned() },
            Mode::Password { user } => {
                if user != super::LOGIN.0 || line != super::LOGIN.1 {
                    shown.extend_from_slice(b"Login incorrect\r\n");
                    self.mode = Mode::Login;
                }
            }
            Mode::Shell => {
                for command in line.split(';').map(str::trim) {
                    match self.run(command, files, shown) {
                        Next::Prompt => {}
                        Next::LogOut => self.mode = Mode::Login,
                        Next::Act(action) => return Some(action),
                    }
                }
            }
        }
        let prompt = match &self.mode {
            Mode::Login => format!("{} login: ", self.host_name),
            Mode::Password { .. } => "Password: ".to_owned(),
            Mode::Shell => "~ # ".to_owned(),
        };
        shown.extend_from_slice(prompt.as_bytes());
        None
    }

    fn run(&self, line: &str, files: &mut Files, shown: &mut Vec<u8>) -> Next {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let answer = match command {
            "" | "sync" => String::new(),
            "echo" => {
                let said = |text: &str| text.trim().replace(['"', '\''], "");
                match rest.split_once('>') {
                    Some((text, path)) => {
                        let _ = files.write(path.trim(), format!("{}\n", said(text)).into_bytes());
                        String::new()
                    }
                    None => format!("{}\r\n", said(rest)),
                }
            }
            "cat" => match files.read(rest.trim()) {
                Some(content) => String::from_utf8_lossy(content).replace('\n', "\r\n"),
                None => format!("cat: can't open '{rest}': No such file or directory\r\n"),
            },
            "hostname" => format!("{}\r\n", self.host_name),
            "nproc" => format!("{}\r\n", self.vcpus),
            "uname" => format!("Linux {} 0.0.0-simulated simulated\r\n", self.host_name),
            "exit" | "logout" => return Next::LogOut,
            "poweroff" => return Next::Act(Action::PowerOff),
            "reboot" => return Next::Act(Action::Reboot),
            "crash" => return Next::Act(Action::Crash),
            unknown => format!("sh: {unknown}: not found\r\n"),
        };
        shown.extend_from_slice(answer.as_bytes());
        Next::Prompt
    }
}

enum Next {
    Prompt,
    LogOut,
    Act(Action),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(bytes: &[u8]) -> String {
        String::from_utf8_lossy(bytes).into_owned()
    }

    #[test]
    fn logs_in_only_with_the_password_and_never_shows_it() {
        let (mut shell, greeting) = Shell::boot("web", 2);
        let files = &mut Files::default();
        assert!(text(&greeting).ends_with("web login: "));
        let (shown, _) = shell.feed(b"root\rwrong\r", files);
        assert!(text(&shown).contains("Login incorrect") && !text(&shown).contains("wrong"));
        let (shown, _) = shell.feed(b"root\r\nnephos\r\n", files);
        assert!(text(&shown).ends_with("~ # ") && !text(&shown).contains("nephos"), "{}", text(&shown));
        assert_eq!(text(&shell.feed(b"echo a\"b\"\n", files).0), "echo a\"b\"\r\nab\r\n~ # ");
        assert_eq!(text(&shell.feed(b"nprox\x7fc\n", files).0), "nprox\x08 \x08c\r\n2\r\n~ # ");
        shell.feed(b"echo kept >/root/a\n", files);
        assert_eq!(text(&shell.feed(b"cat /root/a\n", files).0), "cat /root/a\r\nkept\r\n~ # ");
        assert_eq!(shell.feed(b"poweroff\n", files).1, Some(Action::PowerOff));
    }

    proptest! {
        #[test]
        fn anything_may_be_typed(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let (mut shell, _) = Shell::boot("\u{1b}[2J\nx", 1);
            shell.feed(&bytes, &mut Files::default());
            prop_assert!(shell.line.len() <= MAX_LINE);
        }
    }
}
