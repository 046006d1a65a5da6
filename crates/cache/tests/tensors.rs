//! Codes as tensors behave like codes on the host: they pass the same checks, and give the same numbers within a stated
//! tolerance.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use common::{rotary, tensor};
use kvcsr_cache::conformance::{Inputs, Probe, Promises, Setting, Violation, largest_difference};
use kvcsr_cache::tensor::{Attention, host_reads};
use kvcsr_cache::{CacheError, Pattern, Reach, Scheme, SchemeContext, registry};
use rayon::prelude::*;

/// Atoms of the untrained dictionaries.
const ATOMS: usize = 96;

/// How far outputs may differ from those of the host, for inputs between -1 and 1. Products that are summed in another
/// order differ in the last digits of f32. If a coefficient is then rounded to another f16, it differs by 2^-11 of
/// itself.
const NEAR: f32 = 2e-3;

fn context(setting: Setting, layers: usize, attention: Attention) -> SchemeContext {
    SchemeContext::untrained(setting.geometry(layers), ATOMS).with_attention(attention, &Device::Cpu)
}

/// The registered examples that have tensors, and whether their prefill gives the same state as decoding.
fn cases() -> Vec<(String, bool)> {
    let cx = context(Setting { batch: 1, heads: 2, kv_heads: 1, head_dim: 64 }, 1, Attention::Tensor);
    let mut cases = Vec::new();
    for entry in registry::entries() {
        for example in entry.examples.iter().filter(|example| !example.starts_with("dense")) {
            match registry::build(example, &cx) {
                Ok(_) => cases.push(((*example).to_owned(), entry.prefill_as_decoded)),
                Err(error) => assert!(matches!(error, CacheError::NoTensors { .. }), "{example}: {error}"),
            }
        }
    }
    cases
}

fn promises((name, prefill_as_decoded): &(String, bool)) -> Promises {
    Promises {
        prefill_as_decoded: *prefill_as_decoded,
        first_call_is_the_prompt: name.contains("prefill=restored"),
        // Prompts are checked, but decoded tokens are not. See below.
        refuses_not_finite: false,
        refuses_changed_padding: true,
        rounding: NEAR,
        prefill_rounding: NEAR,
        padded_rounding: Some(NEAR),
    }
}

