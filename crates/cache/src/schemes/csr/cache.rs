//! One layer's cache of sparse codes.

use candle_core::{DType, Tensor};
use half::f16;
use kvcsr_codec::attend::{HeadAttention, RotaryTables};
use kvcsr_codec::{Footprint, Kind};
use rayon::prelude::*;

use super::exact::{ExactTokens, Pair};
use super::options::{AttentionPath, CsrOptions, OnlinePart, Prefill};
use super::streams::{Coder, Streams};
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, CacheError, LayerCache, Padding, Pattern, Rotary, attention};

/// Query rows of one head attended together on codes. One token is always attended to on codes; more
/// of them only while they are one block: beyond it, restoring everything once is faster.
const QUERY_ROWS: usize = 32;

/// One layer's cache of sparse codes.
pub struct CsrCache {
    layer: usize,
    len: usize,
    batch: usize,
    keys: Streams,
    values: Streams,
    exact: ExactTokens,
    online: Option<OnlinePart>,
    attention: AttentionPath,
}

impl CsrCache {
    pub(super) fn new(layer: usize, keys: Coder, values: Coder, options: &CsrOptions) -> Self {
        let exact = ExactTokens::new(options.window, keys.head_dim());
        Self {
            layer,
            len: 0,
            batch: 1,
            keys: Streams::new(keys, layer),
            values: Streams::new(values, layer),
            exact,
            online: options.online,
            attention: options.attention,
        }
    }

    fn head_dim(&self) -> usize {
        self.keys.coder.head_dim()
    }

    /// Codes and keeps new tokens, after filling the online part from them if they are the prompt;
    /// on an error nothing is kept.
    fn append(&mut self, k: &Tensor, v: &Tensor, prompt: bool) -> Result<(), CacheError> {
        let held = (self.len > 0).then(|| (self.batch, self.keys.count() / self.batch));
        let (b, h, t, _) = check_kv(k, v, held, Some(self.head_dim()))?;
        if b * h * t == 0 {
            let expected = "(B, Hkv, T, D) with at least one sequence, head and token".into();
            return Err(CacheError::Shape { tensor: "keys", expected, found: k.dims().to_vec() });
        }
        let (keys, values) = (rows(k)?, rows(v)?);
        self.check_finite(Kind::Key, &keys, t)?;
        self.check_finite(Kind::Value, &values, t)?;
        let online = match self.online.filter(|_| prompt) {
            Some(part) => Some((self.keys.fill(&part, &keys, b, h)?, self.values.fill(&part, &values, b, h)?)),
            None => None,
        };
        let (key_atoms, value_atoms) = match &online {
            Some((keys, values)) => (&keys[..], &values[..]),
            None => (self.keys.online(), self.values.online()),
        };
        if self.exact.active() {
            let (keys, values) = (halves(&keys), halves(&values));
            let leaving_keys = self.exact.leaving_rows(self.len, &keys, b * h, |pair: &Pair| &pair.keys);
            let leaving_values = self.exact.leaving_rows(self.len, &values, b * h, |pair: &Pair| &pair.values);
            let key_codes = self.keys.encode(&leaving_keys, key_atoms)?;
            let value_codes = self.values.encode(&leaving_values, value_atoms)?;
            self.keys.keep(&key_codes, b * h);
            self.values.keep(&value_codes, b * h);
            self.exact.keep(self.len, &keys, &values, b * h);
        } else {
            let key_codes = self.keys.encode(&keys, key_atoms)?;
            let value_codes = self.values.encode(&values, value_atoms)?;
            self.keys.keep(&key_codes, b * h);
            self.values.keep(&value_codes, b * h);
        }
        if let Some((keys, values)) = online {
            self.keys.keep_online(keys);
            self.values.keep_online(values);
        }
        self.batch = b;
        self.len += t;
        Ok(())
    }

    fn check_finite(&self, kind: Kind, rows: &[f32], tokens: usize) -> Result<(), CacheError> {
        match rows.iter().position(|x| !x.is_finite()) {
            None => Ok(()),
            Some(at) => {
                let token = self.len + at / self.head_dim() % tokens;
                Err(CacheError::NotFinite { layer: self.layer, kind, token })
            }
        }
    }

