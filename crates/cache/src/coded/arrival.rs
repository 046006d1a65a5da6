//! Checks of the tensors of a call, before anything changes.

use candle_core::Tensor;

use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, Geometry, Padding, Rotary};

/// What a layer's cache holds, as far as new tokens must fit it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Held<I> {
    pub(crate) layer: usize,
    pub(crate) geometry: Geometry,
    /// Tokens held, padding included.
    pub(crate) len: usize,
    /// Padding of each sequence held.
    pub(crate) padding: I,
}

impl<I: ExactSizeIterator<Item = usize> + Clone> Held<I> {
    /// Checks the keys and values of a call. Returns, for each sequence, its padding and the number of its new tokens
    /// without padding.
    ///
    /// # Errors
    /// If the shapes, positions or padding do not continue what the cache holds.
    pub(crate) fn check(
        self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<Vec<(usize, usize)>, CacheError> {
        let Self { layer, geometry: Geometry { kv_heads, head_dim, .. }, len, padding: begun } = self;
        let held = (len > 0).then_some((begun.len(), kv_heads));
        let (batch, heads, tokens, d) = check_kv(k, v, held, Some(head_dim))?;
        if batch * tokens == 0 || heads != kv_heads {
            let expected = format!("(B, {kv_heads}, T, {d}) with at least one sequence and token");
            return Err(CacheError::Shape { tensor: "keys", expected, found: k.dims().to_vec() });
        }
        if len + tokens > rotary.max_positions() {
            return Err(CacheError::ContextLength { position: len + tokens, max: rotary.max_positions() });
        }
        let found = || (0..batch).map(|row| padding.of(row));
        if len > 0 && !found().eq(begun.clone()) {
            return Err(CacheError::Padding { layer, expected: begun.collect(), found: found().collect() });
        }
        Ok(found().map(|p| (p, tokens - p.saturating_sub(len).min(tokens))).collect())
    }
}

/// Checks the queries of a call against its keys and values, and checks that the call begins where the cache of `len`
/// tokens ends. Returns `(B, H, T, D)`.
///
/// # Errors
/// If the shapes, the position or the pattern do not fit.
pub(crate) fn check_queries(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    kv_heads: usize,
    len: usize,
    cx: &AttendCx<'_>,
) -> Result<(usize, usize, usize, usize), CacheError> {
    check_start(cx.start, len)?;
    let (b, h, t, d) = q.dims4()?;
    if k.dims() != [b, kv_heads, t, d] || h == 0 || !h.is_multiple_of(kv_heads) {
        check_kv(k, v, None, None)?;
        let expected = format!("heads in groups over keys {:?} of at least one token", k.dims());
        return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
    }
    cx.pattern.check(b, h)?;
    Ok((b, h, t, d))
}
