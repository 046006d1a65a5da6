//! The cache of one layer that keeps only some of its tokens.

use std::ops::Range;

use candle_core::{DType, Tensor};
use half::f16;
use kvcsr_codec::{Footprint, Kind};

use super::kept::{self, KeptHead};
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, LayerCache, Padding, Reach, Rotary};

/// Which tokens of a text are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Keep {
    /// All tokens.
    All,
    /// The first `sinks` tokens of the text and the last `recent` tokens. The token that attends is one of the last.
    Ends { sinks: usize, recent: usize },
}

impl Keep {
    /// Whether the query at position `query` of a text still has the key at position `key`.
    fn has(self, query: usize, key: usize) -> bool {
        match self {
            Self::All => true,
            Self::Ends { sinks, recent } => key < sinks || key + recent > query,
        }
    }
}

/// One text of a batch. Positions count from its first token.
#[derive(Debug, Clone)]
struct Row {
    /// The number of padding tokens before it. Padding is not kept.
    pad: usize,
    heads: Vec<KeptHead>,
}

/// New tokens of a text: their positions, and their keys after position embedding and values, `(Hkv, n, D)`.
struct New {
    pad: usize,
    positions: Range<usize>,
    keys: Vec<f16>,
    values: Vec<f16>,
}

/// Exact keys after position embedding, and exact values, in f16, of the tokens that were not deleted.
pub(super) struct EvictingCache {
    layer: usize,
    keep: Keep,
    head_dim: usize,
    len: usize,
    rows: Vec<Row>,
}

impl EvictingCache {
    pub(super) fn new(layer: usize, keep: Keep, head_dim: usize) -> Self {
        Self { layer, keep, head_dim, len: 0, rows: Vec::new() }
    }

    /// The index of the first new token that is text, and its position in the text. All new tokens may be padding.
    fn begins(&self, pad: usize, tokens: usize) -> (usize, usize) {
        (pad.saturating_sub(self.len).min(tokens), self.len.saturating_sub(pad))
    }

    /// The new tokens of each text in `(B, Hkv, T, D)`, with keys before position embedding. It changes nothing.
    fn read(&self, k: &Tensor, v: &Tensor, rotary: &Rotary, padding: Padding<'_>) -> Result<Vec<New>, CacheError> {
        let (b, _, t, _) = k.dims4()?;
        let found: Vec<usize> = (0..b).map(|row| padding.of(row)).collect();
        if self.rows.iter().zip(&found).any(|(row, found)| row.pad != *found) {
            let expected = self.rows.iter().map(|row| row.pad).collect();
            return Err(CacheError::Padding { layer: self.layer, expected, found });
        }
        let new = |(row, pad): (usize, usize)| -> Result<New, CacheError> {
            let (skip, first) = self.begins(pad, t);
            let mut new = New { pad, positions: first..first + t - skip, keys: Vec::new(), values: Vec::new() };
            if skip < t {
                let text = |x: &Tensor| x.get(row)?.narrow(1, skip, t - skip)?.unsqueeze(0);
                new.keys = self.halves(&text(k)?, Some((rotary, first)), Kind::Key, skip)?;
                new.values = self.halves(&text(v)?, None, Kind::Value, skip)?;
            }
            Ok(new)
        };
        found.into_iter().enumerate().map(new).collect()
    }

    /// Adds the new tokens of `heads` key-value heads. It cannot fail.
    fn push(&mut self, new: &[New], heads: usize) {
        if self.rows.is_empty() {
            let empty = |new: &New| Row { pad: new.pad, heads: vec![KeptHead::default(); heads] };
            self.rows = new.iter().map(empty).collect();
        }
        for (row, new) in self.rows.iter_mut().zip(new) {
            let each = (new.keys.len() / heads).max(1);
            let own = new.keys.chunks_exact(each).zip(new.values.chunks_exact(each));
            for (head, (keys, values)) in row.heads.iter_mut().zip(own) {
                head.push(new.positions.clone(), keys, values);
            }
        }
    }

    /// Removes what [`EvictingCache::push`] added.
    fn pop(&mut self, new: &[New]) {
        let d = self.head_dim;
        for (row, new) in self.rows.iter_mut().zip(new) {
            row.heads.iter_mut().for_each(|head| head.pop(new.positions.len(), d));
        }
        if self.len == 0 {
            self.rows = Vec::new();
        }
    }

