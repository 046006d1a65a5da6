//! How much attention keys and values get: weights for the trainer (beyond the paper).
//!
//! With attention `a_ij` of query `i` on token `j`, an error `e` of value `j` moves the output of
//! query `i` by `a_ij e`, so the squared errors of value `j` add up with the factor `Σ_i a_ij²`. An
//! error of key `j` moves the score by `q_i · e / √D` and the output by at most that, times `a_ij`,
//! times how far the values lie apart. With the queries' second moments, the factor for keys is
//! `Σ_i a_ij² |q_i|²`. The weights are means over the queries that see the token, summed over the
//! query heads that share the key-value head.
//!
//! Only every fourth query counts, which is enough for a mean and costs a tenth of the prefill. The
//! first token, if most heads attend to it, would carry nearly all of the weight. So square roots are
//! recorded, scaled to mean 1 over the sequence and clipped. Sliding windows and linear biases count as
//! the model has them.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use candle_core::{D, DType, Tensor};
use kvcsr_cache::{AttendCx, Bias, CacheError, DenseCache, LayerCache, Reach, Rotary};
use kvcsr_codec::Footprint;
use kvcsr_model::{Decoder, Logits};
use rayon::prelude::*;

/// Largest weight; the mean is 1.
const LARGEST: f64 = 8.0;
/// One query of this many counts: its attention to each token is added.
const STRIDE: usize = 4;

/// The keys and values of one layer over one sequence, and the attention that they get.
pub struct Observed {
    /// Keys before position embedding and values, `(1, Hkv, T, D)`.
    pub keys: Tensor,
    pub values: Tensor,
    heads: usize,
    /// How far back the layer's tokens see.
    reach: Reach,
    /// `Σ_i a_ij²` and `Σ_i a_ij² |q_i|²` by key-value head and token; empty if they are not asked for.
    sums: [Vec<f64>; 2],
}

impl Observed {
    /// Prefills `ids` exactly, `chunk` tokens at a time. Returns one value per layer.
    pub fn prefill(decoder: &Decoder, ids: &[u32], chunk: usize, weigh: bool) -> Result<Vec<Self>> {
        let logs: Vec<Arc<Mutex<Log>>> = (0..decoder.geometry().layers).map(|_| Arc::default()).collect();
        let mut caches: Vec<Box<dyn LayerCache>> = logs
            .iter()
            .map(|log| {
                let inner = DenseCache::new(DType::F32);
                Box::new(Observing { inner, weigh, log: log.clone() }) as Box<dyn LayerCache>
            })
            .collect();
        for piece in ids.chunks(chunk.max(1)) {
            decoder.forward(&decoder.row(piece)?, &mut caches, Logits::None)?;
        }
        drop(caches);
        logs.into_iter()
            .map(|log| {
                let log = Arc::into_inner(log).and_then(|m| m.into_inner().ok()).context("the caches are gone")?;
                let heads = log.keys.first().context("no tokens")?.dim(1)?;
                Ok(Self {
                    keys: Tensor::cat(&log.keys, 2)?,
                    values: Tensor::cat(&log.values, 2)?,
                    heads,
                    reach: log.reach,
                    sums: log.sums,
                })
            })
            .collect()
    }

    /// Weights of keys and of values, `(T, Hkv)` each.
    pub fn weights(&self) -> [Vec<f32>; 2] {
        let [of_values, of_keys] = &self.sums;
        [weights(of_keys, self.heads, self.reach), weights(of_values, self.heads, self.reach)]
    }
}

/// Turns `(Hkv, T)` sums over queries into `(T, Hkv)` weights of mean at most 1. A token that no query that
/// counts sees, such as those after the last of these queries, gets the weight of the token before it.
fn weights(sums: &[f64], heads: usize, reach: Reach) -> Vec<f32> {
    let tokens = sums.len() / heads.max(1);
    let mut weights = vec![0f64; sums.len()];
    for token in 0..tokens {
        // The number of queries at positions 3, 7, 11, .. that see `token`. A token is seen from its own position and those
        // after it, as many as a query sees tokens.
        let queries = (token + reach.held(tokens - token)) / STRIDE - token / STRIDE;
        for head in 0..heads {
            weights[token * heads + head] = match (queries, token) {
                (0, 0) => 1.0,
                (0, _) => weights[(token - 1) * heads + head],
                _ => (sums[head * tokens + token] / queries as f64).sqrt(),
            };
        }
    }
    let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
    weights.iter_mut().for_each(|w| *w = if mean > 0.0 { (*w / mean).min(LARGEST) } else { 1.0 });
    weights.into_iter().map(|w| w as f32).collect()
}

#[derive(Default)]
struct Log {
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    /// Keys after position embedding, `(1, Hkv, T, D)`.
    rotated: Vec<Tensor>,
    reach: Reach,
    sums: [Vec<f64>; 2],
}

