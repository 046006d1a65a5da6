//! Tensors of tokens. They grow at the end, and tokens may be dropped at the front.

use std::ops::Range;

use candle_core::Tensor;

use crate::CacheError;
use crate::coded::PAGE;

/// Rows of tokens, `(heads, tokens, width)` of any type, in a tensor with spare capacity.
#[derive(Debug)]
pub struct Growing {
    /// The number of tokens for which memory is reserved at a time.
    page: usize,
    /// `(heads, capacity, width)`
    store: Option<Tensor>,
    len: usize,
}

impl Default for Growing {
    fn default() -> Self {
        Self::in_pages_of(PAGE)
    }
}

impl Growing {
    /// An empty store that reserves memory for `page` tokens at a time.
    pub fn in_pages_of(page: usize) -> Self {
        Self { page, store: None, len: 0 }
    }

    /// The number of tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds `rows` `(heads, n, width)`.
    ///
    /// # Errors
    /// If the device does not have enough memory.
    pub fn push(&mut self, rows: &Tensor) -> Result<(), CacheError> {
        let (heads, n, width) = rows.dims3()?;
        if n * width == 0 {
            return Ok(());
        }
        let rows = rows.contiguous()?;
        let capacity = self.store.as_ref().map_or(0, |store| store.dims()[1]);
        if capacity - self.len < n {
            // The first push reserves only what it needs, because it is a prompt.
            let room = if capacity == 0 { n } else { n.max(self.page) };
            let grown = Tensor::zeros((heads, self.len + room, width), rows.dtype(), rows.device())?;
            if self.len > 0 {
                grown.slice_set(&self.rows(0..self.len)?.contiguous()?, 1, 0)?;
            }
            self.store = Some(grown);
        }
        if let Some(store) = &self.store {
            store.slice_set(&rows, 1, self.len)?;
        }
        self.len += n;
        Ok(())
    }

    /// The rows of `tokens`, `(heads, n, width)`. This is a view: use it before the next push.
    ///
    /// # Errors
    /// If there are no such tokens.
    pub fn rows(&self, tokens: Range<usize>) -> Result<Tensor, CacheError> {
        let store = self.store.as_ref().filter(|_| tokens.end <= self.len && !tokens.is_empty());
        let store = store.ok_or_else(|| {
            candle_core::Error::Msg(format!("tokens {tokens:?} were asked for, of {} held", self.len))
        })?;
        Ok(store.narrow(1, tokens.start, tokens.len())?)
    }

    /// Drops the first `tokens` tokens, and frees their memory.
    ///
    /// # Errors
    /// If the remaining tokens cannot be copied.
    pub fn drop_first(&mut self, tokens: usize) -> Result<(), CacheError> {
        let tokens = tokens.min(self.len);
        if tokens == 0 {
            return Ok(());
        }
        // `copy` instead of `contiguous`: a view of the last tokens of one head is contiguous, and would keep the whole
        // store in memory.
        self.store = if tokens == self.len { None } else { Some(self.rows(tokens..self.len)?.copy()?) };
        self.len -= tokens;
        Ok(())
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.store.as_ref().map_or(0, |store| store.elem_count() * store.dtype().size_in_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::{DType, Device};

    use super::*;

    fn rows(from: u32, n: usize) -> Tensor {
        let numbers: Vec<u8> =
            (0..2).flat_map(|head| (0..n as u32).map(move |t| (100 * head + from + t) as u8)).collect();
        Tensor::from_vec(numbers, (2, n, 1), &Device::Cpu).unwrap()
    }

    fn numbers(x: &Tensor) -> Vec<u8> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn rows_are_kept_in_order_and_dropped_from_the_front() {
        let mut growing = Growing::default();
        growing.push(&rows(0, 3)).unwrap();
        assert_eq!((growing.len(), growing.bytes()), (3, 6), "a prompt takes what it needs");
        for at in 3..40 {
            growing.push(&rows(at, 1)).unwrap();
        }
        assert_eq!(growing.bytes(), 2 * (3 + 2 * PAGE));
        assert_eq!(numbers(&growing.rows(2..5).unwrap()), [2, 3, 4, 102, 103, 104]);
        growing.drop_first(38).unwrap();
        assert_eq!((growing.len(), growing.bytes()), (2, 4));
        growing.push(&rows(40, 1)).unwrap();
        assert_eq!(numbers(&growing.rows(0..3).unwrap()), [38, 39, 40, 138, 139, 140]);
        assert!(growing.rows(1..4).unwrap_err().to_string().contains("of 3 held"));
        growing.drop_first(9).unwrap();
        assert_eq!((growing.is_empty(), growing.bytes()), (true, 0));
        growing.push(&Tensor::zeros((2, 4, 0), DType::U8, &Device::Cpu).unwrap()).unwrap();
        assert!(growing.is_empty(), "rows without bytes are not kept");
    }
}
