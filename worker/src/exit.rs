//! How a command ends.

/// What the process tells its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// All went well.
    Success,
    /// The user's SQL, manifest, files or options are wrong.
    UserError,
    /// The command line itself is wrong.
    Usage,
    /// The job ran and failed, or Tiderace has a bug.
    Failed,
    /// The user did not wait for the end: the number of the signal that said so.
    Interrupted(u8),
}

impl Exit {
    /// The exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::UserError => 1,
            Self::Usage => 2,
            Self::Failed => 3,
            // What a shell shows of a process that a signal has ended.
            Self::Interrupted(signal) => 128 + signal,
        }
    }
}
