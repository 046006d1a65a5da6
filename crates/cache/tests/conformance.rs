//! What every registered scheme must do, for different head counts, head sizes, batches and prefill lengths.
//!
//! The schemes are the examples of the registry, each without change and inside a window. So registering a scheme is
//! enough to test it.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{feed, rotary, tensor};
use kvcsr_cache::conformance::{Probe, Promises, Setting, Violation};
use kvcsr_cache::name::SchemeName;
use kvcsr_cache::{Reach, SchemeContext, registry};
use rayon::prelude::*;

/// Query heads, key-value heads: multi-head, grouped and multi-query attention.
const HEADS: [(usize, usize); 3] = [(4, 4), (6, 2), (4, 1)];

/// Atoms of the untrained dictionaries.
const ATOMS: usize = 96;

/// A registered name to test.
#[derive(Debug, Clone)]
struct Case {
    name: String,
    prefill_as_decoded: bool,
}

impl Case {
    fn is(&self, method: &str) -> bool {
        self.name.starts_with(method)
    }

    /// What the method promises, and how far apart two ways to compute the same numbers may be. CSR sums in different
    /// orders on codes and on restored vectors.
    fn promises(&self) -> Promises {
        let rounding = if self.is("csr") { 2e-5 } else { 5e-6 };
        // Padding shifts positions, and at other positions the 16-bit dense caches round rotated keys differently.
        let padded_rounding = match &self.name {
            name if name == "dense-f16" => Some(1e-3),
            name if name == "dense-bf16" => Some(1e-2),
            _ => Some(1e-5),
        };
        Promises {
            prefill_as_decoded: self.prefill_as_decoded,
            first_call_is_the_prompt: self.name.contains("prefill=restored"),
            // Exact caches store any number, and store padding like any token.
            refuses_not_finite: !self.is("dense"),
            refuses_changed_padding: !self.is("dense"),
            rounding,
            // Over online atoms, many rows and few rows are coded on different paths. The paths may choose different
            // atoms when two are nearly tied, and coefficients in f16 then round differently.
            prefill_rounding: if self.name.contains("online") { 1e-4 } else { rounding },
            padded_rounding,
        }
    }
}

/// Runs a check over the cases that `wanted` accepts, at one setting, with schemes for two layers.
fn each(
    setting: Setting,
    wanted: impl Fn(&Case) -> bool + Sync,
    check: impl Fn(&Probe<'_>) -> Result<(), Violation> + Sync,
) {
    each_seeing(Reach::Full, setting, wanted, check);
}

/// The same as [`each`], in a layer whose tokens see back as far as `reach`.
fn each_seeing(
    reach: Reach,
    setting: Setting,
    wanted: impl Fn(&Case) -> bool + Sync,
    check: impl Fn(&Probe<'_>) -> Result<(), Violation> + Sync,
) {
    let cx = SchemeContext::untrained(setting.geometry(2), ATOMS);
    cases().par_iter().filter(|case| wanted(case)).for_each(|case| {
        let scheme = registry::build(&case.name, &cx).unwrap();
        let probe = Probe::new(scheme.as_ref(), case.promises(), setting).unwrap().with_reach(reach);
        check(&probe).unwrap_or_else(|violation| panic!("{reach:?}: {violation}"));
    });
}

/// All examples. Each of them is also tested inside a window, if it has none and is not exact.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for entry in registry::entries() {
        for example in entry.examples {
            let case = |name: String| Case { name, prefill_as_decoded: entry.prefill_as_decoded };
            cases.push(case((*example).to_owned()));
            let exact = ["dense", "evict", "snapkv"].iter().any(|method| example.starts_with(method));
            if !example.contains("window") && !exact {
                let SchemeName { base, artefacts, .. } = SchemeName::parse(example).unwrap();
                let artefacts = artefacts.map_or(String::new(), |a| format!("@{a}"));
                cases.push(case(format!("{base}+window(sinks=3,recent=7){artefacts}")));
            }
        }
    }
    assert!(cases.len() > 80);
    cases
}

fn setting(batch: usize, (heads, kv_heads): (usize, usize), head_dim: usize) -> Setting {
    Setting { batch, heads, kv_heads, head_dim }
}

fn all(_: &Case) -> bool {
    true
}

#[test]
fn pieces_give_what_the_whole_gives_and_clear_forgets() {
    for heads in HEADS {
        for (d, batch) in [(64, 1), (64, 3), (128, 1), (128, 3)] {
            each(setting(batch, heads, d), all, |probe| probe.pieces(&[0, 1, 2, 33, 34, 35]));
        }
    }
}

#[test]
fn tokens_leave_their_buffers_for_each_query_at_its_own_time() {
    let cuts: Vec<usize> = (0..=32).chain([127, 128, 129, 130, 255]).chain(256..=300).collect();
    each(setting(1, (2, 1), 64), all, |probe| probe.pieces(&cuts));
}

#[test]
fn after_a_prefill_pieces_give_what_the_whole_gives() {
    for (heads, tokens) in [((6, 2), 20), ((4, 1), 1), ((3, 3), 4), ((2, 1), 140)] {
        let cuts: [&[usize]; 2] = [&[0, 1, 2, 3, 20, 25], &[0, 12, 25]];
        each(setting(2, heads, 64), all, |probe| probe.pieces_after_prefill(tokens, &cuts));
    }
}

