//! Tests of the base. Each codec here is made to test one property.
#![allow(clippy::unwrap_used)]

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use half::f16;
use kvcsr_codec::{Dictionary, Encoder, Footprint, Kind, from_e4m3, to_e4m3};

use super::blocks::BlockFormat;
use super::stages::{Mean, Residual, Stage, Staged};
use super::testing::{relative_error, variates};
use super::{Block, Codec, CodedScheme, CodedTokens, HeadTokens, PerHead, Prompt, PromptQueries, drop_front};
use crate::conformance::{self, Inputs, Promises, Setting, noise};
use crate::schemes::{csr, ggml};
use crate::{
    Binding, CacheError, DenseCache, Geometry, KeysCoded, LastQueries, LayerCache, Needs, Pattern, PrefillSnapshot,
    Rotary, Scheme, SchemeContext, Window, registry,
};

const KEYS: KeysCoded = KeysCoded::AfterRope;

/// A scheme with the same codec for keys and values.
fn scheme(
    geometry: Geometry,
    window: Window,
    codec: impl Fn(Kind) -> Arc<dyn Codec>,
) -> Result<CodedScheme, CacheError> {
    let (needs, cx) = (Needs::nothing(KEYS), SchemeContext::new(geometry));
    let bound = Binding::new("made for a test", &needs, &cx)?;
    CodedScheme::new(&bound, window, |_| Ok((codec(Kind::Key), codec(Kind::Value))))
}

fn passes(build: impl Fn(Geometry) -> Result<Box<dyn Scheme>, CacheError>, promises: Promises) {
    for outcome in conformance::check(build, Promises { refuses_changed_padding: true, ..promises }) {
        assert!(outcome.passed(), "{outcome}");
    }
}

/// A mean, two atoms, and four bits for the residual.
fn staged(Geometry { kv_heads, head_dim, .. }: Geometry, kind: Kind) -> [Arc<dyn Codec>; 3] {
    let dictionary = Dictionary::normalised(head_dim, variates(3, 96 * head_dim)).unwrap();
    let encoder = Arc::new(Encoder::new(Arc::new(dictionary)));
    let mean: Arc<dyn Stage> = Arc::new(Mean::new(noise(7, kv_heads * head_dim), head_dim));
    let atoms: Arc<dyn Codec> = Arc::new(csr::CsrCodec::plain(kind, kv_heads, encoder, 2));
    let q4 = ggml::codec(BlockFormat::Q4, Geometry { layers: 1, kv_heads, head_dim });
    let residual: Arc<dyn Stage> = Arc::new(Residual::new(atoms.clone(), head_dim));
    let all: Arc<dyn Codec> = Arc::new(Staged::new(vec![mean, residual], q4.clone()));
    [all, atoms, q4]
}

#[test]
fn a_codec_put_together_from_stages_is_a_codec_and_better_than_its_parts() {
    fn build(window: Window) -> impl Fn(Geometry) -> Result<Box<dyn Scheme>, CacheError> {
        move |geometry| Ok(Box::new(scheme(geometry, window, |kind| staged(geometry, kind)[0].clone())?))
    }
    // Many rows and few rows are coded on different paths. The paths may choose different atoms when two are nearly
    // tied.
    let promises =
        Promises { rounding: 1e-4, prefill_rounding: 1e-4, padded_rounding: Some(1e-4), ..Promises::default() };
    passes(build(Window::default()), promises);
    passes(build(Window { sinks: 2, recent: 3, graded: 5 }), promises);

    let geometry = Geometry { layers: 1, kv_heads: 2, head_dim: 64 };
    let codecs = staged(geometry, Kind::Key);
    assert_eq!(codecs[0].stored_bits(), codecs[1].stored_bits() + codecs[2].stored_bits());
    let tokens = 200;
    let mut rows = variates(5, 2 * tokens * 64);
    for (head, mean) in rows.chunks_exact_mut(tokens * 64).zip(noise(7, 2 * 64).chunks_exact(64)) {
        head.chunks_exact_mut(64).for_each(|row| row.iter_mut().zip(mean).for_each(|(x, mean)| *x = *x * 0.2 + mean));
    }
    let errors = codecs.map(|codec| {
        let mut held = codec.empty();
        held.append(&Block { rows: &rows, tokens, prompt: true });
        let mut restored = vec![0.0; rows.len()];
        for (head, out) in restored.chunks_exact_mut(tokens * 64).enumerate() {
            held.restore(head, 0..128, &mut out[..128 * 64]);
            held.restore(head, 128..tokens, &mut out[128 * 64..]);
        }
        relative_error(&rows, &restored)
    });
    assert!(errors[0] < 0.5 * errors[1] && errors[0] < 0.5 * errors[2], "{errors:?}");
}