fn each(setting: Setting, reach: Reach, check: impl Fn(&Probe<'_>) -> Result<(), Violation> + Sync) {
    let cx = context(setting, 2, Attention::Tensor);
    cases().par_iter().for_each(|case| {
        let scheme = registry::build(&case.0, &cx).unwrap();
        let probe = Probe::new(scheme.as_ref(), promises(case), setting).unwrap().with_reach(reach);
        check(&probe).unwrap_or_else(|violation| panic!("{reach:?}: {violation}"));
    });
}

fn setting(batch: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Setting {
    Setting { batch, heads, kv_heads, head_dim }
}

#[test]
fn the_methods_of_the_paper_and_its_peers_have_tensors() {
    let names: Vec<String> = cases().into_iter().map(|(name, _)| name).collect();
    for name in [
        "csr-4",
        "csr-8+online",
        "csr-8+int4",
        "csr-4+budget",
        "csr+@2",
        "csr+@1",
        "kivi-2",
        "kivi-4+centre",
        "gear-4",
        "gear-2",
        "lexico-8",
        "csr-4+refit",
        "csr-8+fp8",
        "q4_0",
    ] {
        assert!(names.iter().any(|known| known == name), "{name} is not among {names:?}");
    }
    let error =
        registry::build("turboquant-4", &context(setting(1, 1, 1, 64), 1, Attention::Tensor)).map(drop).unwrap_err();
    assert!(error.to_string().contains("Take auto or codes"), "{error}");
}

#[test]
fn pieces_give_what_the_whole_gives_and_clear_forgets() {
    for setting in [setting(1, 4, 4, 64), setting(3, 6, 2, 64), setting(2, 4, 1, 128)] {
        each(setting, Reach::Full, |probe| probe.pieces(&[0, 1, 2, 33, 34, 35]));
    }
    each(setting(1, 2, 1, 64), Reach::Full, |probe| probe.pieces(&[0, 31, 32, 33, 127, 128, 129, 130, 255, 256, 300]));
}

#[test]
fn prefills_are_taken_over_and_decoded_on() {
    each(setting(1, 2, 1, 64), Reach::Full, |probe| [1, 31, 129, 400].iter().try_for_each(|&n| probe.takes_over(n)));
    let cuts: [&[usize]; 2] = [&[0, 1, 2, 3, 20, 25], &[0, 12, 25]];
    each(setting(2, 6, 2, 64), Reach::Full, |probe| probe.pieces_after_prefill(140, &cuts));
    each(setting(1, 6, 2, 64), Reach::Full, |probe| probe.forks(150));
}

#[test]
fn padding_errors_and_sizes_are_handled_as_on_the_host() {
    for reach in [Reach::Full, Reach::Sliding(9)] {
        each(setting(3, 6, 2, 64), reach, |probe| probe.padded(&[11, 0, 39], &[0, 3, 38, 39, 40], reach));
    }
    each(setting(1, 4, 2, 64), Reach::Full, |probe| probe.errors(139));
    each(setting(1, 1, 1, 64), Reach::Full, |probe| probe.any_size(130));
}

#[test]
fn sliding_windows_bound_what_is_held() {
    let near = Reach::Sliding(40);
    each(setting(1, 2, 1, 64), near, |probe| probe.pieces(&[0, 200, 201, 202, 333, 400, 401]));
    each(setting(1, 4, 2, 64), near, |probe| probe.takes_over(400));
    each(setting(1, 2, 1, 64), near, |probe| probe.keeps_its_window(1000));
}

/// The attention outputs of a scheme after a prefill: in one call of many tokens, and token by token.
fn attended(scheme: &dyn Scheme, setting: Setting, dtype: DType, prompt: usize, after: usize) -> (Tensor, usize) {
    let rotary = rotary(setting.head_dim);
    let x = Inputs::random(setting, prompt + after + 5).unwrap();
    let cast = |x: &Tensor| x.to_dtype(dtype).unwrap();
    let x = Inputs { q: cast(&x.q), k: cast(&x.k), v: cast(&x.v) };
    let Inputs { k, v, .. } = x.tokens(0..prompt).unwrap();
    let mut cache = scheme.after_prefill(1, &k, &v, &rotary).unwrap();
    let mut parts = vec![x.feed(cache.as_mut(), &rotary, Pattern::default(), prompt..prompt + after).unwrap()];
    for at in prompt + after..prompt + after + 5 {
        parts.push(x.feed(cache.as_mut(), &rotary, Pattern::default(), at..at + 1).unwrap());
    }
    (Tensor::cat(&parts, 2).unwrap(), cache.footprint().total())
}

#[test]
fn tensors_attend_to_what_the_host_attends_to_and_take_its_bytes() {
    for (setting, dtype) in [
        (setting(1, 6, 2, 64), DType::F32),
        (setting(2, 4, 4, 128), DType::F32),
        (setting(1, 4, 2, 128), DType::BF16),
        (setting(1, 4, 2, 128), DType::F16),
    ] {
        let (host, device) = (context(setting, 2, Attention::Codes), context(setting, 2, Attention::Tensor));
        cases().par_iter().for_each(|(name, _)| {
            let run = |cx| attended(registry::build(name, cx).unwrap().as_ref(), setting, dtype, 300, 70);
            let ((expected, bytes), (found, on_tensors)) = (run(&host), run(&device));
            assert_eq!(found.dtype(), dtype);
            let wide = |x: &Tensor| x.to_dtype(DType::F32).unwrap();
            let off = largest_difference(&wide(&expected), &wide(&found)).unwrap();
            let near = if dtype == DType::BF16 { 1e-2 } else { NEAR };
            assert!(off < near, "{name}, {setting}, {dtype:?}: {off}");
            let share = on_tensors as f64 / bytes as f64;
            assert!((0.7..1.35).contains(&share), "{name}, {setting}: {on_tensors} bytes, {bytes} on the host");
        });
    }
}

#[test]
fn linear_biases_are_added_by_distance() {
    let setting = setting(1, 4, 2, 64);
    let (alibi, rotary) = (kvcsr_cache::Alibi::new(4), kvcsr_cache::Rotary::identity(400));
    let pattern = Pattern { bias: kvcsr_cache::Bias::Alibi(&alibi), ..Pattern::default() };
    let x = Inputs::random(setting, 210).unwrap();
    for name in ["csr-8", "kivi-2"] {
        let run = |attention| {
            let scheme = registry::build(name, &context(setting, 1, attention)).unwrap();
            let mut cache = scheme.empty(0).unwrap();
            x.feed(cache.as_mut(), &rotary, pattern, 0..200).unwrap();
            x.feed(cache.as_mut(), &rotary, pattern, 200..210).unwrap()
        };
        let off = largest_difference(&run(Attention::Codes), &run(Attention::Tensor)).unwrap();
        assert!(off < NEAR, "{name}: {off}");
    }
}

#[test]
fn a_decoded_token_reads_nothing_back_to_the_host() {
    let setting = setting(1, 4, 2, 64);
    let (cx, rotary) = (context(setting, 1, Attention::Tensor), rotary(64));
    let x = Inputs::random(setting, 240).unwrap();
    let Inputs { k, v, .. } = x.tokens(0..100).unwrap();
    // A case stays on one thread, and reads are counted per thread.
    cases().par_iter().for_each(|(name, _)| {
        let scheme = registry::build(name, &cx).unwrap();
        let before = host_reads();
        let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
        let prompt = host_reads();
        assert!(prompt >= before + 2, "{name}: the numbers of a prompt are looked at");
        for at in 100..240 {
            x.feed(cache.as_mut(), &rotary, Pattern::default(), at..at + 1).unwrap();
        }
        assert_eq!(host_reads(), prompt, "{name}: reads while decoding 140 tokens");
    });
}

/// Only [`kvcsr_cache::tensor::read_to_host`] reads numbers back, so its count is complete.
#[test]
fn one_place_reads_back_to_the_host() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let of = |folder: &str| {
        let entries = std::fs::read_dir(sources.join(folder)).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|e| e == "rs")).collect::<Vec<_>>()
    };
    let methods =
        ["csr", "csr_plus", "gear", "lexico"].map(|method| sources.join(format!("schemes/{method}/tensors.rs")));
    let files: Vec<PathBuf> = of("tensor").into_iter().chain(methods).collect();
    assert!(files.len() > 12, "{files:?}");
    for file in files.iter().filter(|file| !file.ends_with("tensor/host.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        for call in ["to_vec", "to_scalar", "to_device"] {
            let allowed = call == "to_device" && file.ends_with("tensor/place.rs");
            assert!(allowed || !code.contains(call), "{}: {call}", file.display());
        }
    }
}

#[test]
fn a_prompt_that_is_not_finite_is_refused_by_its_token() {
    let setting = setting(1, 2, 2, 64);
    let (cx, rotary) = (context(setting, 1, Attention::Tensor), rotary(64));
    let k = tensor(1, (1, 2, 40, 64));
    let mut wrong = k.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    wrong[64 * (40 + 17) + 3] = f32::INFINITY;
    let wrong = Tensor::from_vec(wrong, k.shape(), &Device::Cpu).unwrap();
    for name in ["csr-4", "kivi-2", "csr+@2", "gear-4"] {
        let scheme = registry::build(name, &cx).unwrap();
        let error = scheme.after_prefill(0, &k, &wrong, &rotary).map(drop).unwrap_err();
        assert!(matches!(error, CacheError::NotFinite { token: 17, .. }), "{name}: {error}");
    }
}
