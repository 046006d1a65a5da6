//! A float buffer that starts on a cache line.

use std::ops::{Deref, DerefMut};

/// Floats per cache line, and per AVX-512 register.
pub(crate) const LINE: usize = 16;

/// `len` floats that start on a 64-byte boundary. If the stride of rows is a multiple of [`LINE`], no vector load then
/// crosses two cache lines.
#[derive(Debug)]
pub(crate) struct AlignedVec {
    buffer: Vec<f32>,
    start: usize,
    len: usize,
}

impl AlignedVec {
    pub(crate) fn zeros(len: usize) -> Self {
        let buffer = vec![0.0; len + LINE - 1];
        // `align_offset` may return usize::MAX instead of an offset. The buffer is then unaligned, which is only slower.
        let start = match buffer.as_ptr().align_offset(LINE * size_of::<f32>()) {
            offset if offset < LINE => offset,
            _ => 0,
        };
        Self { buffer, start, len }
    }

    pub(crate) fn bytes_of(len: usize) -> usize {
        (len + LINE - 1) * size_of::<f32>()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.capacity() * size_of::<f32>()
    }
}

impl Deref for AlignedVec {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.buffer[self.start..self.start + self.len]
    }
}

impl DerefMut for AlignedVec {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.buffer[self.start..self.start + self.len]
    }
}
