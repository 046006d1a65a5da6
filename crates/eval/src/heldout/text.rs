//! A held-out text: a context and its continuation.

/// One held-out text: a context and its continuation.
#[derive(Debug, Clone)]
pub struct HeldoutText {
    /// Tokens of context and continuation.
    pub ids: Vec<u32>,
    /// How many of these tokens are context.
    pub context: usize,
}
