//! Attention on codes compared with restoring everything, at random shapes. Also counts its allocations.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicIsize, Ordering};

use common::{context, dictionaries, feed, largest_difference, rotary, tensor};
use kvcsr_cache::{Geometry, registry};

/// The system's allocator, with counters: the live bytes, their maximum, and the calls.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);
static CALLS: AtomicIsize = AtomicIsize::new(0);
/// The tests of this file share the counters, so they run one at a time.
static ALONE: Mutex<()> = Mutex::new(());

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size() as isize, Ordering::SeqCst) + layout.size() as isize;
        PEAK.fetch_max(live, Ordering::SeqCst);
        CALLS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::SeqCst);
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn codes_and_restored_vectors_attend_alike() {
    let _alone = ALONE.lock().unwrap();
    let parts = [
        "",
        "+online(sampled=5,guard=9)",
        "+online(sampled=2,guard=3,sampler=uniform)+int6",
        "+window(sinks=3,recent=20)",
        "+online(sampled=4,guard=4)+window(sinks=70,recent=130)+fp8+refit",
        "+stop(error=0.3)",
        "+stop(error=0.4)+int6+online(sampled=5,guard=9)+split(k=10,v=6)",
        "+rope",
        "+rope+online(sampled=80,guard=9)+window(sinks=3,recent=20)+stop(error=0.2)",
    ];
    for (case, part) in parts.into_iter().enumerate() {
        for (heads, batch) in [((4, 4), 1), ((6, 2), 2), ((5, 1), 1), ((9, 3), 1), ((16, 2), 1)] {
            for (d, prompt) in [(64, 1), (128, 63), (64, 64), (128, 65), (64, 700)] {
                let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
                let cx = context(geometry, dictionaries(geometry, 150 + 16 * case));
                let rotary = rotary(d);
                let tokens = prompt + 20;
                let x = (
                    (tensor(1, (batch, heads.0, tokens, d)) * 4.0).unwrap(),
                    tensor(2, (batch, heads.1, tokens, d)),
                    tensor(3, (batch, heads.1, tokens, d)),
                );
                let (k, v) = (x.1.narrow(2, 0, prompt).unwrap(), x.2.narrow(2, 0, prompt).unwrap());
                let run = |name: &str| {
                    let scheme = registry::build(name, &cx).unwrap();
                    let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
                    [(0, 1), (1, 2), (2, 7), (7, 20)]
                        .map(|(from, to)| feed(cache.as_mut(), &x, &rotary, prompt + from, prompt + to))
                };
                let (codes, oracle) = (run(&format!("csr-8{part}")), run(&format!("csr-8{part}+restore")));
                for (a, b) in codes.iter().zip(&oracle) {
                    let off = largest_difference(a, b);
                    assert!(off < 1e-5, "csr-8{part} {heads:?} {batch} {d} {prompt}: {off}");
                }
            }
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let _alone = ALONE.lock().unwrap();
    let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
    let cx = context(geometry, dictionaries(geometry, 300));
    let rotary = rotary(64);
    let x = (tensor(1, (2, 9, 210, 64)), tensor(2, (2, 3, 210, 64)), tensor(3, (2, 3, 210, 64)));
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let scheme = registry::build("csr-8+online(sampled=9,guard=9)", &cx).unwrap();
            let (k, v) = (x.1.narrow(2, 0, 200).unwrap(), x.2.narrow(2, 0, 200).unwrap());
            let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
            feed(cache.as_mut(), &x, &rotary, 200, 210).flatten_all().unwrap().to_vec1::<f32>().unwrap()
        })
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

/// A decode step needs memory for a tile of keys and a sum per atom, for any context length. The number of its
/// allocations does not depend on the context length either.
#[test]
fn a_decoded_token_takes_no_memory_that_grows_with_the_context() {
    let _alone = ALONE.lock().unwrap();
    let (kv_heads, d, atoms) = (2, 64, 256);
    let geometry = Geometry { layers: 1, kv_heads, head_dim: d };
    let cx = context(geometry, dictionaries(geometry, atoms));
    let rotary = rotary(d);
    for part in ["", "+online(sampled=8,guard=8)", "+fp8", "+window(sinks=4,recent=64)", "+rope", "+stop(error=0.2)"] {
        let peak = |tokens: usize| {
            let scheme = registry::build(&format!("csr-8{part}"), &cx).unwrap();
            let x = (
                tensor(1, (1, 4, tokens, d)),
                tensor(2, (1, kv_heads, tokens, d)),
                tensor(3, (1, kv_heads, tokens, d)),
            );
            let prompt = tokens - 2;
            let (k, v) = (x.1.narrow(2, 0, prompt).unwrap(), x.2.narrow(2, 0, prompt).unwrap());
            let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
            // With the first token, the vectors of codes grow by a page. The second token finds free space.
            feed(cache.as_mut(), &x, &rotary, prompt, prompt + 1);
            let (before, calls) = (LIVE.load(Ordering::SeqCst), CALLS.load(Ordering::SeqCst));
            PEAK.store(before, Ordering::SeqCst);
            feed(cache.as_mut(), &x, &rotary, prompt + 1, prompt + 2);
            (PEAK.load(Ordering::SeqCst) - before, CALLS.load(Ordering::SeqCst) - calls)
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let ((short, few), (long, many)) = pool.install(|| {
            peak(130);
            (peak(130), peak(1090))
        });
        assert_eq!(few, many, "csr-8{part}: allocations at 130 and at 1090 tokens");
        let dense = 2 * 1090 * kv_heads * d * 4;
        assert!(long <= short + 4096, "csr-8{part}: {short} bytes at 130 tokens, {long} at 1090");
        assert!((long as usize) < dense / 4, "csr-8{part}: {long} bytes, and the dense cache is {dense}");
    }
}
