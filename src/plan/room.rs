//! The memory that the system leaves to this process.

/// The memory that a run may use at most, because the system gives this process no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub bytes: u64,
    /// The limit in words, for a message: "the control group allows …".
    pub limit: String,
    /// The next step for the user, for example how to raise the limit.
    pub help: String,
}
