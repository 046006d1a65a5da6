//! Rows of tokens. The oldest rows can be dropped.

/// Rows of tokens at consecutive positions.
pub(super) struct Rows<T> {
    /// Elements per token.
    each: usize,
    /// Position of the first token held.
    first: usize,
    data: Vec<T>,
}

impl<T: Copy> Rows<T> {
    /// An empty buffer, which allocates nothing.
    pub(super) fn new(each: usize) -> Self {
        Self { each, first: 0, data: Vec::new() }
    }

    /// Makes room for `tokens` more tokens. If it must allocate, it allocates for at least `least` tokens.
    pub(super) fn reserve(&mut self, tokens: usize, least: usize) {
        if self.data.capacity() - self.data.len() < tokens * self.each {
            self.data.reserve_exact(tokens.max(least) * self.each);
        }
    }

    /// Where the row of the token at `position` must be written. It directly follows the rows held, if there are any.
    pub(super) fn begin(&mut self, position: usize) -> &mut Vec<T> {
        if self.data.is_empty() {
            self.first = position;
        }
        debug_assert_eq!(position, self.first + self.data.len() / self.each);
        &mut self.data
    }

    /// Position of the first token held, if there is one.
    pub(super) fn first(&self) -> Option<usize> {
        (!self.data.is_empty()).then_some(self.first)
    }

    /// The row of the token at `position`.
    pub(super) fn at(&self, position: usize) -> &[T] {
        let at = (position - self.first) * self.each;
        &self.data[at..at + self.each]
    }

    /// Drops the tokens before `position`. Frees memory beyond the remaining tokens and `slack` more.
    pub(super) fn trim(&mut self, position: usize, slack: usize) {
        if !self.data.is_empty() {
            let leaving = position.saturating_sub(self.first).min(self.data.len() / self.each);
            self.data.drain(..leaving * self.each);
            self.first += leaving;
        }
        let most = self.data.len() + slack * self.each;
        if self.data.capacity() > most {
            self.data.shrink_to(most);
        }
    }

    /// Bytes allocated.
    pub(super) fn bytes(&self) -> usize {
        self.data.capacity() * size_of::<T>()
    }
}
