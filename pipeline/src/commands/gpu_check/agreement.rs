//! Checks that a device gives the same results as the host.

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use kvcsr_cache::conformance::{Inputs, Promises, Setting, check_on, largest_difference};
use kvcsr_cache::tensor::Attention;
use kvcsr_cache::{Geometry, Pattern, Rotary, SchemeContext, registry};

use super::Check;

/// The schemes that are checked: the paper's, ours and peers.
const SCHEMES: [&str; 9] =
    ["csr-4", "csr-8+online", "csr-8+int4+window", "csr+@2", "csr+@1", "kivi-2", "kivi-4+centre", "gear-4", "q4_0"];
/// Atoms of the untrained dictionaries.
const ATOMS: usize = 256;
/// The largest allowed difference between two orders of the same sums, with f16 coefficients in between: see
/// `crates/cache/tests/tensors.rs`.
const NEAR: f32 = 2e-3;

/// Checks the contract of a cache on the device.
pub(super) fn conformance(check: &mut Check) -> Result<()> {
    let schemes = if check.quick { &SCHEMES[..1] } else { &SCHEMES[..] };
    for name in schemes {
        let entry = registry::entries().find(|entry| entry.examples.contains(name));
        let promises = Promises {
            prefill_as_decoded: entry.is_some_and(|entry| entry.prefill_as_decoded),
            refuses_not_finite: false,
            refuses_changed_padding: true,
            rounding: NEAR,
            prefill_rounding: NEAR,
            padded_rounding: Some(NEAR),
            ..Promises::default()
        };
        let device = check.device.clone();
        let build = |geometry: Geometry| {
            let cx = SchemeContext::untrained(geometry, ATOMS).with_attention(Attention::Tensor, &device);
            registry::build(name, &cx)
        };
        let outcomes = check_on(&device, build, promises);
        let failed: Vec<String> =
            outcomes.iter().filter(|outcome| !outcome.passed()).map(ToString::to_string).collect();
        let found = if failed.is_empty() { format!("{} checks", outcomes.len()) } else { failed.join("; ") };
        check.add("conformance", name, found, "", failed.is_empty());
    }
    Ok(())
}

/// Compares the attention of ten tokens after a prompt with that of the SIMD kernels of the host.
pub(super) fn with_the_host(check: &mut Check) -> Result<()> {
    let setting = Setting { batch: 1, heads: 8, kv_heads: 2, head_dim: 128 };
    for dtype in [DType::F32, DType::BF16] {
        for name in SCHEMES {
            let on = |device: &Device, attention| -> Result<Tensor> {
                let cx = SchemeContext::untrained(setting.geometry(1), ATOMS).with_attention(attention, device);
                let scheme = registry::build(name, &cx)?;
                let rotary = Rotary::new(setting.head_dim, 10_000.0, 400, device)?;
                let x = Inputs::random(setting, 310)?;
                let cast = |x: &Tensor| x.to_dtype(dtype);
                let x = Inputs { q: cast(&x.q)?, k: cast(&x.k)?, v: cast(&x.v)? }.on(device)?;
                let prompt = x.tokens(0..300)?;
                let mut cache = scheme.after_prefill(0, &prompt.k, &prompt.v, &rotary)?;
                let mut out = Vec::new();
                for at in 300..310 {
                    out.push(x.feed(cache.as_mut(), &rotary, Pattern::default(), at..at + 1)?);
                }
                Ok(Tensor::cat(&out, 2)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
            };
            let (host, there) = (on(&Device::Cpu, Attention::Codes)?, on(&check.device, Attention::Tensor)?);
            let off = largest_difference(&host, &there)?;
            let most = if dtype == DType::BF16 { 1e-2 } else { NEAR };
            let what = format!("{name}, {dtype:?}");
            check.add("agreement", what, format!("off by {off:.1e}"), format!("allowed {most:.0e}"), off <= most);
        }
    }
    Ok(())
}
