//! What schemes do to the keys of each layer, and to the logits of attention.
//!
//! Attention takes the softmax of products of a query with all keys. A number that is added to all of them changes nothing, so an
//! error that is the same for all keys costs nothing, and the energy of what all keys share says nothing about quality. The
//! correlation of the logits with the exact ones leaves out such a number.

use std::ops::Range;

use candle_core::Tensor;
use kvcsr_cache::schemes::csr_plus::AROUND;
use kvcsr_cache::{LastQueries, PrefillSnapshot, Rotary, Scheme};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_report::LogitRow;
use kvcsr_report::notebook::{Markdown, Shown};

use crate::error::Result;
use crate::{LabError, Model, Prompt};

/// First tokens that are left out: most schemes keep some exactly, and their keys can lie far from all others.
const FIRST: usize = AROUND.sinks;
/// Last tokens that are left out: what published windows and buffers keep exactly at most.
const LAST: usize = 128;
/// Keys that a correlation is taken over at least.
const LEAST: usize = 16;

/// Rows of [`compared`]: for each scheme a row for each layer, shown as a table of means and worst layers.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitErrors(pub Vec<LogitRow>);

/// Lets every scheme take over the prompt's context, and compares the keys that it holds with the exact ones: their error, and the
/// correlation of the logits that the context's last queries (at most 64) have with them. The first 4 tokens and the last 128, which
/// most schemes keep exactly, are left out.
///
/// # Errors
/// If the context is too short, or a scheme fails or has no keys of its tokens.
pub fn compared(model: &Model, prompt: &Prompt, schemes: &[Box<dyn Scheme>]) -> Result<LogitErrors> {
    Ok(LogitErrors(rows(prompt.reference.snapshot(), model.decoder.rotary(), schemes)?))
}

/// The rows of a prefill; `rotary` has the tables of all layers.
fn rows(snapshot: &PrefillSnapshot, rotary: &Rotary, schemes: &[Box<dyn Scheme>]) -> Result<Vec<LogitRow>> {
    let (found, needed) = (snapshot.len(), FIRST + LAST + LEAST);
    if found < needed {
        return Err(LabError::ShortContext { found, needed });
    }
    let far = FIRST..found - LAST;
    let mut rows = Vec::new();
    for scheme in schemes {
        let name = label(scheme.name(), scheme.dictionaries());
        let layers = snapshot.keys.iter().zip(&snapshot.values).zip(&snapshot.queries).enumerate();
        for (layer, ((k, v), queries)) in layers {
            let rotary = rotary.of(layer);
            let cache = scheme.after_observed_prefill(layer, k, v, queries, rotary)?;
            let none = || LabError::NoKeys { scheme: name.clone() };
            let (held, exact) = (cache.scored_keys(rotary)?.ok_or_else(none)?, rotary.apply(k, 0)?);
            let (held, exact) = (part(&held, &far)?, part(&exact, &far)?);
            let (relative, correlation) = compare(&exact, &held, &rotated(queries, found, rotary)?)?;
            rows.push(LogitRow { scheme: name.clone(), layer, relative, correlation });
        }
    }
    Ok(rows)
}

/// Keys of the tokens of a range, `(Hkv, n, D)`, of `(1, Hkv, S, D)`.
fn part(keys: &Tensor, tokens: &Range<usize>) -> Result<Tensor> {
    Ok(keys.squeeze(0)?.narrow(1, tokens.start, tokens.len())?.contiguous()?)
}

/// The queries of the last of `tokens` tokens after position embedding, `(1, H, W, D)`.
fn rotated(queries: &LastQueries, tokens: usize, rotary: &Rotary) -> Result<Tensor> {
    Ok(rotary.apply(&queries.queries, tokens - queries.queries.dim(2)?)?)
}

/// Relative squared error of `held` keys `(Hkv, n, D)`, and the mean over queries `(1, H, W, D)` of the correlation of their logits.
fn compare(exact: &Tensor, held: &Tensor, queries: &Tensor) -> Result<(f64, f64)> {
    let (kv_heads, n, d) = exact.dims3()?;
    let (_, heads, tokens, _) = queries.dims4()?;
    // Query heads of a group stand side by side.
    let queries = queries.contiguous()?.reshape((kv_heads, heads / kv_heads * tokens, d))?;
    let logits =
        |keys: &Tensor| -> Result<Vec<f32>> { Ok(queries.matmul(&keys.t()?)?.flatten_all()?.to_vec1::<f32>()?) };
    let numbers = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
    let relative = relative_error(&numbers(exact)?, &numbers(held)?);
    let (of_exact, of_held) = (logits(exact)?, logits(held)?);
    let rows = of_exact.chunks_exact(n).zip(of_held.chunks_exact(n));
    let all: Vec<f64> = rows.filter_map(|(exact, held)| correlation(exact, held)).collect();
    Ok((relative, all.iter().sum::<f64>() / all.len().max(1) as f64))
}

/// `sum |x - y|^2 / sum |x|^2`.
fn relative_error(exact: &[f32], other: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let error: f64 = exact.iter().zip(other).map(|(&x, &y)| square(f64::from(x) - f64::from(y))).sum();
    let energy: f64 = exact.iter().map(|&x| square(f64::from(x))).sum();
    if energy > 0.0 { error / energy } else { 0.0 }
}

