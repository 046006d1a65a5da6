//! The cache of one layer, over any pair of codecs.

use std::cell::RefCell;
use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use kvcsr_codec::kernels::{RotaryTables, Softmax};
use kvcsr_codec::{Footprint, Kind};
use rayon::prelude::*;

use super::arrival::{Held, check_queries};
use super::attend::{Centre, HeadCall, PART_ROWS, Part, Scratch, Seen, join, parts};
use super::scheme::Settings;
use super::stages::take_off;
use super::stream::{Stream, Until};
use super::{Buffering, LARGEST, LayerCodecs, Prompt, PromptQueries};
use crate::seam::check_start;
use crate::{AttendCx, Bias, CacheError, Geometry, KeysCoded, LayerCache, Padding, Reach, Rotary};

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// The cache of one layer: for each sequence, coded keys and values with exact tokens before and after them.
///
/// Left padding is not stored and not read. It may even contain NaN.
pub struct CodedCache {
    layer: usize,
    settings: Settings,
    codecs: LayerCodecs,
    len: usize,
    sequences: Vec<Sequence>,
}

struct Sequence {
    /// Padding tokens in front of the sequence.
    padding: usize,
    keys: Stream,
    values: Stream,
    /// The centre that was subtracted from all keys before position embedding, `(Hkv, D)`. Empty if there is none.
    centre: Vec<f32>,
}

/// New tokens of a call, without padding.
struct New {
    /// `(Hkv, n, D)` of each sequence, one sequence after the other.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// The padding and the number `n` of new tokens of each sequence.
    rows: Vec<(usize, usize)>,
    /// Tokens of the call, with padding.
    tokens: usize,
}

