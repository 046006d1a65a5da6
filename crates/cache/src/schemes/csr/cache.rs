//! One layer's cache of sparse codes: what it keeps, and how tokens come in.

use std::ops::Range;

use candle_core::{DType, Tensor};
use half::f16;
use kvcsr_codec::{Footprint, Kind};

use super::exact::{ExactTokens, Pair};
use super::options::{AttentionPath, CsrOptions, OnlinePart, Prefill};
use super::streams::{Coder, Fresh, Streams};
use crate::seam::{check_kv, check_start};
use crate::{AttendCx, Bias, CacheError, LayerCache, Padding, Reach, Rotary, Window};

/// Query rows of one head attended together on codes. One token is always attended to on codes; more
/// of them only while they are one block: beyond it, restoring everything once is faster.
pub(super) const QUERY_ROWS: usize = 32;

/// One layer's cache of sparse codes.
///
/// Every sequence of a batch is kept as it would be alone: its codes, online atoms, sinks and recent
/// tokens are those of its own text, and padding in front of it is not kept at all.
pub struct CsrCache {
    layer: usize,
    pub(super) len: usize,
    /// Per sequence, how many of its first tokens are padding.
    pub(super) padding: Vec<usize>,
    pub(super) keys: Streams,
    pub(super) values: Streams,
    window: Window,
    /// Per sequence, if there is a window.
    pub(super) exact: Vec<ExactTokens>,
    online: Option<OnlinePart>,
    attention: AttentionPath,
    /// Whether keys are kept after position embedding.
    pub(super) rope: bool,
}

/// The new tokens of each sequence, without padding.
struct Arrivals {
    heads: usize,
    head_dim: usize,
    /// Per sequence: own tokens held before, and new ones.
    tokens: Vec<(usize, usize)>,
}

impl Arrivals {
    /// Where each sequence's vectors lie, `(Hkv, new, D)` one after the other.
    fn parts(&self) -> Vec<Range<usize>> {
        self.cut(self.tokens.iter().map(|&(_, new)| new))
    }

    /// As [`Arrivals::parts`] for other numbers of tokens.
    fn cut(&self, tokens: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
        let mut at = 0;
        let part = |tokens| {
            let start = at;
            at += self.heads * tokens * self.head_dim;
            start..at
        };
        tokens.map(part).collect()
    }

    /// The sequences' own vectors of `x` `(B, Hkv, T, D)`, as f32.
    fn own(&self, x: &Tensor) -> Result<Vec<f32>, CacheError> {
        let tokens = x.dim(2)?;
        let all = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if self.tokens.iter().all(|&(_, new)| new == tokens) {
            return Ok(all);
        }
        let head = tokens * self.head_dim;
        let mut own = Vec::with_capacity(all.len());
        for (sequence, &(_, new)) in all.chunks_exact(self.heads * head).zip(&self.tokens) {
            for head in sequence.chunks_exact(head) {
                own.extend_from_slice(&head[(tokens - new) * self.head_dim..]);
            }
        }
        Ok(own)
    }
}

impl CsrCache {
    pub(super) fn new(layer: usize, keys: Coder, values: Coder, options: &CsrOptions) -> Self {
        Self {
            layer,
            len: 0,
            padding: Vec::new(),
            keys: Streams::new(keys, layer),
            values: Streams::new(values, layer),
            window: options.window,
            exact: Vec::new(),
            online: options.online,
            attention: options.attention,
            rope: options.rope,
        }
    }

    pub(super) fn head_dim(&self) -> usize {
        self.keys.coder.head_dim()
    }

    /// True where tokens are kept exactly.
    pub(super) fn windowed(&self) -> bool {
        self.window != Window::default()
    }

    /// Key-value heads of a sequence.
    pub(super) fn heads(&self) -> usize {
        self.keys.count() / self.padding.len().max(1)
    }

