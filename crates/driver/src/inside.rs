//! What can be asked of the inside of a running guest: through an agent in a virtual machine, directly in a container.
//!
//! Questions and answers are plain data, so that they travel from the caller to the driver as they are.

use std::{collections::BTreeMap, fmt};

use nephos_types::{Bytes, Error};
use serde::{Deserialize, Serialize};

/// The most bytes in one question or answer: content of a file, output of a program.
pub const MAX_CONTENT: usize = 16 << 20;
const MAX_ARGUMENTS: usize = 1024;
const MAX_ARGUMENT: usize = 128 << 10;
const MAX_PATH: usize = 4096;
const MAX_KEYS: usize = 256;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Question {
    /// Who and what are you? Answered with [`Answer::Info`].
    Info,
    /// Run a program to its end, as root. Answered with [`Answer::Ended`].
    Execute {
        /// The program and its arguments; no shell is in between.
        command: Vec<String>,
        /// Additional environment.
        #[serde(default)]
        environment: BTreeMap<String, String>,
        /// What it reads.
        #[serde(default, with = "base64_text")]
        input: Vec<u8>,
        /// After this many milliseconds it is given up: `guest_command_timeout`.
        limit_ms: u64,
        /// At most this many bytes of each of its two outputs are answered; what it writes beyond is read and forgotten.
        #[serde(default = "most")]
        max_output: u64,
    },
    /// The content of a file. Answered with [`Answer::Content`].
    ReadFile {
        /// Absolute path.
        path: String,
        /// From this byte.
        #[serde(default)]
        offset: u64,
        /// At most this many bytes.
        max: u64,
    },
    /// Write a file. Answered with [`Answer::Done`].
    WriteFile {
        /// Absolute path; the folder must exist.
        path: String,
        /// Content.
        #[serde(with = "base64_text")]
        content: Vec<u8>,
        /// Behind what is there, instead of in its place.
        #[serde(default)]
        append: bool,
        /// Permissions, e.g. `0o600`; as the guest sees fit if it is new and this is not given.
        #[serde(default)]
        mode: Option<u32>,
    },
    /// Set a user's password. Answered with [`Answer::Done`].
    SetPassword {
        /// The user.
        user: String,
        /// The new password.
        password: Hidden,
    },
    /// Let these SSH keys, and no others, in as this user. Answered with [`Answer::Done`].
    SetKeys {
        /// The user.
        user: String,
        /// Keys as in `authorized_keys`.
        keys: Vec<String>,
    },
}

fn most() -> u64 {
    MAX_CONTENT as u64
}

/// A text that goes where it must and appears in no log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hidden(pub String);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// Who and what the guest is.
    Info(GuestInfo),
    /// A program has ended.
    Ended {
        /// Its exit code; `None` if a signal ended it.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
        /// What it wrote to its standard output.
        #[serde(with = "base64_text")]
        output: Vec<u8>,
        /// What it wrote to its standard error.
        #[serde(with = "base64_text")]
        errors: Vec<u8>,
        /// Whether it wrote more than is shown.
        truncated: bool,
    },
    /// Content of a file.
    Content {
        /// The bytes.
        #[serde(with = "base64_text")]
        content: Vec<u8>,
        /// Whether the file ends here.
        end: bool,
    },
}

/// What a guest says of itself. It may say anything: none of it is to be trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuestInfo {
    /// Host name.
    pub host_name: Option<String>,
    /// Operating system, e.g. `Debian GNU/Linux 13 (trixie)`.
    pub system: Option<String>,
    /// Kernel release.
    pub kernel: Option<String>,
    /// Version of the agent inside, where there is one.
    pub agent: Option<String>,
    /// Network interfaces.
    pub interfaces: Vec<GuestInterface>,
    /// Mounted file systems.
    pub file_systems: Vec<GuestFileSystem>,
}

/// A mounted file system as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFileSystem {
    /// Where it is mounted.
    pub mount: String,
    /// Its type, e.g. `ext4`.
    pub kind: Option<String>,
    /// Its size.
    pub size: Option<Bytes>,
    /// How much of it is used.
    pub used: Option<Bytes>,
}

/// A network interface as the guest sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestInterface {
    /// Name.
    pub name: String,
    /// MAC address.
    pub mac: Option<String>,
    /// IP addresses.
    pub addresses: Vec<String>,
}

impl Question {
    /// Refuses what no guest may be asked: too long, or not a path.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |field: &str, constraint: &str, detail: String| {
            Err(Error::invalid("invalid_question", "The guest cannot be asked this").reason(field, constraint, detail))
        };
        let path_fits = |path: &str| path.starts_with('/') && path.len() <= MAX_PATH && !path.contains('\0');
        match self {
            Self::Info => Ok(()),
            Self::Execute { command, environment, input, .. } => {
                let texts = || command.iter().chain(environment.keys()).chain(environment.values());
                if command.first().is_none_or(String::is_empty) {
                    refuse("command", "required", "a program is needed".to_owned())
                } else if command.len() + environment.len() > MAX_ARGUMENTS || texts().any(|t| t.len() > MAX_ARGUMENT) {
                    refuse("command", "size", format!("at most {MAX_ARGUMENTS} arguments of {MAX_ARGUMENT} bytes"))
                } else if texts().any(|text| text.contains('\0')) || environment.keys().any(|key| key.contains('=')) {
                    refuse("command", "format", "no zero bytes, and no `=` in names".to_owned())
                } else if input.len() > MAX_CONTENT {
                    refuse("input", "size", format!("at most {MAX_CONTENT} bytes"))
                } else {
                    Ok(())
                }
            }
            Self::ReadFile { path, .. } if !path_fits(path) => {
                refuse("path", "format", format!("an absolute path of at most {MAX_PATH} bytes"))
            }
            Self::WriteFile { path, .. } if !path_fits(path) => {
                refuse("path", "format", format!("an absolute path of at most {MAX_PATH} bytes"))
            }
            Self::WriteFile { content, .. } if content.len() > MAX_CONTENT => {
                refuse("content", "size", format!("at most {MAX_CONTENT} bytes"))
            }
            Self::SetPassword { user, .. } | Self::SetKeys { user, .. } if !is_user_name(user) => {
                refuse("user", "format", "letters, digits, `_`, `-` and `.`, at most 32".to_owned())
            }
            Self::SetKeys { keys, .. } if keys.len() > MAX_KEYS || keys.iter().any(|key| key.contains('\n')) => {
                refuse("keys", "format", format!("at most {MAX_KEYS} keys of one line each"))
            }
            _ => Ok(()),
        }
    }
}

impl Answer {
    /// Cuts a program's outputs to so many bytes each, and says so if there was more.
    #[must_use]
    pub fn cut(self, most: u64) -> Self {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        match self {
            Self::Ended { code, signal, mut output, mut errors, truncated } => {
                let truncated = truncated || output.len() > most || errors.len() > most;
                output.truncate(most);
                errors.truncate(most);
                Self::Ended { code, signal, output, errors, truncated }
            }
            other => other,
        }
    }
}

fn is_user_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    first && name.len() <= 32 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

/// Bytes as base64 text, since messages are JSON.
mod base64_text {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}
