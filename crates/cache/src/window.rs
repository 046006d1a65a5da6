//! The tokens around coded ones that are kept better.

/// Tokens at both ends of a sequence that are not, or not only, coded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The first tokens of the sequence ("attention sinks"), kept exactly in f16.
    pub sinks: usize,
    /// The most recent tokens, including the one that attends, kept exactly in f16.
    pub recent: usize,
    /// The tokens before those, kept in 4 bits (`q4_0`) beside their code until they are older.
    pub graded: usize,
}
