//! `snapkv`: of a prompt, it keeps the tokens that the prompt's last queries attend to (Li et al., NeurIPS 2024).
//!
//! When a prompt has been read, the scheme scores each token before the last `window` tokens. The score is the sum of
//! its attention weights, over the last `window` queries and over the query heads of a key-value head. The softmax of
//! each query runs over the whole prompt. The scores are then smoothed by the mean over `kernel` neighbours, so that a
//! chosen token keeps its surroundings. The `budget - window` tokens with the largest scores stay, and the window
//! itself stays too.
//!
//! In a layer with a sliding window, the queries see only that window, and the choice is among the tokens that the next
//! token sees. All tokens after the prompt are kept. Without the prompt's queries, for example when tokens come one by
//! one, nothing is deleted.

use candle_core::{DType, Tensor};
use kvcsr_codec::BitsPerChannel;

use super::cache::{EvictingCache, Keep};
use crate::entry::{Entry, KeysCoded, Parameter};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::snapshot::{LastQueries, OBSERVED};
use crate::{CacheError, LayerCache, Padding, Rotary, Scheme};

/// `snapkv`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "snapkv",
    examples: &["snapkv", "snapkv(budget=256)", "snapkv(budget=40,window=8,kernel=3)"],
    summary: "A control: of a prompt, the tokens that its last queries attend to most, in f16; the others deleted",
    citation: "Li et al., SnapKV: LLM Knows What You are Looking for Before Generation, NeurIPS 2024",
    keys_coded: KeysCoded::AfterRope,
    parameters: &[
        Parameter { name: "budget", default: "1024", meaning: "tokens of the prompt that a head keeps, in f16" },
        Parameter {
            name: "window",
            default: "64",
            meaning: "last tokens of the prompt, which choose and are kept; at most 64",
        },
        Parameter { name: "kernel", default: "5", meaning: "neighbours over which sums are smoothed; odd" },
    ],
    prefill_as_decoded: true,
}];

fn read(name: &SchemeName<'_>) -> Read {
    if name.head != "snapkv" {
        return Ok(None);
    }
    name.no_artefacts()?;
    name.arguments.only(&["budget", "window", "kernel"])?;
    let budget = name.arguments.tokens("budget", 1024)?;
    let choice =
        Choice { budget, window: name.arguments.tokens("window", 64)?, kernel: name.arguments.tokens("kernel", 5)? };
    if !(1..=OBSERVED).contains(&choice.window) || choice.budget <= choice.window {
        let Choice { budget, window, .. } = choice;
        return Err(format!("a window of 1 to {OBSERVED} tokens, and a larger budget: found {window} and {budget}"));
    }
    if choice.kernel.is_multiple_of(2) {
        return Err(format!("kernel: {} is not odd", choice.kernel));
    }
    if let Some(part) = name.parts.first() {
        return Err(format!("`snapkv` deletes tokens: `+{}` adds nothing", part.name));
    }
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |binding| {
        let head_dim = binding.geometry().head_dim;
        Ok(Box::new(SnapKv { name: binding.scheme.to_owned(), choice, head_dim }))
    })))
}

#[derive(Debug, Clone, Copy)]
struct Choice {
    budget: usize,
    window: usize,
    kernel: usize,
}

struct SnapKv {
    name: String,
    choice: Choice,
    head_dim: usize,
}

impl SnapKv {
    fn cache(&self, layer: usize) -> EvictingCache {
        EvictingCache::new(layer, Keep::All, self.head_dim)
    }
}

impl Scheme for SnapKv {
    fn name(&self) -> &str {
        &self.name
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(self.cache(layer)))
    }

    fn after_observed_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        queries: &LastQueries,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let mut cache = self.cache(layer);
        cache.hold(k, v, rotary, Padding::None)?;
        if k.dim(2)? > self.choice.budget {
            cache.select(&self.choice.places(k, queries, rotary)?);
        }
        cache.evict(rotary.reach());
        Ok(Box::new(cache))
    }

    /// For a token that is kept. How many tokens are kept depends on the prompt.
    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(16.0)
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}

