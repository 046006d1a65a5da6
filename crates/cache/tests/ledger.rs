//! The ledger of a compressed cache against the allocator.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use common::{context, dictionaries, feed, rotary, tensor};
use kvcsr_cache::{Geometry, SchemeContext, registry};
use kvcsr_codec::measured_bits;

/// The system's allocator, with a count of the bytes that are live.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::SeqCst);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn caches_report_the_bytes_they_allocate() {
    // One worker: its scratch space comes to life in the first of two equal runs, outside of the count.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        compare();
        every_example();
    });
}

/// Of every registered scheme: after taking a prompt over, and after decoding on from there.
fn every_example() {
    let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
    let (rotary, cx) = (rotary(64), SchemeContext::untrained(geometry, 128));
    let examples = registry::entries().flat_map(|entry| entry.examples).filter(|name| !name.starts_with("dense"));
    for name in examples {
        let scheme = registry::build(name, &cx).unwrap();
        for tokens in [1, 300] {
            let x = (
                tensor(1, (1, 3, tokens + 25, 64)),
                tensor(2, (1, 3, tokens + 25, 64)),
                tensor(3, (1, 3, tokens + 25, 64)),
            );
            let (k, v) = (x.1.narrow(2, 0, tokens).unwrap(), x.2.narrow(2, 0, tokens).unwrap());
            let run = |decoded: usize| {
                let before = LIVE.load(Ordering::SeqCst);
                let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
                for at in tokens..tokens + decoded {
                    feed(cache.as_mut(), &x, &rotary, at, at + 1);
                }
                let allocated = LIVE.load(Ordering::SeqCst) - before;
                (cache, allocated)
            };
            for decoded in [0, 25] {
                drop(run(decoded));
                let (cache, allocated) = run(decoded);
                let reported = cache.footprint();
                assert_eq!(reported.total() as isize, allocated, "{name} at {tokens} + {decoded} tokens: {reported:?}");
            }
        }
    }
}

fn compare() {
    let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
    let rotary = rotary(64);
    let cx = context(geometry, dictionaries(geometry, 128));
    for (level, tokens, part) in [
        (4, 1, ""),
        (8, 300, ""),
        (16, 1024, ""),
        (8, 300, "+online(sampled=5,guard=70)"),
        (4, 3, "+online(sampled=1,sampler=worst)"),
        (8, 300, "+window(sinks=7,recent=90)"),
        (8, 20, "+window(sinks=7,recent=90)"),
        (8, 500, "+fp8"),
        (4, 1, "+int6"),
        (8, 500, "+online(sampled=2,guard=2)+int4+window(recent=3)+refit"),
    ] {
        let scheme = registry::build(&format!("csr-{level}{part}"), &cx).unwrap();
        let (k, v) = (tensor(1, (1, 3, tokens, 64)), tensor(2, (1, 3, tokens, 64)));
        drop(scheme.after_prefill(0, &k, &v, &rotary).unwrap());
        let before = LIVE.load(Ordering::SeqCst);
        let cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
        let allocated = LIVE.load(Ordering::SeqCst) - before;
        let reported = cache.footprint();
        assert_eq!(reported.total() as isize, allocated, "csr-{level}{part} at {tokens} tokens: {reported:?}");

        if !part.is_empty() {
            continue;
        }
        let codes = tokens * 3 * (level + level) * 4;
        assert!(reported.total() >= codes, "{reported:?} holds less than the {codes} bytes of its codes");
        let measured = measured_bits(reported.total(), tokens, 3, 64, 1).0;
        let nominal = scheme.nominal_bits().0;
        assert!(measured >= nominal, "measured {measured} below nominal {nominal}");
        if tokens == 1024 {
            assert!(measured < 1.05 * nominal, "measured {measured}, nominal {nominal}");
        }
    }
}