/// `(1, Hkv, T, D)` with each row changed by `change`.
fn changed(x: &Tensor, change: impl Fn(usize, &mut [f32])) -> Tensor {
    let (_, _, tokens, d) = x.dims4().unwrap();
    let mut rows = x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    rows.chunks_exact_mut(d).enumerate().for_each(|(i, row)| change(i % tokens, row));
    Tensor::from_vec(rows, x.dims(), &Device::Cpu).unwrap()
}

/// The output of a dense cache for the token at `at`, with the keys and values before it that `sees` accepts.
fn dense(x: &Inputs, at: usize, sees: impl Fn(usize) -> bool) -> Tensor {
    let visible: Vec<u32> = (0..=at).filter(|&t| sees(t)).map(|t| t as u32).collect();
    let tokens = Tensor::new(&visible[..], &Device::Cpu).unwrap();
    let pick = |x: &Tensor| x.index_select(&tokens, 2).unwrap();
    let (q, k, v) = (x.q.narrow(2, at, 1).unwrap(), pick(&x.k), pick(&x.v));
    let n = visible.len();
    let x = Inputs { q: Tensor::cat(&vec![q; n], 2).unwrap(), k, v };
    let mut cache = DenseCache::new(candle_core::DType::F32);
    let out = x.feed(&mut cache, &Rotary::identity(512), Pattern::default(), 0..n).unwrap();
    out.narrow(2, n - 1, 1).unwrap()
}

fn near(a: &Tensor, b: &Tensor, what: &str) {
    let off = conformance::largest_difference(a, b).unwrap();
    assert!(off < 5e-6, "{what}: {off}");
}

#[test]
fn a_bias_that_all_keys_share_costs_no_precision_once_it_is_taken_off() {
    let setting = Setting { batch: 2, heads: 4, kv_heads: 2, head_dim: 64 };
    let mut x = Inputs::random(setting, 200).unwrap();
    // As large, compared to what varies, as the key bias of Qwen2.5's first layer.
    x.k = changed(&x.k, |_, row| row[5] += 80.0);
    let rotary = Rotary::new(64, 1e4, 512, &Device::Cpu).unwrap();
    let cx = SchemeContext::new(setting.geometry(1));
    let attended = |name: &str, cuts: &[usize]| {
        let mut cache = registry::build(name, &cx).unwrap().empty(0).unwrap();
        let outputs: Vec<Tensor> =
            cuts.windows(2).map(|w| x.feed(cache.as_mut(), &rotary, Pattern::default(), w[0]..w[1]).unwrap()).collect();
        Tensor::cat(&outputs, 2).unwrap().narrow(2, 150, 50).unwrap()
    };
    let exact = attended("dense", &[0, 200]);
    for cuts in [&[0, 200][..], &[0, 150, 151, 199, 200]] {
        let error = |name: &str| conformance::largest_difference(&exact, &attended(name, cuts)).unwrap();
        for name in ["q8_0", "q4_0+hadamard", "turboquant-4", "kivi-4(group=32,window=32)", "vidkv-1.5-1.58"] {
            let (plain, centred) = (error(name), error(&format!("{name}+centre")));
            println!("{name}: {plain}, centred {centred}");
            assert!(centred < 0.7 * plain, "{name}: {plain}, centred {centred}");
        }
    }
}

#[test]
fn a_graded_window_is_exact_then_four_bits_then_coded() {
    let setting = Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 64 };
    let (x, rotary) = (Inputs::random(setting, 60).unwrap(), Rotary::identity(512));
    let cx = SchemeContext::new(setting.geometry(1));
    let scheme = registry::build("fp8+window(sinks=3,recent=6,graded=10)", &cx).unwrap();
    let seen = |x: &Tensor, at: usize| {
        changed(x, |t, row| {
            row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
            if t < 3 || t + 6 > at {
            } else if t + 16 > at {
                for block in row.chunks_exact_mut(32) {
                    let mut bytes = Vec::new();
                    BlockFormat::Q4.encode(block, &mut bytes);
                    BlockFormat::Q4.decode(&bytes, block);
                }
            } else {
                row.iter_mut().for_each(|x| *x = from_e4m3(to_e4m3(*x)));
            }
        })
    };
    for cuts in [&[0, 60][..], &[0, 1, 2, 30, 31, 59, 60]] {
        let mut cache = scheme.empty(0).unwrap();
        let outputs: Vec<Tensor> =
            cuts.windows(2).map(|w| x.feed(cache.as_mut(), &rotary, Pattern::default(), w[0]..w[1]).unwrap()).collect();
        let out = Tensor::cat(&outputs, 2).unwrap();
        for at in [2, 8, 9, 15, 18, 19, 40, 59] {
            let as_seen = Inputs { q: x.q.clone(), k: seen(&x.k, at), v: seen(&x.v, at) };
            near(&dense(&as_seen, at, |_| true), &out.narrow(2, at, 1).unwrap(), &format!("{cuts:?}, token {at}"));
        }
        let prompt = x.tokens(0..59).unwrap();
        let mut taken = scheme.after_prefill(0, &prompt.k, &prompt.v, &rotary).unwrap();
        let last = x.feed(taken.as_mut(), &rotary, Pattern::default(), 59..60).unwrap();
        near(&last, &out.narrow(2, 59, 1).unwrap(), "after a prefill");
    }
}