/// A dense cache that logs the keys and values that it gets.
struct Observing {
    inner: DenseCache,
    weigh: bool,
    log: Arc<Mutex<Log>>,
}

impl LayerCache for Observing {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        let out = self.inner.attend(q, k, v, cx)?;
        // Only this thread holds the lock; a poisoned one still holds whole tensors.
        let mut log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        log.keys.push(k.clone());
        log.values.push(v.clone());
        log.reach = cx.pattern.reach;
        if self.weigh {
            log.rotated.push(cx.rotary.apply(k, cx.start)?);
            add_attention(&mut log, q, cx)?;
        }
        Ok(out)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.inner.absorb(k, v, rotary)
    }

    fn len(&self) -> usize {
        self.inner.len()
    }

    fn footprint(&self) -> Footprint {
        self.inner.footprint()
    }

    fn clear(&mut self) {
        self.inner.clear();
    }
}

/// Adds the squared attention of the new queries, `(1, H, T, D)`, to every token so far. Only the
/// queries at every [`STRIDE`]th position count.
fn add_attention(log: &mut Log, q: &Tensor, cx: &AttendCx<'_>) -> Result<(), CacheError> {
    let (_, heads, new, _) = q.dims4()?;
    let keys = Tensor::cat(&log.rotated, 2)?;
    let (_, kv_heads, tokens, width) = keys.dims4()?;
    let shared = heads / kv_heads;
    let asked: Vec<u32> = (0..new as u32).filter(|at| counts(cx.start + *at as usize)).collect();
    let before = tokens - new;
    // (Hkv, tokens): room for the new tokens of each head.
    for sums in &mut log.sums {
        let old = std::mem::take(sums);
        sums.reserve(kv_heads * tokens);
        for head in 0..kv_heads {
            sums.extend_from_slice(old.get(head * before..(head + 1) * before).unwrap_or_default());
            sums.resize((head + 1) * tokens, 0.0);
        }
    }
    if asked.is_empty() {
        return Ok(());
    }
    let rows = shared * asked.len();
    let picked = Tensor::new(asked.as_slice(), q.device())?;
    let rotated = cx.rotary.apply(q, cx.start)?.index_select(&picked, 2)?.reshape((kv_heads, rows, width))?;
    let scores = (rotated.matmul(&keys.squeeze(0)?.transpose(1, 2)?.contiguous()?)? * cx.scale)?;
    let scores: Vec<f32> = scores.flatten_all()?.to_vec1()?;
    let moments: Vec<f32> = q.sqr()?.sum(D::Minus1)?.index_select(&picked, 2)?.flatten_all()?.to_vec1()?;
    let (start, reach) = (cx.start, cx.pattern.reach);
    let slopes = match cx.pattern.bias {
        Bias::None => vec![0.0; heads],
        Bias::Alibi(alibi) => alibi.slopes().to_vec(),
    };
    let [plain, weighted] = &mut log.sums;
    scores
        .par_chunks(rows * tokens)
        .zip(moments.par_chunks(rows))
        .zip(slopes.par_chunks(shared))
        .zip(plain.par_chunks_mut(tokens).zip(weighted.par_chunks_mut(tokens)))
        .for_each(|(((scores, moments), slopes), (plain, weighted))| {
            let mut room = vec![0f32; tokens];
            for (row, (scores, &moment)) in scores.chunks_exact(tokens).zip(moments).enumerate() {
                let query = start + asked[row % asked.len()] as usize;
                let (first, slope) = (reach.first_seen(query), slopes[row / asked.len()]);
                let attention = &mut room[first..=query];
                for (at, (a, score)) in (first..).zip(attention.iter_mut().zip(&scores[first..])) {
                    *a = score - slope * (query - at) as f32;
                }
                let largest = attention.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                attention.iter_mut().for_each(|a| *a = (*a - largest).exp());
                let total: f32 = attention.iter().sum();
                for (at, share) in (first..).zip(attention.iter().map(|a| f64::from(a / total))) {
                    plain[at] += share * share;
                    weighted[at] += share * share * f64::from(moment);
                }
            }
        });
    Ok(())
}

