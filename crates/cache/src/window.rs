//! The tokens at both ends of a sequence that are stored more precisely than coded ones.

/// The numbers of tokens at both ends of a sequence that are not coded, or not only coded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The first tokens of the sequence ("attention sinks"). They are stored exactly in f16.
    pub sinks: usize,
    /// The most recent tokens, including the one that attends. They are stored exactly in f16.
    pub recent: usize,
    /// The tokens before the recent ones. They are stored in 4 bits (`q4_0`) beside their code, until newer tokens
    /// replace them.
    pub graded: usize,
}
