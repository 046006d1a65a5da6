//! The memory of a process that holds a cache of 32768 tokens, compared with the ledger. The test is alone in its file,
//! because nothing else may allocate at the same time.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use candle_core::Device;
use common::{context, dictionaries, largest_difference, tensor};
use kvcsr_cache::{AttendCx, Geometry, Pattern, Rotary, registry};

const TOKENS: usize = 32_768;

/// The number of bytes of this process that are in memory.
fn resident() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

/// Makes the C library return every larger block to the system when it is freed. Otherwise it keeps some of them for
/// later, and the resident memory is not the memory held. Returns false if there is no such switch.
fn give_memory_back() -> bool {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn mallopt(parameter: i32, value: i32) -> i32;
        }
        const M_MMAP_THRESHOLD: i32 = -3;
        // SAFETY: the signature is that of the GNU C library, which accepts this parameter at any time.
        unsafe { mallopt(M_MMAP_THRESHOLD, 64 * 1024) == 1 }
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    false
}

#[test]
fn a_cache_of_32768_tokens_takes_the_memory_it_reports() {
    if !give_memory_back() || resident().is_none() {
        let why = "resident memory is measured on Linux with the GNU C library only";
        kvcsr_fixtures::skip("a_cache_of_32768_tokens_takes_the_memory_it_reports", why);
        return;
    }
    let (kv_heads, d) = (6, 64);
    let geometry = Geometry { layers: 1, kv_heads, head_dim: d };
    let cx = context(geometry, dictionaries(geometry, 64));
    let rotary = Rotary::new(d, 10_000.0, TOKENS + 8, &Device::Cpu).unwrap();
    let one = |seed, heads| tensor(seed, (1, heads, 1, d));
    let mut outputs = Vec::new();
    let dense = 2 * TOKENS * kv_heads * d * 2;
    for name in ["csr-16", "csr-16+restore", "csr-8+online+int8+window(sinks=4,recent=4096)", "csr-16+stop(error=0.2)"]
    {
        let scheme = registry::build(name, &cx).unwrap();
        let build = |tokens: usize| {
            let (k, v) = (tensor(1, (1, kv_heads, tokens, d)), tensor(2, (1, kv_heads, tokens, d)));
            scheme.after_prefill(0, &k, &v, &rotary).unwrap()
        };
        // Threads start and allocate their scratch memory before the count.
        drop(build(2048));
        let before = resident().unwrap();
        let mut cache = build(TOKENS);
        let measured = resident().unwrap().saturating_sub(before);
        let reported = cache.footprint().total();
        let off = measured as f64 / reported as f64 - 1.0;
        println!("{name}: {measured} bytes resident, {reported} reported, {:+.2} %; f16 takes {dense}", 100.0 * off);
        assert!(off.abs() < 0.05, "{name}: {measured} bytes resident, {reported} reported");
        let cx = AttendCx { start: TOKENS, rotary: &rotary, scale: 0.125, pattern: Pattern::default() };
        outputs.push(cache.attend(&one(3, 12), &one(4, kv_heads), &one(5, kv_heads), &cx).unwrap());
        assert_eq!(cache.len(), TOKENS + 1);
    }
    let off = largest_difference(&outputs[0], &outputs[1]);
    assert!(off < 1e-5, "attention on codes at {TOKENS} tokens is off by {off}");
}