/// A store that holds nothing.
struct Nothing;

impl Codec for Nothing {
    fn empty(&self) -> Box<dyn CodedTokens> {
        Box::new(Self)
    }

    fn nominal_bits(&self) -> f64 {
        0.0
    }
}

impl CodedTokens for Nothing {
    fn append(&mut self, _block: &Block<'_>) {}

    fn restore(&self, _head: usize, _tokens: Range<usize>, out: &mut [f32]) {
        out.fill(0.0);
    }

    fn forgets(&self) -> bool {
        true
    }

    fn kept(&self, _head: usize, _tokens: Range<usize>, kept: &mut [bool]) {
        kept.fill(false);
    }

    fn footprint(&self) -> Footprint {
        Footprint { tables: size_of::<Self>(), ..Footprint::default() }
    }

    fn drop_first(&mut self, _tokens: usize) {}
}

#[test]
fn a_middle_that_is_forgotten_is_not_attended_to() {
    let window = Window { sinks: 4, recent: 9, graded: 0 };
    let build = |geometry: Geometry| -> Result<Box<dyn Scheme>, CacheError> {
        Ok(Box::new(scheme(geometry, window, |_| Arc::new(Nothing))?))
    };
    passes(build, Promises::default());
    let setting = Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 64 };
    let x = Inputs::random(setting, 200).unwrap();
    let half = |x: &Tensor| changed(x, |_, row| row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()));
    let rounded = Inputs { q: x.q.clone(), k: half(&x.k), v: half(&x.v) };
    let mut cache = build(setting.geometry(1)).unwrap().empty(0).unwrap();
    let out = x.feed(cache.as_mut(), &Rotary::identity(512), Pattern::default(), 0..200).unwrap();
    for at in [3, 12, 13, 14, 150, 199] {
        let expected = dense(&rounded, at, |t| t < 4 || t + 9 > at);
        near(&expected, &out.narrow(2, at, 1).unwrap(), &format!("token {at}"));
    }
    // Only the window takes memory, whatever the length of the text.
    assert!(cache.footprint().window <= 2 * 2 * 64 * 2 * (4 + 9 + 4));
}

/// Stores f16. If the last queries of a prompt are shown, it keeps only those prompt tokens that one of them points to.
struct Chooser(Geometry);

struct Chosen {
    head_dim: usize,
    rows: Vec<Vec<f32>>,
    kept: Vec<Vec<bool>>,
}

impl Codec for Chooser {
    fn empty(&self) -> Box<dyn CodedTokens> {
        let heads = self.0.kv_heads;
        Box::new(Chosen { head_dim: self.0.head_dim, rows: vec![Vec::new(); heads], kept: vec![Vec::new(); heads] })
    }

    fn nominal_bits(&self) -> f64 {
        16.0
    }

    fn sees_queries(&self) -> bool {
        true
    }
}

fn points_to(queries: &PromptQueries<'_>, d: usize, group: usize, head: usize, key: &[f32]) -> bool {
    let own = queries.rows.chunks_exact(queries.tokens * d).skip(head * group).take(group);
    let dot = |q: &[f32]| q.iter().zip(key).map(|(a, b)| a * b).sum::<f32>();
    own.flat_map(|head| head.chunks_exact(d)).any(|q| dot(q) > 3.0)
}

impl CodedTokens for Chosen {
    fn see_prompt(&mut self, prompt: &Prompt<'_>) {
        let (Some(queries), d) = (prompt.queries, self.head_dim) else { return };
        let group = queries.rows.len() / (queries.tokens * d) / self.kept.len();
        for (head, (kept, keys)) in self.kept.iter_mut().zip(prompt.keys.chunks_exact(prompt.tokens * d)).enumerate() {
            kept.extend(keys.chunks_exact(d).map(|key| points_to(&queries, d, group, head, key)));
        }
    }

