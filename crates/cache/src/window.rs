//! The exact tokens around coded ones.

/// Tokens kept exactly, in f16, at both ends of a sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The first tokens of the sequence ("attention sinks").
    pub sinks: usize,
    /// The most recent tokens, including the one that attends.
    pub recent: usize,
}
