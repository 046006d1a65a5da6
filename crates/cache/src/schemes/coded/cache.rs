//! One layer's cache over any pair of codecs.

use candle_core::{DType, Tensor};
use kvcsr_codec::{Footprint, Kind};
use rayon::prelude::*;

use super::LayerCodecs;
use super::attend::{HeadCall, Scratch, Seen, Tables};
use super::stream::Stream;
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, Bias, CacheError, Geometry, KeysCoded, LayerCache, Padding, Rotary, Window};

/// One layer's cache: per sequence, coded keys and values with exact tokens around them.
///
/// Left padding is not stored. Each sequence has positions and group boundaries of its own, counted from its first
/// token of text, so that it is coded as it would be alone.
pub struct CodedCache {
    layer: usize,
    geometry: Geometry,
    keys_coded: KeysCoded,
    window: Window,
    codecs: LayerCodecs,
    len: usize,
    sequences: Vec<Sequence>,
}

struct Sequence {
    keys: Stream,
    values: Stream,
}

/// Keys and values of a call, `(B, Hkv, T, D)`, checked.
struct New {
    keys: Vec<f32>,
    values: Vec<f32>,
    batch: usize,
    tokens: usize,
}

impl CodedCache {
    pub(super) fn new(
        layer: usize,
        geometry: Geometry,
        keys_coded: KeysCoded,
        window: Window,
        codecs: LayerCodecs,
    ) -> Self {
        Self { layer, geometry, keys_coded, window, codecs, len: 0, sequences: Vec::new() }
    }