    fn append(&mut self, block: &Block<'_>) {
        for (head, rows) in block.rows.chunks_exact(block.tokens * self.head_dim).enumerate() {
            self.rows[head].extend_from_slice(rows);
            let held = self.rows[head].len() / self.head_dim;
            let known = self.kept[head].len();
            self.kept[head].resize(held.max(known), true);
        }
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        out.copy_from_slice(&self.rows[head][tokens.start * self.head_dim..tokens.end * self.head_dim]);
    }

    fn forgets(&self) -> bool {
        true
    }

    fn kept(&self, head: usize, tokens: Range<usize>, kept: &mut [bool]) {
        kept.copy_from_slice(&self.kept[head][tokens]);
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }

    fn drop_first(&mut self, tokens: usize) {
        self.rows.iter_mut().for_each(|rows| drop_front(rows, tokens * self.head_dim));
        self.kept.iter_mut().for_each(|kept| drop_front(kept, tokens));
    }
}

#[test]
fn a_method_can_choose_tokens_by_the_last_queries_of_a_prompt() {
    let setting = Setting { batch: 1, heads: 2, kv_heads: 1, head_dim: 64 };
    let (x, rotary) = (Inputs::random(setting, 150).unwrap(), Rotary::identity(512));
    let geometry = setting.geometry(1);
    let scheme = scheme(geometry, Window::default(), |_| Arc::new(Chooser(geometry))).unwrap();
    let prompt = x.tokens(0..140).unwrap();
    let mut snapshot = PrefillSnapshot {
        keys: vec![prompt.k.clone()],
        values: vec![prompt.v.clone()],
        queries: vec![LastQueries { queries: prompt.q.narrow(2, 138, 2).unwrap(), scale: 0.125 }],
        last_logits: prompt.q.clone(),
    };
    let row = |x: &Tensor, head: usize, t: usize| -> Vec<f32> {
        x.narrow(1, head, 1).unwrap().narrow(2, t, 1).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    };
    let chosen = |t: usize| {
        let dots = [(0, 138), (0, 139), (1, 138), (1, 139)]
            .map(|(head, at)| -> f32 { row(&x.q, head, at).iter().zip(row(&x.k, 0, t)).map(|(a, b)| a * b).sum() });
        dots.into_iter().any(|dot| dot > 3.0)
    };
    let count = (0..140).filter(|&t| chosen(t)).count();
    assert!((10..130).contains(&count), "{count}");
    let half = |x: &Tensor| changed(x, |_, row| row.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32()));
    let rounded = Inputs { q: x.q.clone(), k: half(&x.k), v: half(&x.v) };
    for (queries, sees) in [(true, &(|t| t >= 140 || chosen(t)) as &dyn Fn(usize) -> bool), (false, &|_| true)] {
        if !queries {
            snapshot.queries.clear();
        }
        let mut cache = snapshot.fork(&scheme, &rotary).unwrap().remove(0);
        let out = x.feed(cache.as_mut(), &rotary, Pattern::default(), 140..150).unwrap();
        for at in [140, 149] {
            near(&dense(&rounded, at, sees), &out.narrow(2, at - 140, 1).unwrap(), &format!("{queries}, token {at}"));
        }
    }
}

/// One head stored without change. It checks that stores per head and stores for all heads get the same calls.
struct Plain(Vec<f32>);

impl HeadTokens for Plain {
    fn append(&mut self, rows: &[f32], _tokens: usize, _prompt: bool) {
        self.0.extend_from_slice(rows);
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        let d = out.len() / tokens.len();
        out.copy_from_slice(&self.0[tokens.start * d..tokens.end * d]);
    }

    fn footprint(&self) -> Footprint {
        Footprint { dense: self.0.capacity() * size_of::<f32>(), ..Footprint::default() }
    }

    /// The store has two channels.
    fn drop_first(&mut self, tokens: usize) {
        drop_front(&mut self.0, 2 * tokens);
    }
}

#[test]
fn stores_get_heads_in_order() {
    let mut all = PerHead::new(2, |_| Plain(Vec::new()));
    all.append(&Block { rows: &[1.0, 2.0, 3.0, 4.0], tokens: 1, prompt: false });
    all.append(&Block { rows: &[5.0, 6.0, 7.0, 8.0], tokens: 1, prompt: false });
    let mut out = [0.0; 4];
    all.restore(1, 0..2, &mut out);
    assert_eq!(out, [3.0, 4.0, 7.0, 8.0]);
    all.drop_first(1);
    all.restore(1, 0..1, &mut out[..2]);
    assert_eq!(out[..2], [7.0, 8.0]);
}