/// Whether the query at `position` counts.
fn counts(position: usize) -> bool {
    position % STRIDE == STRIDE - 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;
    use kvcsr_cache::{Alibi, Pattern};

    use super::*;

    #[test]
    fn weights_have_mean_one_are_clipped_and_change_the_layout() {
        // Two heads, six tokens. One query counts, at position 3. It does not see the last two tokens.
        let found = weights(&[1.0, 4.0, 1.0, 4.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0, 0.0, 0.0], 2, Reach::Full);
        let expected = [1.0, 3.0, 2.0, 3.0, 1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 2.0, 3.0].map(|w: f32| w / (28.0 / 12.0));
        found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{found:?}"));
        // Tokens 0 to 3 are seen by two queries, 4 to 7 by one.
        let found = weights(&[2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0], 1, Reach::Full);
        assert_eq!(found, [1.0; 8]);
        let mut one = vec![0.0; 1000];
        one[0] = 1.0;
        assert_eq!(weights(&one, 1, Reach::Full)[0], LARGEST as f32);
        assert_eq!(weights(&[0.0; 8], 2, Reach::Full), [1.0; 8]);
        // With a window of two tokens, the query at 3 sees tokens 2 and 3, that at 7 tokens 6 and 7.
        let found = weights(&[0.0, 0.0, 4.0, 1.0, 0.0, 0.0, 9.0, 1.0], 1, Reach::Sliding(2));
        let expected = [1.0, 1.0, 2.0, 1.0, 1.0, 1.0, 3.0, 1.0].map(|w: f32| w / (11.0 / 8.0));
        found.iter().zip(expected).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{found:?}"));
    }

    #[test]
    fn squared_attention_adds_up_over_calls_and_heads() {
        let device = Device::Cpu;
        let rotary = Rotary::identity(16);
        let random = |h: usize, t: usize, phase: f32| {
            let values: Vec<f32> = (0..h * t * 4).map(|i| ((i as f32 + phase) * 1.7).sin()).collect();
            Tensor::from_vec(values, (1, h, t, 4), &device).unwrap()
        };
        let (q, k) = (random(4, 8, 0.3), random(2, 8, 0.9));
        let sums = |cuts: &[usize], pattern: Pattern<'_>| {
            let mut log = Log::default();
            let mut start = 0;
            for &length in cuts {
                let cx = AttendCx { start, rotary: &rotary, scale: 0.5, pattern };
                log.rotated.push(k.narrow(2, start, length).unwrap());
                add_attention(&mut log, &q.narrow(2, start, length).unwrap().contiguous().unwrap(), &cx).unwrap();
                start += length;
            }
            log.sums
        };
        let whole = sums(&[8], Pattern::default());
        for (a, b) in whole.iter().flatten().zip(sums(&[2, 3, 3], Pattern::default()).iter().flatten()) {
            assert!((a - b).abs() < 1e-6);
        }
        // The last token is seen by the last query alone: its two heads' squared attention, by hand.
        let rows = |t: &Tensor| t.squeeze(0).unwrap().to_vec3::<f32>().unwrap();
        let (qs, ks) = (rows(&q), rows(&k));
        let (mut plain, mut weighted) = (0.0, 0.0);
        for head in &qs[2..] {
            let score = |t: usize| (0..4).map(|c| f64::from(head[7][c] * ks[1][t][c])).sum::<f64>() * 0.5;
            let total: f64 = (0..8).map(|t| score(t).exp()).sum();
            let share = (score(7).exp() / total).powi(2);
            plain += share;
            weighted += share * head[7].iter().map(|&c| f64::from(c * c)).sum::<f64>();
        }
        assert!((whole[0][15] - plain).abs() < 1e-6, "{} {plain}", whole[0][15]);
        assert!((whole[1][15] - weighted).abs() < 1e-6, "{} {weighted}", whole[1][15]);

        // By definition, with what a layer may add: the queries at positions 3 and 7 count.
        let alibi = Alibi::new(4);
        for (reach, bias) in [
            (Reach::Sliding(3), Bias::None),
            (Reach::Full, Bias::Alibi(&alibi)),
            (Reach::Sliding(5), Bias::Alibi(&alibi)),
        ] {
            let mut expected = [vec![0f64; 16], vec![0f64; 16]];
            for (head, query) in (0..4usize).flat_map(|head| [3usize, 7].map(|query| (head, query))) {
                let slope = if bias == Bias::None { 0.0 } else { f64::from(alibi.slopes()[head]) };
                let score = |t: usize| {
                    let dot: f64 = (0..4).map(|c| f64::from(qs[head][query][c] * ks[head / 2][t][c])).sum();
                    (0.5 * dot - slope * (query - t) as f64).exp()
                };
                let seen = reach.first_seen(query)..query + 1;
                let total: f64 = seen.clone().map(score).sum();
                let moment: f64 = qs[head][query].iter().map(|&c| f64::from(c * c)).sum();
                for t in seen {
                    let share = (score(t) / total).powi(2);
                    expected[0][head / 2 * 8 + t] += share;
                    expected[1][head / 2 * 8 + t] += share * moment;
                }
            }
            let found = sums(&[2, 3, 3], Pattern { reach, bias, ..Pattern::default() });
            for (a, b) in found.iter().flatten().zip(expected.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{reach:?}, {bias:?}: {a} {b}");
            }
        }
    }
}