    /// Checks new tokens and hands out their elements.
    fn read(&self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<New, CacheError> {
        let held = (self.len > 0).then_some((self.sequences.len(), self.geometry.kv_heads));
        let (batch, heads, tokens, d) = check_kv(k, v, held, Some(self.geometry.head_dim))?;
        if batch * tokens == 0 || heads != self.geometry.kv_heads {
            let expected = format!("(B, {}, T, {d}) with at least one sequence and token", self.geometry.kv_heads);
            return Err(CacheError::Shape { tensor: "keys", expected, found: k.dims().to_vec() });
        }
        if self.len + tokens > rotary.max_positions() {
            return Err(CacheError::ContextLength { position: self.len + tokens, max: rotary.max_positions() });
        }
        let elements = |x: &Tensor, kind: Kind| -> Result<Vec<f32>, CacheError> {
            let elements = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            match elements.iter().position(|x| !x.is_finite()) {
                None => Ok(elements),
                Some(at) => Err(CacheError::NotFinite { layer: self.layer, kind, token: self.len + at / d % tokens }),
            }
        };
        Ok(New { keys: elements(k, Kind::Key)?, values: elements(v, Kind::Value)?, batch, tokens })
    }

    /// Checks that padding is what it was.
    fn check_padding(&self, padding: Padding<'_>) -> Result<(), CacheError> {
        for (row, sequence) in self.sequences.iter().enumerate() {
            let held = self.len.saturating_sub(padding.of(row));
            if sequence.keys.held() != held {
                let expected = format!("padding of {} tokens in row {row}, as before", self.len - sequence.keys.held());
                return Err(CacheError::Shape { tensor: "padding", expected, found: vec![padding.of(row)] });
            }
        }
        Ok(())
    }

    /// Codes and keeps new tokens. Returns per sequence what its new tokens see coded, of keys and of values.
    fn take(
        &mut self,
        mut new: New,
        padding: Padding<'_>,
        prompt: bool,
        tables: Option<Tables<'_>>,
    ) -> Vec<(Vec<usize>, Vec<usize>)> {
        let Geometry { kv_heads, head_dim, .. } = self.geometry;
        let stream =
            |codec: &std::sync::Arc<dyn super::Codec>| Stream::new(codec.clone(), self.window, kv_heads, head_dim);
        if self.sequences.is_empty() {
            self.sequences.reserve_exact(new.batch);
            for _ in 0..new.batch {
                self.sequences.push(Sequence { keys: stream(&self.codecs.0), values: stream(&self.codecs.1) });
            }
        }
        let start = self.len;
        let each = kv_heads * new.tokens * head_dim;
        let rotate = tables.filter(|_| self.keys_coded == KeysCoded::AfterRope);
        let rows = new.keys.par_chunks_exact_mut(each).zip(new.values.par_chunks_exact(each)).enumerate();
        let seen = self.sequences.par_iter_mut().zip(rows).map(|(sequence, (row, (keys, values)))| {
            let from = padding.of(row).saturating_sub(start).min(new.tokens);
            let Sequence { keys: key_stream, values: value_stream } = sequence;
            if let Some(tables) = rotate {
                for head in keys.chunks_exact_mut(new.tokens * head_dim) {
                    tables.rotate(&mut head[from * head_dim..], head_dim, key_stream.held());
                }
            }
            rayon::join(|| key_stream.take(keys, from, prompt), || value_stream.take(values, from, prompt))
        });
        let seen = seen.collect();
        self.len += new.tokens;
        seen
    }

    fn trim(&mut self) {
        for sequence in &mut self.sequences {
            sequence.keys.trim();
            sequence.values.trim();
        }
    }

    /// Attention of unrotated queries `(B, H, T, D)`, the new tokens being stored.
    fn attend_stored(
        &self,
        queries: &mut [f32],
        group: usize,
        seen: &[(Vec<usize>, Vec<usize>)],
        cx: &AttendCx<'_>,
        tables: Option<Tables<'_>>,
    ) -> Vec<f32> {
        let Geometry { kv_heads, head_dim: d, .. } = self.geometry;
        let tokens = self.len - cx.start;
        let each = group * tokens * d;
        let mut out = vec![0f32; queries.len()];
        let scale = cx.scale as f32;
        let calls = queries.par_chunks_exact_mut(each).zip(out.par_chunks_exact_mut(each)).enumerate();
        calls.for_each_init(Scratch::default, |scratch, (stream, (queries, out))| {
            let (row, head) = (stream / kv_heads, stream % kv_heads);
            let (sequence, (keys_until, values_until)) = (&self.sequences[row], &seen[row]);
            let new = keys_until.len();
            let start = sequence.keys.held() - new;
            if new == 0 {
                return;
            }
            let from = tokens - new;
            for queries in queries.chunks_exact_mut(tokens * d) {
                let queries = &mut queries[from * d..];
                queries.iter_mut().for_each(|x| *x *= scale);
                if let Some(tables) = tables {
                    tables.rotate(queries, d, start);
                }
            }
            let slopes = match cx.pattern.bias {
                Bias::None => None,
                Bias::Alibi(alibi) => Some(&alibi.slopes()[head * group..(head + 1) * group]),
            };
            let call = HeadCall {
                keys: Seen { stream: &sequence.keys, until: keys_until },
                values: Seen { stream: &sequence.values, until: values_until },
                head,
                head_dim: d,
                tables: tables.filter(|_| self.keys_coded == KeysCoded::BeforeRope),
                start,
                reach: cx.pattern.reach,
                slopes,
            };
            if from == 0 {
                call.attend(queries, out, scratch);
                return;
            }
            let text = |x: &[f32]| -> Vec<f32> {
                x.chunks_exact(tokens * d).flat_map(|head| &head[from * d..]).copied().collect()
            };
            let mut attended = vec![0f32; group * new * d];
            call.attend(&text(queries), &mut attended, scratch);
            for (out, attended) in out.chunks_exact_mut(tokens * d).zip(attended.chunks_exact(new * d)) {
                out[from * d..].copy_from_slice(attended);
            }
        });
        out
    }
}

/// Hands the rotary tables to `f`, or nothing for a model without rotation.
fn with_tables<R>(rotary: &Rotary, f: impl FnOnce(Option<Tables<'_>>) -> R) -> Result<R, CacheError> {
    if rotary.rotates() { rotary.with_tables(|cos, sin| f(Some(Tables { cos, sin }))) } else { Ok(f(None)) }
}

impl LayerCache for CodedCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        check_start(cx.start, self.len)?;
        let new = self.read(k, v, cx.rotary)?;
        let (b, h, t, d) = q.dims4()?;
        let kv_heads = self.geometry.kv_heads;
        if (b, t, d) != (new.batch, new.tokens, self.geometry.head_dim) || h == 0 || !h.is_multiple_of(kv_heads) {
            let expected = format!("heads in groups over keys {:?}", k.dims());
            return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
        }
        cx.pattern.check(b, h)?;
        self.check_padding(cx.pattern.padding)?;
        let mut queries = q.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let out = with_tables(cx.rotary, |tables| {
            let seen = self.take(new, cx.pattern.padding, false, tables);
            let out = self.attend_stored(&mut queries, h / kv_heads, &seen, cx, tables);
            self.trim();
            out
        })?;
        Ok(Tensor::from_vec(out, (b, h, t, d), q.device())?.to_dtype(q.dtype())?)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        check_start(0, self.len)?;
        let new = self.read(k, v, rotary)?;
        with_tables(rotary, |tables| {
            self.take(new, Padding::None, true, tables);
            self.trim();
        })
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() + self.sequences.capacity() * size_of::<Sequence>();
        self.sequences.iter().flat_map(|s| [&s.keys, &s.values]).map(Stream::footprint).sum::<Footprint>()
            + Footprint { tables, ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.sequences = Vec::new();
        self.len = 0;
    }
}