    /// Codes and keeps new tokens, after filling the online part from them if they are the prompt;
    /// on an error nothing is kept. Keys come as they are to be coded.
    fn append(&mut self, k: &Tensor, v: &Tensor, padding: Padding<'_>, prompt: bool) -> Result<(), CacheError> {
        let held = (self.len > 0).then(|| (self.padding.len(), self.heads()));
        let (b, h, t, d) = check_kv(k, v, held, Some(self.head_dim()))?;
        if b * h * t == 0 {
            let expected = "(B, Hkv, T, D) with at least one sequence, head and token".into();
            return Err(CacheError::Shape { tensor: "keys", expected, found: k.dims().to_vec() });
        }
        let padding: Vec<usize> = (0..b).map(|row| padding.of(row)).collect();
        if self.len > 0 && padding != self.padding {
            return Err(CacheError::Padding { layer: self.layer, expected: self.padding.clone(), found: padding });
        }
        let tokens = padding.iter().map(|&n| (self.len.saturating_sub(n), t - n.saturating_sub(self.len).min(t)));
        let new = Arrivals { heads: h, head_dim: d, tokens: tokens.collect() };
        let (keys, values) = (new.own(k)?, new.own(v)?);
        self.check_finite(Kind::Key, &keys, &new, &padding)?;
        self.check_finite(Kind::Value, &values, &new, &padding)?;

        let parts = new.parts();
        let online = match self.online.filter(|_| prompt) {
            Some(part) => {
                Some((self.keys.fill(&part, &keys, &parts, h)?, self.values.fill(&part, &values, &parts, h)?))
            }
            None => None,
        };
        let (key_atoms, value_atoms) = match &online {
            Some((keys, values)) => (&keys[..], &values[..]),
            None => (self.keys.online(), self.values.online()),
        };
        let encode = |keys: &[f32], values: &[f32], parts: &[Range<usize>]| -> Result<(Fresh, Fresh), CacheError> {
            Ok((self.keys.encode(keys, parts, key_atoms)?, self.values.encode(values, parts, value_atoms)?))
        };
        if self.windowed() {
            let (keys, values) = (halves(&keys), halves(&values));
            let starting: Vec<ExactTokens> = match self.exact.is_empty() {
                true => (0..b).map(|_| ExactTokens::new(self.window, d)).collect(),
                false => Vec::new(),
            };
            let exact = if starting.is_empty() { &self.exact } else { &starting };
            let each = || exact.iter().zip(&new.tokens).zip(&parts);
            let leaving = |rows: &[f16], part: fn(&Pair) -> &[f16]| -> Vec<f32> {
                each().flat_map(|((e, &(held, _)), at)| e.leaving_rows(held, &rows[at.clone()], h, part)).collect()
            };
            let gone = new.cut(each().map(|((e, &(held, new)), _)| e.leaving(held, new)));
            let fresh = encode(&leaving(&keys, |p: &Pair| &p.keys), &leaving(&values, |p: &Pair| &p.values), &gone)?;
            self.keep(&fresh, &gone, h);
            if !starting.is_empty() {
                self.exact = starting;
            }
            for ((exact, &(held, _)), at) in self.exact.iter_mut().zip(&new.tokens).zip(&parts) {
                exact.keep(held, &keys[at.clone()], &values[at.clone()], h);
            }
        } else {
            let fresh = encode(&keys, &values, &parts)?;
            self.keep(&fresh, &parts, h);
        }
        if let Some((keys, values)) = online {
            self.keys.keep_online(keys);
            self.values.keep_online(values);
        }
        self.padding = padding;
        self.len += t;
        Ok(())
    }

    fn keep(&mut self, (keys, values): &(Fresh, Fresh), parts: &[Range<usize>], heads: usize) {
        self.keys.keep(keys, parts, heads);
        self.values.keep(values, parts, heads);
    }

    fn check_finite(&self, kind: Kind, rows: &[f32], new: &Arrivals, padding: &[usize]) -> Result<(), CacheError> {
        let Some(at) = rows.iter().position(|x| !x.is_finite()) else { return Ok(()) };
        let parts = new.parts();
        let sequence = parts.iter().position(|part| part.contains(&at)).unwrap_or(0);
        let (held, tokens) = new.tokens[sequence];
        let own = held + (at - parts[sequence].start) / self.head_dim() % tokens;
        Err(CacheError::NotFinite { layer: self.layer, kind, token: padding[sequence] + own })
    }

    /// Forgets exact tokens that have left the window and are coded.
    fn trim(&mut self) {
        for (exact, padding) in self.exact.iter_mut().zip(&self.padding) {
            exact.trim(self.len.saturating_sub(*padding));
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
        let q = cx.rotary.apply(q, cx.start)?;
        let prompt = self.is_empty() && self.online.is_some_and(|part| part.prefill == Prefill::Restored);
        if self.rope {
            self.append(&cx.rotary.apply(k, cx.start)?, v, cx.pattern.padding, prompt)?;
        } else {
            self.append(k, v, cx.pattern.padding, prompt)?;
        }
        let tokens = q.dim(2)?;
        let few = self.windowed() || tokens == 1 || tokens * group <= QUERY_ROWS;
        // On codes, attention is causal and nothing else; what a pattern adds or hides is left to the other path.
        let plain = cx.pattern.reach == Reach::Full && cx.pattern.bias == Bias::None;
        let here = q.dtype() == DType::F32 && q.device().is_cpu();
        let on_codes = self.attention == AttentionPath::Codes && few && plain && here;
        let out = if on_codes { self.attend_codes(&q, group, cx) } else { self.attend_restored(&q, cx) };
        self.trim();
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
        check_start(0, self.len)?;
        if self.rope {
            self.append(&rotary.apply(k, 0)?, v, padding, true)?;
        } else {
            self.append(k, v, padding, true)?;
        }
        self.trim();
        Ok(())
    }

    fn len(&self) -> usize {
        self.len
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>()
            + self.padding.capacity() * size_of::<usize>()
            + self.exact.capacity() * size_of::<ExactTokens>();
        self.keys.footprint()
            + self.values.footprint()
            + self.exact.iter().map(ExactTokens::footprint).sum()
            + Footprint { tables, ..Footprint::default() }
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.values.clear();
        self.exact = Vec::new();
        self.padding = Vec::new();
        self.len = 0;
    }
}