#[test]
fn prefills_of_all_lengths_are_taken_over_as_if_decoded_where_the_method_says_so() {
    let lengths = [1, 31, 32, 33, 127, 128, 129, 1000];
    each(setting(1, (2, 1), 64), all, |probe| lengths.iter().try_for_each(|&tokens| probe.takes_over(tokens)));
}

#[test]
fn prefills_are_taken_over_for_all_heads_and_batches() {
    for heads in HEADS {
        for d in [64, 128] {
            for (batch, tokens) in [(1, 129), (3, 33)] {
                each(setting(batch, heads, d), all, |probe| probe.takes_over(tokens));
            }
        }
    }
}

/// The same as [`each`], in a layer with a sliding window.
fn each_within(
    window: usize,
    setting: Setting,
    wanted: impl Fn(&Case) -> bool + Sync,
    check: impl Fn(&Probe<'_>) -> Result<(), Violation> + Sync,
) {
    each_seeing(Reach::Sliding(window), setting, wanted, check);
}

#[test]
fn within_a_sliding_window_pieces_give_what_the_whole_gives() {
    for reach in [1, 130] {
        let cuts = [0, 200, 201, 202, 203, 300, 301, 391, 392];
        each_within(reach, setting(1, (2, 1), 64), all, |probe| probe.pieces(&cuts));
    }
    each_within(40, setting(2, (2, 1), 64), all, |probe| probe.pieces(&[0, 300, 301, 302]));
    each_within(40, setting(1, (4, 2), 64), all, |probe| probe.takes_over(400));
    let after: [&[usize]; 2] = [&[0, 1, 2, 3, 150, 155], &[0, 12, 155]];
    each_within(40, setting(1, (2, 1), 64), all, |probe| probe.pieces_after_prefill(300, &after));
    each_within(40, setting(1, (4, 2), 64), all, |probe| probe.errors(339));
    each_within(40, setting(1, (2, 1), 64), all, |probe| probe.forks(300));
}

#[test]
fn within_a_sliding_window_bytes_stop_growing() {
    // As far into a chunk of 128 tokens as the 552 tokens that it is compared with, so that buffers of whole chunks are equally full.
    each_within(40, setting(1, (2, 1), 64), all, |probe| probe.keeps_its_window(1064));
}

#[test]
fn forks_of_a_prefill_do_not_see_each_other() {
    each(setting(1, (6, 2), 64), all, |probe| probe.forks(150));
}

#[test]
fn left_padded_rows_attend_as_they_do_alone() {
    let setting = setting(3, (6, 2), 64);
    for reach in [Reach::Full, Reach::Sliding(9)] {
        each(setting, all, |probe| probe.padded(&[11, 0, 39], &[0, 3, 38, 39, 40], reach));
    }
    let long = |probe: &Probe<'_>| probe.padded(&[0, 37, 150], &[0, 1, 140, 141, 180], Reach::Full);
    each(setting, all, long);
}

#[test]
fn after_an_error_a_cache_is_as_it_was() {
    each(setting(1, (4, 2), 64), all, |probe| probe.errors(139));
}

#[test]
fn vectors_of_any_size_are_kept_and_attended_to() {
    each(setting(1, (1, 1), 64), |case| !case.is("dense"), |probe| probe.any_size(130));
}

#[test]
fn more_bits_give_smaller_errors() {
    let (heads, d) = ((6, 2), 64);
    let setting = setting(1, heads, d);
    let cx = SchemeContext::untrained(setting.geometry(1), 512);
    let x = inputs(setting, 500);
    let rotary = rotary(d);
    let run = |name: &str| {
        let scheme = registry::build(name, &cx).unwrap();
        (scheme.stored_bits().0, feed(scheme.empty(0).unwrap().as_mut(), &x, &rotary, 0, 500))
    };
    let (_, exact) = run("dense");
    for ladder in [
        &["csr-2", "csr-4", "csr-8", "csr-16", "dense-f16"][..],
        &["q4_0", "q8_0"],
        &["q4_0+hadamard", "q8_0+hadamard"],
        &["kivi-1(window=0)", "kivi-2(window=0)", "kivi-4(window=0)", "kivi-8(window=0)"],
        &["asymkv-0-0", "asymkv-1-0", "asymkv-1-1", "kivi-4"],
        &["asymkv-0-0+calibrated", "asymkv-1-0+calibrated", "asymkv-1-1+calibrated", "kivi-4"],
        &["vidkv-1-1.58", "vidkv-1.5-1.58", "vidkv-2-1.58"],
        &["gear-2", "gear-4"],
        &["turboquant-1", "turboquant-2", "turboquant-3", "turboquant-4", "turboquant-5", "dense-f16"],
        &["turboquant-1+pre-rope", "turboquant-2+pre-rope", "turboquant-3+pre-rope", "turboquant-4+pre-rope"],
        &["turboquant-2.5", "turboquant-3.5"],
        &["nsnquant-1(chunk=16)", "nsnquant-2(chunk=16)"],
    ] {
        let mut last = (0.0, f64::INFINITY);
        for name in ladder {
            let (bits, out) = run(name);
            let error = (out - &exact).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(bits > last.0 && f64::from(error) < last.1, "{name}: {bits} bits, error {error}, before {last:?}");
            last = (bits, f64::from(error));
        }
    }
}

fn inputs(setting: Setting, tokens: usize) -> (Tensor, Tensor, Tensor) {
    let of = |seed, heads| tensor(seed, (setting.batch, heads, tokens, setting.head_dim));
    (of(1, setting.heads), of(2, setting.kv_heads), of(3, setting.kv_heads))
}