impl Choice {
    /// The indices of the tokens that each head of each row keeps, as `(B · Hkv)` sorted lists. `k` is `(B, Hkv, T, D)`
    /// before position embedding.
    fn places(&self, k: &Tensor, queries: &LastQueries, rotary: &Rotary) -> Result<Vec<Vec<usize>>, CacheError> {
        let (b, kv_heads, tokens, d) = k.dims4()?;
        let observed = queries.queries.dim(2)?;
        let window = self.window.min(observed);
        let q = queries.queries.narrow(2, observed - window, window)?.contiguous()?;
        let group = q.dim(1)? / kv_heads;
        let q = (rotary.apply(&q, tokens - window)?.to_dtype(DType::F32)? * queries.scale)?;
        let k = rotary.apply(k, 0)?.to_dtype(DType::F32)?;
        let seen_from = |position| rotary.reach().first_seen(position).min(tokens - window);
        let mut places = Vec::with_capacity(b * kv_heads);
        for row in 0..b {
            for head in 0..kv_heads {
                let q = q.get(row)?.narrow(0, head * group, group)?.reshape((group * window, d))?;
                let scores = q.matmul(&k.get(row)?.get(head)?.t()?)?.to_vec2::<f32>()?;
                let mut mass = vec![0f64; tokens - window];
                for (i, scores) in scores.iter().enumerate() {
                    // The query sees the prompt up to its own position, and as far back as the layer sees.
                    let position = tokens - window + i % window;
                    let from = rotary.reach().first_seen(position);
                    let seen = &scores[from..=position];
                    let top = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                    let weights: Vec<f64> = seen.iter().map(|x| f64::from(x - top).exp()).collect();
                    let sum: f64 = weights.iter().sum();
                    mass.iter_mut().skip(from).zip(&weights).for_each(|(mass, weight)| *mass += weight / sum);
                }
                let from = seen_from(tokens);
                let mut kept = largest(&smoothed(&mass, self.kernel)[from..], self.budget - window);
                kept.iter_mut().for_each(|place| *place += from);
                kept.extend(tokens - window..tokens);
                places.push(kept);
            }
        }
        Ok(places)
    }
}

/// The mean over `kernel` neighbours. Positions beyond the ends count as 0.
fn smoothed(mass: &[f64], kernel: usize) -> Vec<f64> {
    let half = kernel / 2;
    let around = |at: usize| &mass[at.saturating_sub(half)..(at + half + 1).min(mass.len())];
    (0..mass.len()).map(|at| around(at).iter().sum::<f64>() / kernel as f64).collect()
}

