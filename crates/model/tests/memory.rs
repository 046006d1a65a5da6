//! The memory of a prefill and of a loaded model, measured by an allocator that counts.

#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use candle_core::{DType, Device};
use common::{dense, random_weights, tiny_arch};
use kvcsr_cache::{SchemeContext, registry};
use kvcsr_model::{Arch, Decoder, HfCheckpoint, Logits, TensorMap};

struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(HELD.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The largest number of bytes held at the same time while `run` ran, beyond those held before, and the result of
/// `run`.
fn peak<T>(run: impl FnOnce() -> T) -> (usize, T) {
    let before = HELD.load(Relaxed);
    PEAK.store(before, Relaxed);
    let result = run();
    (PEAK.load(Relaxed) - before, result)
}

/// One test, because the allocations of others would be counted too.
#[test]
fn memory_is_bounded() {
    a_prefill_in_one_piece_grows_with_its_length_not_with_its_square();
    a_compressed_prefill_holds_one_layer_uncompressed();
    matrices_are_held_once_in_their_dtype();
}

fn a_prefill_in_one_piece_grows_with_its_length_not_with_its_square() {
    const TOKENS: usize = 16_384;
    let arch = Arch { layers: 1, max_positions: 2 * TOKENS, ..tiny_arch() };
    let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 5)), &Device::Cpu).unwrap();
    let of = |tokens: usize| {
        let ids: Vec<u32> = (0..tokens as u32).map(|i| i * i % 64).collect();
        let ids = decoder.row(&ids).unwrap();
        let mut caches = dense(&decoder);
        peak(|| decoder.forward(&ids, &mut caches, Logits::Last).unwrap()).0
    };
    let (half, whole) = (of(TOKENS / 2), of(TOKENS));
    let scores = TOKENS * TOKENS * size_of::<f32>();
    eprintln!(
        "{TOKENS} tokens: {} KiB, half of them {} KiB; one head's scores would be {} KiB",
        whole >> 10,
        half >> 10,
        scores >> 10
    );
    assert!(whole < scores / 16, "{whole}");
    assert!((whole as f64) < 2.2 * half as f64, "{half} {whole}");
}

fn a_compressed_prefill_holds_one_layer_uncompressed() {
    const TOKENS: usize = 4096;
    let of = |layers: usize| {
        let arch = Arch { layers, max_positions: TOKENS, ..tiny_arch() };
        let decoder = Decoder::new(arch.clone(), &TensorMap(random_weights(&arch, 5)), &Device::Cpu).unwrap();
        let ids: Vec<u32> = (0..TOKENS as u32).map(|i| i * i % 64).collect();
        // Deletion stores so little that the caches do not count.
        let scheme = registry::build("evict(sinks=4,recent=60)", &SchemeContext::new(decoder.geometry())).unwrap();
        let whole = peak(|| decoder.prefill(&ids, 256).unwrap()).0;
        (peak(|| decoder.prefill_compressed(&ids, 256, scheme.as_ref()).unwrap()).0, whole)
    };
    let arch = tiny_arch();
    let layer = 2 * TOKENS * arch.kv_heads * arch.head_dim * size_of::<f32>();
    let ((few, few_whole), (many, many_whole)) = (of(2), of(12));
    eprintln!(
        "{TOKENS} tokens, {} KiB a layer: 2 layers {} KiB, 12 layers {} KiB; uncompressed {} and {} KiB",
        layer >> 10,
        few >> 10,
        many >> 10,
        few_whole >> 10,
        many_whole >> 10
    );
    assert!(many < few + layer, "{few} {many}");
    assert!(many_whole > few_whole + 9 * layer, "{few_whole} {many_whole}");
}

fn matrices_are_held_once_in_their_dtype() {
    let arch = Arch { hidden: 256, intermediate: 512, layers: 8, vocab: 4096, ..tiny_arch() };
    let folder = tempfile::tempdir().unwrap();
    let weights = random_weights(&arch, 6).into_iter();
    let weights =
        weights.map(|(name, w)| (name, w.to_dtype(DType::BF16).unwrap())).collect::<std::collections::HashMap<_, _>>();
    let stored: usize = weights.values().map(|w| 2 * w.elem_count()).sum();
    candle_core::safetensors::save(&weights, folder.path().join("model.safetensors")).unwrap();
    drop(weights);
    let config = format!(
        r#"{{"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": {}, "head_dim": {},
        "num_key_value_heads": {}, "intermediate_size": 512, "vocab_size": 4096, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 64, "tie_word_embeddings": {}}}"#,
        arch.heads, arch.head_dim, arch.kv_heads, arch.tied_head
    );
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    let checkpoint = HfCheckpoint::open(folder.path()).unwrap();
    for (dtype, bytes) in [(DType::BF16, stored), (DType::F32, 2 * stored)] {
        let (most, decoder) = peak(|| checkpoint.decoder_in(&Device::Cpu, dtype).unwrap());
        let kept = HELD.load(Relaxed);
        drop(decoder);
        let kept = kept - HELD.load(Relaxed);
        eprintln!("{dtype:?}: {} KiB of weights, {} KiB kept, {} KiB at most", bytes >> 10, kept >> 10, most >> 10);
        assert!(kept < bytes + bytes / 10, "{dtype:?}: {kept} for {bytes}");
        // The rest is the largest tensor, and one layer per thread that is being loaded.
        assert!(most < bytes + stored, "{dtype:?}: {most} for {bytes}");
    }
}