/// Pearson's correlation, -1 to 1: 0 where the second are all the same; none where the first are.
fn correlation(exact: &[f32], other: &[f32]) -> Option<f64> {
    let mean = |x: &[f32]| x.iter().map(|&x| f64::from(x)).sum::<f64>() / x.len().max(1) as f64;
    let (centre_x, centre_y) = (mean(exact), mean(other));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (&x, &y) in exact.iter().zip(other) {
        let (x, y) = (f64::from(x) - centre_x, f64::from(y) - centre_y);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    match (xx > 0.0, yy > 0.0) {
        (false, _) => None,
        (true, false) => Some(0.0),
        (true, true) => Some(xy / (xx.sqrt() * yy.sqrt())),
    }
}

impl Shown for LogitErrors {
    fn html(&self) -> String {
        let mut text = String::from(
            "| scheme | key error, mean | key error, worst | in layer | correlation, mean | correlation, worst | in layer |\n\
             |---|--:|--:|--:|--:|--:|--:|\n",
        );
        for rows in self.0.chunk_by(|a, b| a.scheme == b.scheme) {
            let mean = |of: fn(&LogitRow) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
            let error = rows.iter().max_by(|a, b| a.relative.total_cmp(&b.relative));
            let least = rows.iter().min_by(|a, b| a.correlation.total_cmp(&b.correlation));
            if let (Some(error), Some(least)) = (error, least) {
                text += &format!(
                    "| {} | {:.5} | {:.5} | {} | {:.4} | {:.4} | {} |\n",
                    error.scheme,
                    mean(|row| row.relative),
                    error.relative,
                    error.layer,
                    mean(|row| row.correlation),
                    least.correlation,
                    least.layer
                );
            }
        }
        Markdown::of(&text).html()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use candle_core::Device;
    use kvcsr_cache::{SchemeContext, registry};
    use kvcsr_fixtures::{random_weights, tiny_arch};
    use kvcsr_model::{Arch, Decoder, Position, Qkv, RopeScaling, TensorMap};

    use super::*;

    #[test]
    fn correlations_are_of_what_differs_between_keys() {
        let x = [1.0, 2.0, 4.0, 8.0];
        assert!((correlation(&x, &x.map(|x| 100.0 + 3.0 * x)).unwrap() - 1.0).abs() < 1e-12);
        assert!((correlation(&x, &x.map(|x| -x)).unwrap() + 1.0).abs() < 1e-12);
        assert_eq!((correlation(&x, &[5.0; 4]), correlation(&[5.0; 4], &x)), (Some(0.0), None));
        assert_eq!((relative_error(&[3.0, 4.0], &[3.0, 3.0]), relative_error(&[0.0], &[1.0])), (0.04, 0.0));
    }

    /// A model whose first layer has a large bias in one channel of its keys, and its prefill of a text.
    fn biased(layers: usize) -> (Decoder, PrefillSnapshot) {
        let (head_dim, max_positions) = (32, 512);
        // Slow enough that the bias hardly turns within the text.
        let position = Position::Rope { theta: 1e6, scaling: RopeScaling::None };
        let arch = Arch { qkv: Qkv::Biased, layers, head_dim, max_positions, position, ..tiny_arch() };
        let mut weights = random_weights(&arch, 11);
        let bias: Vec<f32> =
            (0..arch.kv_heads * head_dim).map(|channel| if channel % head_dim == 15 { 60.0 } else { 0.0 }).collect();
        let bias = Tensor::new(&bias[..], &Device::Cpu).unwrap();
        weights.insert("model.layers.0.self_attn.k_proj.bias".to_owned(), bias);
        let decoder = Decoder::new(arch, &TensorMap(weights), &Device::Cpu).unwrap();
        let ids: Vec<u32> = (0..300).map(|i| (i * i * 7 + i * 3) % 61).collect();
        let snapshot = decoder.prefill(&ids, 128).unwrap();
        (decoder, snapshot)
    }

    #[test]
    fn a_bias_costs_the_logits_of_its_layer_and_centring_gives_them_back() {
        let (decoder, snapshot) = biased(3);
        let cx = SchemeContext::new(decoder.geometry());
        let names = ["dense", "q8_0", "q4_0", "q4_0+centre", "turboquant-4", "turboquant-4+centre"];
        let schemes = names.map(|name| registry::build(name, &cx).unwrap());
        let all = rows(&snapshot, decoder.rotary(), &schemes).unwrap();
        let of = |name: &str, layer: usize| all.iter().find(|row| row.scheme == name && row.layer == layer).unwrap();
        assert_eq!(all.len(), names.len() * 3);
        for layer in 0..3 {
            assert!(of("dense", layer).relative == 0.0 && of("dense", layer).correlation > 1.0 - 1e-9);
            assert!(of("q8_0", layer).correlation > of("q4_0", layer).correlation);
        }
        for name in ["q4_0", "turboquant-4"] {
            let (plain, centred) = (of(name, 0), of(&format!("{name}+centre"), 0));
            assert!(plain.correlation < 0.97 && centred.correlation > 0.98, "{plain:?} {centred:?}");
            // The bias is most of the energy, so the error looks small.
            assert!(plain.relative < 0.02, "{plain:?}");
        }
        let html = LogitErrors(all).html();
        assert!(html.matches("<tr>").count() == 1 + names.len() && html.contains("turboquant-4+centre"), "{html}");
    }

    #[test]
    fn short_contexts_and_caches_without_keys_are_told() {
        let (decoder, mut snapshot) = biased(1);
        let cx = SchemeContext::new(decoder.geometry());
        let evict = [registry::build("evict(sinks=2,recent=9)", &cx).unwrap()];
        let found = rows(&snapshot, decoder.rotary(), &evict);
        assert!(matches!(found, Err(LabError::NoKeys { scheme }) if scheme.starts_with("evict")));
        for x in snapshot.keys.iter_mut().chain(&mut snapshot.values) {
            *x = x.narrow(2, 0, 147).unwrap();
        }
        let found = rows(&snapshot, decoder.rotary(), &[]);
        assert!(matches!(found, Err(LabError::ShortContext { found: 147, needed: 148 })), "{found:?}");
    }
}