    /// `(1, Hkv, n, D)` as f16, rotated if requested. Numbers beyond the range of f16 become its largest number.
    fn halves(
        &self,
        x: &Tensor,
        rotate: Option<(&Rotary, usize)>,
        kind: Kind,
        skip: usize,
    ) -> Result<Vec<f16>, CacheError> {
        let (n, d) = (x.dim(2)?, x.dim(3)?);
        let numbers = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        if let Some(at) = numbers(x)?.iter().position(|x| !x.is_finite()) {
            return Err(CacheError::NotFinite { layer: self.layer, kind, token: self.len + skip + at / d % n });
        }
        let turned = match rotate {
            Some((rotary, position)) => rotary.apply(&x.contiguous()?, position)?,
            None => x.clone(),
        };
        let most = f16::MAX.to_f32();
        Ok(numbers(&turned)?.into_iter().map(|x| f16::from_f32(x.clamp(-most, most))).collect())
    }

    /// Takes over a whole prompt. Nothing is deleted until [`EvictingCache::evict`].
    pub(super) fn hold(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        let (_, heads, tokens, _) = check_kv(k, v, None, Some(self.head_dim))?;
        check_start(0, self.len)?;
        let new = self.read(k, v, rotary, padding)?;
        self.push(&new, heads);
        self.len = tokens;
        Ok(())
    }

    /// Deletes the tokens that no later query keeps or sees.
    pub(super) fn evict(&mut self, reach: Reach) {
        let (keep, d) = (self.keep, self.head_dim);
        for Row { pad, heads } in &mut self.rows {
            let Some(last) = self.len.saturating_sub(*pad).checked_sub(1) else { continue };
            for head in heads {
                let seen_from = reach.first_seen(last + 1);
                head.retain(d, |_, position| keep.has(last, position as usize) && position as usize >= seen_from);
            }
        }
    }

    /// For each head of each row, keeps only the tokens whose indices are in `places`: `(B · Hkv)` sorted lists.
    pub(super) fn select(&mut self, places: &[Vec<usize>]) {
        let d = self.head_dim;
        let heads = self.rows.iter_mut().flat_map(|row| &mut row.heads);
        for (head, places) in heads.zip(places) {
            head.retain(d, |at, _| places.binary_search(&at).is_ok());
        }
    }

    /// Attention of the queries of one row, `(H, T, D)` before position embedding, over the tokens that `row` keeps.
    /// The output for padding is zero.
    fn row_out(&self, queries: &Tensor, row: &Row, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let (heads, tokens, d) = queries.dims3()?;
        let (skip, position) = self.begins(row.pad, tokens);
        let nothing = Tensor::zeros((heads, skip, d), queries.dtype(), queries.device())?;
        if skip == tokens {
            return Ok(nothing);
        }
        let text = queries.narrow(1, skip, tokens - skip)?.unsqueeze(0)?.contiguous()?;
        let text = cx.rotary.apply(&text, position)?.squeeze(0)?.to_dtype(DType::F32)?;
        let keep = self.keep;
        let out = kept::attend(&text, &row.heads, (position, cx), |query, key| keep.has(query, key))?;
        let out = out.to_dtype(queries.dtype())?;
        Ok(if skip == 0 { out } else { Tensor::cat(&[nothing, out], 1)? })
    }

    fn held_shape(&self) -> Option<(usize, usize)> {
        self.rows.first().map(|row| (self.rows.len(), row.heads.len()))
    }
}

impl LayerCache for EvictingCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_kv(k, v, self.held_shape(), Some(self.head_dim))?;
        check_start(cx.start, self.len)?;
        let (b, heads, tokens, _) = q.dims4()?;
        cx.pattern.check(b, heads)?;
        if b != k.dim(0)? || !heads.is_multiple_of(k.dim(1)?) || tokens != k.dim(2)? {
            let expected = format!("({}, H, {}, D) with H a multiple of {}", k.dim(0)?, k.dim(2)?, k.dim(1)?);
            return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
        }
        if self.len + tokens > cx.rotary.max_positions() {
            return Err(CacheError::ContextLength { position: self.len + tokens, max: cx.rotary.max_positions() });
        }
        let new = self.read(k, v, cx.rotary, cx.pattern.padding)?;
        self.push(&new, k.dim(1)?);
        let outs = self.rows.iter().enumerate().map(|(i, row)| self.row_out(&q.get(i)?, row, cx));
        let out = outs.collect::<Result<Vec<_>, _>>().and_then(|outs| Ok(Tensor::stack(&outs, 0)?));
        if out.is_err() {
            self.pop(&new);
            return out;
        }
        self.len += tokens;
        self.evict(cx.pattern.reach);
        out
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.absorb_padded(k, v, rotary, Padding::None)
    }

    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        self.hold(k, v, rotary, padding)?;
        self.evict(rotary.reach());
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.rows.capacity() * size_of::<Row>();
        let heads = |row: &Row| row.heads.capacity() * size_of::<KeptHead>();
        let kept: Footprint = self.rows.iter().flat_map(|row| &row.heads).map(KeptHead::footprint).sum();
        kept + Footprint { tables: tables + self.rows.iter().map(heads).sum::<usize>(), ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.rows = Vec::new();
        self.len = 0;
    }
}