    /// Sinks and online atoms are those of a text's own tokens, so padding must not stand in their place.
    fn check_padding(&self, padding: Padding<'_>) -> Result<(), CacheError> {
        let part = match (self.exact.active(), self.online.is_some()) {
            (true, _) => "an exact window",
            (_, true) => "online atoms",
            _ => return Ok(()),
        };
        match padding {
            Padding::Left(rows) if rows.iter().any(|&n| n > 0) => Err(CacheError::Padding { layer: self.layer, part }),
            _ => Ok(()),
        }
    }

    /// Queries of a head must be those of whole groups, for the tokens that `k` holds.
    fn check_queries(q: &Tensor, k: &Tensor) -> Result<usize, CacheError> {
        let found = q.dims().to_vec();
        match (q.dims(), k.dims()) {
            (&[b, h, t, d], &[kb, kh, kt, kd])
                if (b, t, d) == (kb, kt, kd) && t > 0 && kh > 0 && h > 0 && h % kh == 0 =>
            {
                Ok(h / kh)
            }
            (_, k) => Err(CacheError::Shape {
                tensor: "queries",
                expected: format!("heads in groups over keys {k:?} of at least one token"),
                found,
            }),
        }
    }

    /// Attention of rotated queries, `(B, H, T, D)`, on the codes.
    fn attend_codes(&self, q: &Tensor, group: usize, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let (_, _, t, d) = q.dims4()?;
        let queries = (q * cx.scale)?.flatten_all()?.to_vec1::<f32>()?;
        let mut out = vec![0.0; queries.len()];
        cx.rotary.with_tables(|cos, sin| {
            let per_head = group * t * d;
            let heads = queries.par_chunks_exact(per_head).zip(out.par_chunks_exact_mut(per_head)).enumerate();
            heads.try_for_each(|(stream, (queries, out))| {
                self.attend_head(stream, queries, out, cx.start, t, RotaryTables { cos, sin })
            })
        })??;
        Ok(Tensor::from_vec(out, q.dims(), q.device())?)
    }

    /// Attention of the queries `(G, T, D)` that share the key-value head `stream`, a block of
    /// tokens at a time.
    fn attend_head(
        &self,
        stream: usize,
        queries: &[f32],
        out: &mut [f32],
        start: usize,
        tokens: usize,
        tables: RotaryTables<'_>,
    ) -> Result<(), CacheError> {
        let d = self.head_dim();
        let group = queries.len() / (tokens * d);
        let block = (QUERY_ROWS / group).clamp(1, tokens);
        let (mut rows, mut attended) = (vec![0.0; group * block * d], vec![0.0; group * block * d]);
        let sinks = self.exact.seen_from(self.len - 1)[0].end;
        let keys = self.keys.head(stream).map_err(|e| self.keys.error(e))?;
        let values = self.values.head(stream).map_err(|e| self.values.error(e))?;
        for first in (0..tokens).step_by(block) {
            let n = block.min(tokens - first);
            let (rows, attended) = (&mut rows[..group * n * d], &mut attended[..group * n * d]);
            for (rows, queries) in rows.chunks_exact_mut(n * d).zip(queries.chunks_exact(tokens * d)) {
                rows.copy_from_slice(&queries[first * d..(first + n) * d]);
            }
            let seen = |part: usize, origin: usize| -> Vec<_> {
                (0..group * n)
                    .map(|row| self.exact.seen_from(start + first + row % n)[part].clone())
                    .map(|range| range.start.saturating_sub(origin)..range.end.saturating_sub(origin))
                    .collect()
            };
            let mut head = HeadAttention::new(rows, d, tables);
            if let Some(pair) = self.exact.sinks.get(stream) {
                head.exact(&pair.keys, &pair.values, 0, &seen(0, 0)).map_err(|e| self.keys.error(e))?;
            }
            head.coded(keys, values, sinks, &seen(1, sinks)).map_err(|e| self.keys.error(e))?;
            if let Some(pair) = self.exact.recent.get(stream) {
                let origin = self.exact.first();
                head.exact(&pair.keys, &pair.values, origin, &seen(2, origin)).map_err(|e| self.keys.error(e))?;
            }
            head.finish(attended);
            for (out, attended) in out.chunks_exact_mut(tokens * d).zip(attended.chunks_exact(n * d)) {
                out[first * d..(first + n) * d].copy_from_slice(attended);
            }
        }
        Ok(())
    }