/// A sequence, its new keys and values, the number of new tokens, and the last queries of a prompt with their number.
type Work<'a> = (&'a mut Sequence, &'a mut [f32], &'a mut [f32], usize, Option<(&'a [f32], usize)>);

/// For each sequence, what its new tokens see of the keys and of the values.
type AllSeen = Vec<(Vec<Until>, Vec<Until>)>;

impl CodedCache {
    pub(super) fn new(layer: usize, settings: Settings, codecs: LayerCodecs) -> Self {
        Self { layer, settings, codecs, len: 0, sequences: Vec::new() }
    }

    /// Bytes of the cache of one layer with `batch` sequences, without the stores of the streams.
    pub(crate) fn bytes(batch: usize) -> usize {
        size_of::<Self>() + batch * size_of::<Sequence>()
    }

    /// Checks new tokens, and returns the elements that are not padding.
    fn read(&self, k: &Tensor, v: &Tensor, rotary: &Rotary, padding: Padding<'_>) -> Result<New, CacheError> {
        let padding_held = self.sequences.iter().map(|sequence| sequence.padding);
        let held = Held { layer: self.layer, geometry: self.settings.geometry, len: self.len, padding: padding_held };
        let rows = held.check(k, v, rotary, padding)?;
        let mut all = New { keys: Vec::new(), values: Vec::new(), rows, tokens: k.dim(2)? };
        all.keys = self.own(k, Kind::Key, &all)?;
        all.values = self.own(v, Kind::Value, &all)?;
        Ok(all)
    }

    /// The elements of `(B, Hkv, T, D)` that are not padding. An error if one of them is not finite.
    fn own(&self, x: &Tensor, kind: Kind, new: &New) -> Result<Vec<f32>, CacheError> {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        let mut all = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let head = new.tokens * d;
        if new.rows.iter().any(|&(_, n)| n < new.tokens) {
            let padded = all;
            all = Vec::with_capacity(padded.len());
            for (heads, &(_, n)) in padded.chunks_exact(kv_heads * head).zip(&new.rows) {
                heads.chunks_exact(head).for_each(|head| all.extend_from_slice(&head[(new.tokens - n) * d..]));
            }
        }
        let mut from = 0;
        for &(padding, n) in &new.rows {
            let own = &all[from..from + kv_heads * n * d];
            from += own.len();
            if let Some(at) = own.iter().position(|x| !x.is_finite()) {
                let token = self.len.max(padding) + at / d % n;
                return Err(CacheError::NotFinite { layer: self.layer, kind, token });
            }
        }
        all.iter_mut().for_each(|x| *x = x.clamp(-LARGEST, LARGEST));
        Ok(all)
    }

    /// Codes and stores new tokens. For a prompt, `queries` `(B, H, W, D)` are those of its last tokens. Returns what
    /// the new tokens see. It cannot fail.
    fn take(
        &mut self,
        mut new: New,
        prompt: bool,
        tables: Option<RotaryTables<'_>>,
        queries: Option<(Vec<f32>, usize)>,
    ) -> AllSeen {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        let (window, centred) = (self.settings.window, self.settings.centred);
        if self.sequences.is_empty() {
            let streams = || match &self.codecs {
                LayerCodecs::Apart(keys, values) => {
                    let stream = |codec: &dyn super::Codec| Stream::of(codec, window, kv_heads, d);
                    (stream(keys.as_ref()), stream(values.as_ref()))
                }
                LayerCodecs::Together(codec) => {
                    let (keys, values) = codec.empty();
                    let [of_keys, of_values] = codec.centres();
                    let stream =
                        |coded, centre| Stream::new(coded, Buffering::None, window, kv_heads, d).centred(centre);
                    (stream(keys, of_keys), stream(values, of_values))
                }
            };
            self.sequences.reserve_exact(new.rows.len());
            for &(padding, _) in &new.rows {
                let (keys, values) = streams();
                self.sequences.push(Sequence { padding, keys, values, centre: Vec::new() });
            }
        }
        let first = self.len == 0;
        let rotate = tables.filter(|_| self.settings.keys_coded == KeysCoded::AfterRope);
        let each = self.codecs.each();
        let shown = [0, 1].map(|i| prompt || (first && each.is_some_and(|codecs| codecs[i].first_call_is_prompt())));
        let (mut all_keys, mut all_values) = (&mut new.keys[..], &mut new.values[..]);
        let mut work = Vec::with_capacity(new.rows.len());
        for (row, (sequence, &(_, n))) in self.sequences.iter_mut().zip(&new.rows).enumerate() {
            let (keys, values);
            (keys, all_keys) = all_keys.split_at_mut(kv_heads * n * d);
            (values, all_values) = all_values.split_at_mut(kv_heads * n * d);
            let own = queries.as_ref().map(|(all, tokens)| {
                let each = all.len() / new.rows.len();
                (&all[row * each..(row + 1) * each], *tokens)
            });
            work.push((sequence, keys, values, n, own));
        }
        let take = |(sequence, keys, values, n, queries): Work<'_>| {
            let Sequence { keys: of_keys, values: of_values, centre, .. } = sequence;
            if n == 0 {
                return (Vec::new(), Vec::new());
            }
            if centred {
                if of_keys.held() == 0 {
                    // Without a prompt, the mean is the first token's key. So the result does not depend on how the
                    // tokens are divided into calls.
                    let first = if prompt { n } else { 1 };
                    *centre = keys.chunks_exact(n * d).flat_map(|head| mean(&head[..first * d], d)).collect();
                }
                take_off(keys, n, centre, d);
            }
            if let Some(tables) = rotate {
                keys.chunks_exact_mut(n * d).for_each(|head| tables.rotate(head, d, of_keys.held()));
            }
            if shown.contains(&true) {
                let queries = queries.map(|(rows, tokens)| last(rows, tokens.min(n), tokens, d));
                let rotated = queries.map(|(mut rows, tokens)| {
                    if let Some(tables) = rotate {
                        rows.chunks_exact_mut(tokens * d).for_each(|head| tables.rotate(head, d, n - tokens));
                    }
                    (rows, tokens)
                });
                let queries = rotated.as_ref().map(|(rows, tokens)| PromptQueries { tokens: *tokens, rows });
                let prompt = Prompt { tokens: n, keys, values, queries };
                let streams = [&mut *of_keys, &mut *of_values].into_iter().zip(shown);
                streams.filter(|(_, shown)| *shown).for_each(|(stream, _)| stream.see_prompt(&prompt));
            }
            if each.is_none() {
                let keys = of_keys.take(keys, prompt);
                return (keys, of_values.take(values, prompt));
            }
            rayon::join(|| of_keys.take(keys, prompt), || of_values.take(values, prompt))
        };
        let seen = work.into_par_iter().map(take).collect();
        self.len += new.tokens;
        seen
    }

    fn trim(&mut self, reach: Reach) {
        for sequence in &mut self.sequences {
            sequence.keys.trim(reach);
            sequence.values.trim(reach);
        }
    }

    /// Attention of unrotated queries `(B, H, T, D)`. The new tokens are already stored.
    fn attend_stored(
        &self,
        queries: &mut [f32],
        group: usize,
        seen: &AllSeen,
        cx: &AttendCx<'_>,
        tables: Option<RotaryTables<'_>>,
    ) -> Vec<f32> {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        let tokens = self.len - cx.start;
        let each = group * tokens * d;
        let scale = cx.scale as f32;
        queries.par_chunks_exact_mut(each).enumerate().for_each(|(stream, queries)| {
            let row = stream / kv_heads;
            let new = seen[row].0.len();
            for queries in queries.chunks_exact_mut(tokens * d) {
                let queries = &mut queries[(tokens - new) * d..];
                queries.iter_mut().for_each(|x| *x *= scale);
                if let Some(tables) = tables {
                    tables.rotate(queries, d, self.sequences[row].keys.held() - new);
                }
            }
        });
        let call = |stream: usize| self.call(stream, group, seen, cx, tables);
        if self.codecs.in_parts() && group * tokens <= PART_ROWS && seen.iter().all(|(keys, _)| keys.len() == tokens) {
            return self.attend_in_parts(queries, each, call);
        }
        let mut out = vec![0f32; queries.len()];
        let calls = queries.par_chunks_exact(each).zip(out.par_chunks_exact_mut(each)).enumerate();
        calls.for_each(|(stream, (queries, out))| {
            let new = seen[stream / kv_heads].0.len();
            if new == 0 {
                return;
            }
            // The buffers are taken out of the thread-local, so a codec may use threads of its own.
            let mut scratch = SCRATCH.take();
            if new == tokens {
                call(stream).attend(queries, out, &mut scratch);
            } else {
                let (text, _) = last(queries, new, tokens, d);
                let mut attended = vec![0f32; group * new * d];
                call(stream).attend(&text, &mut attended, &mut scratch);
                for (out, attended) in out.chunks_exact_mut(tokens * d).zip(attended.chunks_exact(new * d)) {
                    out[(tokens - new) * d..].copy_from_slice(attended);
                }
            }
            SCRATCH.set(scratch);
        });
        out
    }

    /// Attention of few queries over many tokens. The tokens are divided into parts, and the parts among all threads.
    /// One thread works on several heads of a part, so what these heads share is unpacked only once.
    fn attend_in_parts<'c>(
        &self,
        queries: &[f32],
        each: usize,
        call: impl Fn(usize) -> HeadCall<'c> + Sync,
    ) -> Vec<f32> {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        // Rows of one sequence, over all its heads.
        let (rows, all) = (each / d, kv_heads * each);
        let of = |(row, sequence): (usize, &Sequence)| {
            parts(sequence.keys.held(), sequence.keys.sinks()).map(move |part| (row, part)).collect::<Vec<_>>()
        };
        let parts: Vec<(usize, Range<usize>)> = self.sequences.iter().enumerate().flat_map(of).collect();
        let mut weighted = vec![0f32; parts.len() * all];
        let mut softmax = vec![Softmax::default(); parts.len() * kv_heads * rows];
        // How many heads of a part one thread takes: all of them, if that leaves work for every thread. No result
        // depends on it.
        let threads = rayon::current_num_threads();
        let mut shares = (1..=kv_heads).rev().filter(|heads| kv_heads.is_multiple_of(*heads));
        let heads = shares.find(|heads| parts.len() * (kv_heads / heads) >= threads).unwrap_or(1);
        let work = weighted.par_chunks_exact_mut(heads * each).zip(softmax.par_chunks_exact_mut(heads * rows));
        work.enumerate().for_each(|(task, (weighted, softmax))| {
            let ((row, part), first) = (&parts[task * heads / kv_heads], task * heads % kv_heads);
            let mut scratch = SCRATCH.take();
            let queries = queries[row * all + first * each..][..heads * each].chunks_exact(each);
            let to = weighted.chunks_exact_mut(each).zip(softmax.chunks_exact_mut(rows));
            for (head, ((weighted, softmax), queries)) in to.zip(queries).enumerate() {
                let to = Part { softmax, weighted };
                call(row * kv_heads + first + head).attend_part(queries, part.clone(), &mut scratch, to);
            }
            SCRATCH.set(scratch);
        });
        let mut out = vec![0f32; queries.len()];
        let mut first = 0;
        for (out, own) in out.chunks_exact_mut(all).zip(parts.chunk_by(|a, b| a.0 == b.0)) {
            let weighted = &mut weighted[first * all..(first + own.len()) * all];
            let softmax = &softmax[first * kv_heads * rows..(first + own.len()) * kv_heads * rows];
            first += own.len();
            (0..kv_heads * rows).for_each(|row| join(softmax, weighted, (row, kv_heads * rows), d));
            out.copy_from_slice(&weighted[..all]);
        }
        out
    }

    /// The data that one key-value head of one sequence attends over.
    fn call<'c>(
        &'c self,
        stream: usize,
        group: usize,
        seen: &'c AllSeen,
        cx: &'c AttendCx<'_>,
        tables: Option<RotaryTables<'c>>,
    ) -> HeadCall<'c> {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        let (row, head) = (stream / kv_heads, stream % kv_heads);
        let (sequence, (keys_until, values_until)) = (&self.sequences[row], &seen[row]);
        let slopes = match cx.pattern.bias {
            Bias::None => None,
            Bias::Alibi(alibi) => Some(&alibi.slopes()[head * group..(head + 1) * group]),
        };
        HeadCall {
            keys: Seen { stream: &sequence.keys, until: keys_until },
            values: Seen { stream: &sequence.values, until: values_until },
            head,
            head_dim: d,
            tables: tables.filter(|_| self.settings.keys_coded == KeysCoded::BeforeRope),
            on_codes: self.settings.on_codes,
            centre: sequence.centre.get(head * d..(head + 1) * d).map(|mean| Centre { mean, tables }),
            start: sequence.keys.held() - keys_until.len(),
            reach: cx.pattern.reach,
            slopes,
        }
    }

    /// The same as [`LayerCache::absorb_padded`], but with the last queries of the prompt, `(B, H, W, D)` before
    /// position embedding, for methods that [want to see them](super::Codec::sees_queries).
    ///
    /// # Errors
    /// The errors of [`LayerCache::absorb`].
    pub fn absorb_prompt(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        queries: Option<&Tensor>,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        check_start(0, self.len)?;
        let new = self.read(k, v, rotary, padding)?;
        let queries = match queries {
            None => None,
            Some(q) => {
                let (b, h, tokens, d) = q.dims4()?;
                let Geometry { kv_heads, head_dim, .. } = self.settings.geometry;
                if (b, d) != (new.rows.len(), head_dim) || !h.is_multiple_of(kv_heads) || tokens > new.tokens {
                    let expected = format!("heads in groups, the last queries of keys {:?}", k.dims());
                    return Err(CacheError::Shape { tensor: "queries", expected, found: q.dims().to_vec() });
                }
                let rows = q.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
                (tokens > 0).then_some((rows, tokens))
            }
        };
        with_tables(rotary, |tables| {
            self.take(new, true, tables, queries);
            self.trim(rotary.reach());
        })
    }
}

