//! A held-out text: a context and what follows it.

/// One held-out text: a context and what follows it.
#[derive(Debug, Clone)]
pub struct HeldoutText {
    /// Tokens of context and continuation.
    pub ids: Vec<u32>,
    /// How many of them are context.
    pub context: usize,
}
