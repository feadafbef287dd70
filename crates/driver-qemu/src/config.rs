//! What a driver is made of.

use std::path::PathBuf;

/// Whether hardware virtualisation is looked for.
#[derive(Clone, Debug)]
pub enum Acceleration {
    /// Yes, by booting the first of these Linux kernels that can be read, or else the host's own.
    Probe {
        /// Kernel files (`vmlinuz`).
        kernels: Vec<PathBuf>,
    },
    /// No: everything is emulated.
    Emulate,
}

/// What a driver is made of.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder of everything that is kept; made if it does not exist.
    pub state: PathBuf,
    /// QEMU's program, looked for in `PATH` if it has no slash.
    pub qemu: PathBuf,
    /// The disk tool's.
    pub qemu_img: PathBuf,
    /// Whether hardware virtualisation is looked for.
    pub acceleration: Acceleration,
}

impl Config {
    /// The usual programs, and the accelerator by a probe.
    #[must_use]
    pub fn new(state: impl Into<PathBuf>) -> Self {
        Self {
            state: state.into(),
            qemu: "qemu-system-x86_64".into(),
            qemu_img: "qemu-img".into(),
            acceleration: Acceleration::Probe { kernels: vec![] },
        }
    }
}