/// The last `wanted` rows of each head of `(heads, tokens, D)`, and their number per head.
fn last(rows: &[f32], wanted: usize, tokens: usize, d: usize) -> (Vec<f32>, usize) {
    let heads = rows.chunks_exact(tokens * d);
    (heads.flat_map(|head| &head[(tokens - wanted) * d..]).copied().collect(), wanted)
}

/// The mean of rows `(n, D)`.
fn mean(rows: &[f32], d: usize) -> Vec<f32> {
    let mut sums = vec![0f64; d];
    for row in rows.chunks_exact(d) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let n = (rows.len() / d) as f64;
    sums.into_iter().map(|sum| (sum / n) as f32).collect()
}

/// Calls `f` with the rotary tables, or with `None` for a model without rotation.
fn with_tables<R>(rotary: &Rotary, f: impl FnOnce(Option<RotaryTables<'_>>) -> R) -> Result<R, CacheError> {
    if rotary.rotates() { rotary.with_tables(|cos, sin| f(Some(RotaryTables { cos, sin }))) } else { Ok(f(None)) }
}

impl LayerCache for CodedCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let kv_heads = self.settings.geometry.kv_heads;
        let (b, h, t, d) = check_queries(q, k, v, kv_heads, self.len, cx)?;
        let new = self.read(k, v, cx.rotary, cx.pattern.padding)?;
        let mut queries = q.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let out = with_tables(cx.rotary, |tables| {
            let seen = self.take(new, false, tables, None);
            let out = self.attend_stored(&mut queries, h / kv_heads, &seen, cx, tables);
            self.trim(cx.pattern.reach);
            out
        })?;
        Ok(Tensor::from_vec(out, (b, h, t, d), q.device())?.to_dtype(q.dtype())?)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.absorb_prompt(k, v, None, rotary, Padding::None)
    }

    fn absorb_padded(
        &mut self,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
        padding: Padding<'_>,
    ) -> Result<(), CacheError> {
        self.absorb_prompt(k, v, None, rotary, padding)
    }

    fn len(&self) -> usize {
        self.len
    }

    fn scored_keys(&self, rotary: &Rotary) -> Result<Option<Tensor>, CacheError> {
        let Geometry { kv_heads, head_dim: d, .. } = self.settings.geometry;
        let n = self.len;
        if n == 0 || !self.sequences.iter().all(|sequence| sequence.padding == 0 && sequence.keys.is_whole()) {
            return Ok(None);
        }
        // Refuses more tokens than there are positions.
        rotary.tables(0, n)?;
        let mut all = vec![0f32; self.sequences.len() * kv_heads * n * d];
        with_tables(rotary, |tables| {
            let rotate = |rows: &mut [f32]| {
                if let Some(tables) = tables {
                    tables.rotate(rows, d, 0);
                }
            };
            for (stream, keys) in all.chunks_exact_mut(n * d).enumerate() {
                let (sequence, head) = (&self.sequences[stream / kv_heads], stream % kv_heads);
                sequence.keys.fetch_all(head, keys);
                if self.settings.keys_coded == KeysCoded::BeforeRope {
                    rotate(&mut *keys);
                }
                if let Some(mean) = sequence.centre.get(head * d..(head + 1) * d) {
                    let mut centre = mean.repeat(n);
                    rotate(&mut centre);
                    keys.iter_mut().zip(&centre).for_each(|(key, mean)| *key += mean);
                }
            }
        })?;
        Ok(Some(Tensor::from_vec(all, (self.sequences.len(), kv_heads, n, d), &Device::Cpu)?))
    }

    fn footprint(&self) -> Footprint {
        let centres: usize = self.sequences.iter().map(|s| s.centre.capacity() * size_of::<f32>()).sum();
        let tables = size_of::<Self>() + self.sequences.capacity() * size_of::<Sequence>() + centres;
        self.sequences.iter().flat_map(|s| [&s.keys, &s.values]).map(Stream::footprint).sum::<Footprint>()
            + Footprint { tables, ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.sequences = Vec::new();
        self.len = 0;
    }
}