/// The indices of the `count` largest numbers, sorted. Of equal numbers, the first ones are taken.
fn largest(x: &[f64], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..x.len()).collect();
    places.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
    places.truncate(count);
    places.sort_unstable();
    places
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;

    use super::*;
    use crate::conformance::{Inputs, Setting};
    use crate::{Geometry, PrefillSnapshot, SchemeContext, registry};

    const SETTING: Setting = Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 16 };

    /// With such a large base, only the first pair of channels rotates.
    fn rotary() -> Rotary {
        Rotary::new(16, 1e30, 512, &Device::Cpu).unwrap()
    }

    /// A prompt in which the last query of every head is a chosen key times eight.
    fn snapshot(tokens: usize, wanted: [usize; 2]) -> PrefillSnapshot {
        let x = Inputs::random(SETTING, tokens).unwrap();
        let query = |head: usize, at: usize| {
            let key = x.k.narrow(1, head, 1).unwrap().narrow(2, at, 1).unwrap();
            (key * 8.0).unwrap()
        };
        let rows: Vec<Tensor> = (0..4).map(|head| query(head / 2, wanted[head / 2])).collect();
        let queries = Tensor::cat(&rows, 1).unwrap();
        PrefillSnapshot {
            keys: vec![x.k.clone()],
            values: vec![x.v.clone()],
            queries: vec![LastQueries { queries, scale: 1.0 }],
            last_logits: Tensor::zeros((1, 4), DType::F32, &Device::Cpu).unwrap(),
        }
    }

    #[test]
    fn the_tokens_that_the_last_queries_attend_to_stay_and_each_head_has_its_own() {
        let (rotary, tokens, wanted) = (rotary(), 300, [40, 217]);
        let snapshot = snapshot(tokens, wanted);
        let choice = Choice { budget: 12, window: 1, kernel: 3 };
        let places = choice.places(&snapshot.keys[0], &snapshot.queries[0], &rotary).unwrap();
        assert_eq!(places.len(), 2);
        for (places, wanted) in places.iter().zip(wanted) {
            assert_eq!(places.len(), 12, "{places:?}");
            assert!(places.is_sorted() && places.contains(&(tokens - 1)), "{places:?}");
            assert!(places.contains(&wanted), "{wanted} is not among {places:?}");
        }
        assert_ne!(places[0], places[1]);
    }

    #[test]
    fn a_prompt_takes_its_budget_and_what_follows_is_kept() {
        let rotary = rotary();
        let cx = SchemeContext::new(Geometry { layers: 1, kv_heads: 2, head_dim: 16 });
        let scheme = registry::build("snapkv(budget=40,window=1)", &cx).unwrap();
        let bytes = |tokens: usize| {
            let snapshot = snapshot(tokens, [tokens - 9, tokens - 5]);
            let mut cache = snapshot.fork(scheme.as_ref(), &rotary).unwrap().remove(0);
            let before = cache.footprint().dense;
            let x = Inputs::random(SETTING, tokens + 7).unwrap();
            x.feed(cache.as_mut(), &rotary, Default::default(), tokens..tokens + 7).unwrap();
            assert_eq!(cache.len(), tokens + 7);
            (before, cache.footprint().dense)
        };
        // Two heads, keys and values, 16 channels of two bytes.
        let token = 2 * 2 * 16 * 2;
        assert_eq!(bytes(200), (40 * token, 47 * token));
        assert_eq!(bytes(300), (40 * token, 47 * token));
        assert_eq!(bytes(30), (30 * token, 37 * token), "a short prompt is kept whole");
    }

    #[test]
    fn in_a_layer_with_a_window_the_choice_is_among_what_the_next_token_sees() {
        let (tokens, window) = (300, 100);
        let within = rotary().with_reach(crate::Reach::Sliding(window));
        // The second head's token is still seen. The first head's token is not.
        let snapshot = snapshot(tokens, [40, 217]);
        let choice = Choice { budget: 12, window: 1, kernel: 3 };
        let places = choice.places(&snapshot.keys[0], &snapshot.queries[0], &within).unwrap();
        for places in &places {
            assert_eq!(places.len(), 12, "{places:?}");
            assert!(places.is_sorted() && places[0] > tokens - window, "{places:?}");
        }
        assert!(places[1].contains(&217), "{places:?}");
        let cx = SchemeContext::new(Geometry { layers: 1, kv_heads: 2, head_dim: 16 });
        for (name, kept) in [("snapkv(budget=40,window=1)", 40), ("snapkv(budget=256)", window - 1)] {
            let scheme = registry::build(name, &cx).unwrap();
            let cache = snapshot.fork(scheme.as_ref(), &within).unwrap().remove(0);
            assert_eq!(cache.footprint().dense, kept * 2 * 2 * 16 * 2, "{name}");
        }
    }

    #[test]
    fn sums_are_smoothed_and_ties_go_to_the_first() {
        assert_eq!(smoothed(&[3.0, 0.0, 0.0, 6.0], 3), [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(largest(&[1.0, 1.0, 2.0, 2.0, 0.0], 3), [0, 2, 3]);
    }

    #[test]
    fn names_say_what_is_wrong() {
        let cx = SchemeContext::new(Geometry { layers: 1, kv_heads: 2, head_dim: 16 });
        for (name, said) in [
            ("snapkv(window=65)", "1 to 64"),
            ("snapkv(budget=64)", "larger budget"),
            ("snapkv(kernel=4)", "odd"),
            ("snapkv+window", "adds nothing"),
        ] {
            let error = registry::build(name, &cx).err().unwrap().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