    /// Attention of rotated queries after restoring what they see; with exact tokens, one query
    /// token at a time, as each sees other tokens restored.
    fn attend_restored(&self, q: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let tokens = q.dim(2)?;
        let step = if self.exact.active() { 1 } else { tokens };
        let mut parts = Vec::with_capacity(tokens.div_ceil(step));
        for first in (0..tokens).step_by(step) {
            let n = step.min(tokens - first);
            let seen = self.exact.seen_from(cx.start + first + n - 1);
            let keys = self.restored(&self.keys, &seen, |pair: &Pair| &pair.keys, q)?;
            let values = self.restored(&self.values, &seen, |pair: &Pair| &pair.values, q)?;
            let keys = cx.rotary.apply(&keys, 0)?;
            let q = q.narrow(2, first, n)?;
            parts.push(attention::causal(&q, &keys.flatten(0, 1)?, &values.flatten(0, 1)?, cx.scale, &cx.pattern)?);
        }
        Ok(if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::cat(&parts, 2)? })
    }

    /// Keys or values of the tokens `seen`, `(B, Hkv, S, D)`: sinks, restored, recent.
    fn restored(
        &self,
        streams: &Streams,
        seen: &[std::ops::Range<usize>; 3],
        part: fn(&Pair) -> &[f16],
        like: &Tensor,
    ) -> Result<Tensor, CacheError> {
        let coded = streams.restore(self.batch, seen[1].len(), like)?;
        if !self.exact.active() {
            return Ok(coded);
        }
        let d = self.head_dim();
        let exact = |pairs: &[Pair], from: usize, n: usize| -> Result<Tensor, CacheError> {
            let rows: Vec<f32> =
                pairs.iter().flat_map(|pair| part(pair)[from * d..(from + n) * d].iter().map(|x| x.to_f32())).collect();
            let shape = (self.batch, pairs.len() / self.batch, n, d);
            Ok(Tensor::from_vec(rows, shape, like.device())?.to_dtype(like.dtype())?)
        };
        let sinks = exact(&self.exact.sinks, 0, seen[0].len())?;
        let recent = match seen[2].len() {
            0 => exact(&self.exact.recent, 0, 0)?,
            n => exact(&self.exact.recent, seen[2].start - self.exact.first(), n)?,
        };
        let parts: Vec<Tensor> = [sinks, coded, recent].into_iter().filter(|x| x.elem_count() > 0).collect();
        Ok(Tensor::cat(&parts, 2)?)
    }
}

/// All elements as f32.
fn rows(x: &Tensor) -> Result<Vec<f32>, CacheError> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?)
}

/// The nearest f16 numbers, saturating.
fn halves(rows: &[f32]) -> Vec<f16> {
    rows.iter().map(|x| f16::from_f32(x.clamp(f16::MIN.to_f32(), f16::MAX.to_f32()))).collect()
}

impl LayerCache for CsrCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_start(cx.start, self.len)?;
        let group = Self::check_queries(q, k)?;
        cx.pattern.check(q.dim(0)?, q.dim(1)?)?;
        self.check_padding(cx.pattern.padding)?;
        let q = cx.rotary.apply(q, cx.start)?;
        let prompt = self.is_empty() && self.online.is_some_and(|part| part.prefill == Prefill::Restored);
        self.append(k, v, prompt)?;
        let tokens = q.dim(2)?;
        let few = self.exact.active() || tokens == 1 || tokens * group <= QUERY_ROWS;
        // On codes, attention is causal and nothing else; what a pattern adds or hides is left to the other path.
        let plain = cx.pattern == Pattern::default() && cx.rotary.rotates();
        let here = q.dtype() == DType::F32 && q.device().is_cpu();
        let on_codes = self.attention == AttentionPath::Codes && few && plain && here;
        let out = if on_codes { self.attend_codes(&q, group, cx) } else { self.attend_restored(&q, cx) };
        self.exact.trim(self.len);
        out
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, _rotary: &Rotary) -> Result<(), CacheError> {
        check_start(0, self.len)?;
        self.append(k, v, true)?;
        self.exact.trim(self.len);
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let own = Footprint { tables: size_of::<Self>(), ..Footprint::default() };
        self.keys.footprint() + self.values.footprint() + self.exact.footprint() + own
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.exact.clear();
        self.len = 0;
    }
}
