//! Tests far tokens, bits and pieces on a small random model. Deletion scores 0 and the uncompressed cache 1.

#![allow(clippy::unwrap_used)]

use candle_core::Device;
use kvcsr_cache::{Scheme, SchemeContext, registry};
use kvcsr_eval::heldout::far::threshold;
use kvcsr_eval::heldout::{Cut, HeldoutText, Prepared, Reference, Repeat, Window};
use kvcsr_fixtures::{tiny_arch, uniform_weights};
use kvcsr_model::{Arch, Decoder, SlidingLayers, TensorMap};

const HIDDEN: &str = "evict(sinks=2,recent=24)";
const CUT: Cut = Cut { context: 300, skip: 30, scored: 90, windows: 1, seed: 4 };

fn decoder() -> Decoder {
    decoder_with(None)
}

fn decoder_with(sliding: Option<SlidingLayers>) -> Decoder {
    let arch =
        Arch { layers: 2, head_dim: 16, intermediate: 48, vocab: 40, max_positions: 1024, sliding, ..tiny_arch() };
    let weights = TensorMap(uniform_weights(&arch, 0.4));
    Decoder::new(arch, &weights, &Device::Cpu).unwrap()
}

fn ids(seed: u32, tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 7) % 40).collect()
}

fn scheme(decoder: &Decoder, name: &str) -> Box<dyn Scheme> {
    registry::build(name, &SchemeContext::new(decoder.geometry())).unwrap()
}

fn prepared(decoder: &Decoder, window: Window, threshold: f64) -> Prepared {
    let (dense, hidden) = (scheme(decoder, "dense"), scheme(decoder, HIDDEN));
    Prepared::new(decoder, window, 64, dense.as_ref(), hidden.as_ref(), threshold).unwrap()
}

#[test]
fn deletion_recovers_nothing_the_exact_cache_everything_and_more_context_more() {
    let decoder = decoder();
    let window = CUT.windows("a", &ids(3, 600)).remove(0);
    let hidden = {
        let reference = Reference::new(&decoder, &window.text, 64, scheme(&decoder, "dense").as_ref()).unwrap();
        reference.measure(&decoder, scheme(&decoder, HIDDEN).as_ref(), 61).unwrap().kl()
    };
    let threshold = threshold(&hidden[CUT.skip..], 0.9);
    let prepared = prepared(&decoder, window, threshold);
    let of = |name: &str| prepared.score(&decoder, scheme(&decoder, name).as_ref(), 0).unwrap();
    let deletion = of(HIDDEN);
    assert_eq!((deletion.scored(), deletion.far.recovery()), (CUT.scored, 0.0));
    assert!(deletion.far.far > 0 && deletion.far.far < CUT.scored, "{:?}", deletion.far);
    assert!(of("dense").far.recovery() > 0.9999);
    let more = of("evict(sinks=2,recent=200)").far.recovery();
    assert!(more > 0.0 && more < 0.9999, "{more}");
    let coded = of("kivi-8(group=16,window=16)").far.recovery();
    assert!(coded > more, "{coded} of 8-bit codes, {more} of 200 tokens");
}

#[test]
fn bits_are_those_of_a_cache_in_use() {
    let decoder = decoder();
    let window = CUT.windows("a", &ids(3, 600)).remove(0);
    let (context, last) = (window.text.context as f64, (window.text.ids.len() - 1) as f64);
    let prepared = prepared(&decoder, window, 0.0);
    let bits = |name: &str| {
        let unit = prepared.score(&decoder, scheme(&decoder, name).as_ref(), 0).unwrap();
        unit.measured_bits(decoder.geometry()).0
    };
    // 26 of the tokens in f16, and 4 bytes for a position. The mean is between the values at the two ends of the continuation.
    let evicted = bits(HIDDEN);
    let at = |tokens: f64| 16.0 * 26.0 / tokens;
    assert!(evicted > at(last) && evicted < 1.5 * at(context), "{evicted}");
    // KIVI's buffer of keys fills and empties. A single reading after the context would see only one fill level.
    let reading =
        prepared.reference().score(&decoder, scheme(&decoder, "kivi-2(group=16,window=64)").as_ref()).unwrap();
    let (once, over) = (reading.measured_bits().0, bits("kivi-2(group=16,window=64)"));
    assert!((once / over - 1.0).abs() > 0.01, "{once} after the context, {over} over the continuation");
}

#[test]
fn bits_are_of_what_an_uncompressed_cache_would_hold_where_layers_have_a_window() {
    let text = HeldoutText { ids: ids(5, 900), context: 768 };
    let all = [(0, 256), (1, 256), (1, 512)].map(|(first, window)| Some(SlidingLayers::from_layer(first, 2, window)));
    for sliding in [None].into_iter().chain(all) {
        let decoder = decoder_with(sliding.clone());
        let reference = Reference::new(&decoder, &text, 64, scheme(&decoder, "dense").as_ref()).unwrap();
        let once = |name: &str| reference.score(&decoder, scheme(&decoder, name).as_ref()).unwrap();
        assert_eq!(once("dense").measured_bits().0, 32.0, "{sliding:?}");
        assert_eq!(once("dense-f16").measured_bits().0, 16.0, "{sliding:?}");
        // Encoded tokens are dropped 128 at a time.
        let coded = once("fp8").measured_bits().0;
        assert!((8.0..13.0).contains(&coded), "{sliding:?}: {coded}");
        // Over a continuation, pages fill. The bits are never below 16, and not far above.
        let over = reference.measure(&decoder, scheme(&decoder, "dense-f16").as_ref(), 31).unwrap();
        let over = over.measured_bits(decoder.geometry()).0;
        assert!((16.0..33.0).contains(&over), "{sliding:?}: {over}");
    }
}

#[test]
fn pieces_change_nothing_but_rounding() {
    let decoder = decoder();
    let window = CUT.windows("a", &ids(9, 600)).remove(0);
    let reference = Reference::new(&decoder, &window.text, 64, scheme(&decoder, "dense").as_ref()).unwrap();
    for name in ["kivi-2(group=16,window=32)", HIDDEN] {
        let kl = |piece| reference.measure(&decoder, scheme(&decoder, name).as_ref(), piece).unwrap().kl();
        let (whole, pieces) = (kl(1000), kl(7));
        assert_eq!(whole.len(), pieces.len());
        let score = reference.score(&decoder, scheme(&decoder, name).as_ref()).unwrap();
        assert!((score.kl_sum - whole.iter().sum::<f64>()).abs() < 1e-9);
        let worst = whole.iter().zip(&pieces).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-3 * whole.iter().copied().fold(0.0, f64::max), "{name}: {worst}");
    }
}

#[test]
fn every_position_of_a_passage_that_comes_back_counts() {
    let decoder = decoder();
    let repeat = Repeat { passage: 80, between: 250, cue: 8, seed: 1 };
    let window = repeat.window("a", &ids(1, 100), &ids(77, 400)).unwrap();
    let prepared = prepared(&decoder, window, f64::NEG_INFINITY);
    let unit = prepared.score(&decoder, scheme(&decoder, "dense-f16").as_ref(), 2).unwrap();
    assert_eq!((unit.far.far, unit.far.share()), (80 - 8 - 1, 1.0));
    assert!(unit.decode_ms_per_token.is_some_and(|ms| ms > 0.0) && unit.encode_ms > 0.0);
    assert!(unit.far.recovery() > 0.99, "{}", unit.far.recovery());
}
