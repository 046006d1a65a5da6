//! The ledger of a compressed cache compared with the allocator.
#![allow(clippy::unwrap_used, unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use common::{context, dictionaries, rotary, tensor};
use kvcsr_cache::conformance::Inputs;
use kvcsr_cache::{
    CsrOptions, CsrShape, Geometry, KindShape, Padding, Pattern, PrefillSnapshot, Reach, SchemeContext, registry,
};
use kvcsr_codec::measured_bits;

/// The system's allocator, with a counter of the live bytes.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed unchanged to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::SeqCst);
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
fn caches_report_the_bytes_they_allocate() {
    // One worker thread. Its scratch memory is allocated in the first of two equal runs, which is not counted.
    rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(|| {
        compare();
        batches();
        forks();
        every_example();
    });
}

/// For every registered scheme: after a prompt was taken over, and after decode steps.
fn every_example() {
    let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
    let cx = SchemeContext::untrained(geometry, 128);
    let examples = registry::entries().flat_map(|entry| entry.examples).filter(|name| !name.starts_with("dense"));
    for (name, reach) in examples.flat_map(|name| [(name, Reach::Full), (name, Reach::Sliding(40))]) {
        let rotary = rotary(64).with_reach(reach);
        let scheme = registry::build(name, &cx).unwrap();
        for tokens in [1, 300] {
            let [q, k, v] = [1, 2, 3].map(|seed| tensor(seed, (1, 3, tokens + 25, 64)));
            let x = Inputs { q, k, v };
            let Inputs { k, v, .. } = x.tokens(0..tokens).unwrap();
            let pattern = Pattern { reach, ..Pattern::default() };
            let run = |decoded: usize| {
                let before = LIVE.load(Ordering::SeqCst);
                let mut cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
                for at in tokens..tokens + decoded {
                    x.feed(cache.as_mut(), &rotary, pattern, at..at + 1).unwrap();
                }
                let allocated = LIVE.load(Ordering::SeqCst) - before;
                (cache, allocated)
            };
            for decoded in [0, 25] {
                drop(run(decoded));
                let (cache, allocated) = run(decoded);
                let reported = cache.footprint();
                assert_eq!(
                    reported.total() as isize,
                    allocated,
                    "{name}, {reach:?}, at {tokens} + {decoded} tokens: {reported:?}"
                );
            }
        }
    }
}

/// Sequences of a batch, also padded ones, and more than one head and layer.
fn batches() {
    let geometry = Geometry { layers: 2, kv_heads: 5, head_dim: 32 };
    let (rotary, cx) = (rotary(32), context(geometry, dictionaries(geometry, 64)));
    for part in ["", "+online(sampled=3,guard=5)+window(sinks=2,recent=6)+int8"] {
        let scheme = registry::build(&format!("csr-4{part}"), &cx).unwrap();
        let (k, v) = (tensor(1, (3, 5, 300, 32)), tensor(2, (3, 5, 300, 32)));
        let kind = |chunks| KindShape { atoms: 64, chunks };
        let shape = CsrShape { geometry, keys: kind(1), values: kind(2) };
        let options = CsrOptions::parse(&format!("csr-4{part}")).unwrap();
        let caches: Vec<_> = (0..2).map(|layer| scheme.after_prefill(layer, &k, &v, &rotary).unwrap()).collect();
        let held = caches.iter().map(|c| c.footprint()).sum();
        assert_eq!(shape.footprint(&options, 300, 3), held, "{part}");
        // Padding takes no memory: two of the three texts have one token.
        let mut padded = scheme.empty(0).unwrap();
        padded.absorb_padded(&k, &v, &rotary, Padding::Left(&[299, 299, 0])).unwrap();
        let codes = |f: kvcsr_codec::Footprint| f.indices + f.coefficients + f.packed + f.scales;
        let (padded, whole) = (codes(padded.footprint()), codes(caches[0].footprint()));
        assert!(padded < whole, "{part}: {padded} of {whole}");
    }
}

/// Forks of one prefill under one scheme take only the memory of their caches. Tensors and dictionaries are shared.
fn forks() {
    let geometry = Geometry { layers: 2, kv_heads: 3, head_dim: 64 };
    let (rotary, cx) = (rotary(64), context(geometry, dictionaries(geometry, 512)));
    let scheme = registry::build("csr-4", &cx).unwrap();
    let both = |seed: u64| vec![tensor(seed, (1, 3, 500, 64)), tensor(seed + 1, (1, 3, 500, 64))];
    let snapshot =
        PrefillSnapshot { keys: both(1), values: both(3), queries: Vec::new(), last_logits: tensor(5, (1, 1, 1, 9)) };
    drop(snapshot.fork(scheme.as_ref(), &rotary).unwrap());
    let before = LIVE.load(Ordering::SeqCst);
    let second = snapshot.clone();
    assert!(LIVE.load(Ordering::SeqCst) - before < 4096, "a snapshot's tensors were copied");
    let forks = [&snapshot, &second].map(|s| s.fork(scheme.as_ref(), &rotary).unwrap());
    let allocated = LIVE.load(Ordering::SeqCst) - before;
    let reported: usize = forks.iter().flatten().map(|cache| cache.footprint().total()).sum();
    assert!((allocated as usize) < reported + 8192, "{allocated} bytes for two forks of {reported}");
    assert!(scheme.shared_bytes() > 4 * reported, "what is shared is large enough to be noticed");
}

fn compare() {
    let geometry = Geometry { layers: 1, kv_heads: 3, head_dim: 64 };
    let cx = context(geometry, dictionaries(geometry, 128));
    let parts = [
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
        (8, 500, "+stop(error=0.3)"),
        (8, 500, "+stop(error=0.3)+int6+online(sampled=2,guard=2)"),
        (8, 7, "+split(k=12,v=4)"),
        (8, 300, "+rope+window(sinks=1,recent=400)"),
        (8, 1, "+window"),
        (4, 700, "+window(sinks=7,recent=90,graded=64)"),
        (4, 700, "+window(sinks=200,recent=400)"),
    ];
    let reaches = [Reach::Full, Reach::Sliding(1), Reach::Sliding(40), Reach::Sliding(130), Reach::Sliding(600)];
    for ((level, tokens, part), reach) in parts.into_iter().flat_map(|part| reaches.map(|reach| (part, reach))) {
        let rotary = rotary(64).with_reach(reach);
        let scheme = registry::build(&format!("csr-{level}{part}"), &cx).unwrap();
        let (k, v) = (tensor(1, (1, 3, tokens, 64)), tensor(2, (1, 3, tokens, 64)));
        drop(scheme.after_prefill(0, &k, &v, &rotary).unwrap());
        let before = LIVE.load(Ordering::SeqCst);
        let cache = scheme.after_prefill(0, &k, &v, &rotary).unwrap();
        let allocated = LIVE.load(Ordering::SeqCst) - before;
        let reported = cache.footprint();
        assert_eq!(
            reported.total() as isize,
            allocated,
            "csr-{level}{part} at {tokens} tokens, {reach:?}: {reported:?}"
        );

        // By formula, without a cache.
        let shape = CsrShape {
            geometry,
            keys: KindShape { atoms: 128, chunks: 1 },
            values: KindShape { atoms: 128, chunks: 2 },
        };
        let options = CsrOptions::parse(&format!("csr-{level}{part}")).unwrap();
        let formula = shape.layer(&options, tokens, 1, reach);
        if reach == Reach::Full {
            assert_eq!(formula, shape.footprint(&options, tokens, 1));
        }
        if options.stop.is_none() {
            assert_eq!(formula, reported, "csr-{level}{part} at {tokens} tokens, {reach:?}");
        } else {
            for ((part, most), (_, bytes)) in formula.parts().zip(reported.parts()) {
                assert!(bytes <= most, "{part}: {bytes} of {most}");
            }
            assert!(reported.total() < formula.total() && reported.row_lengths == formula.row_lengths);
        }
        assert_eq!(shape.nominal_bits(&options), scheme.nominal_bits().0);
        assert_eq!(shape.shared_bytes(), scheme.shared_bytes());

        if !part.is_empty() || reach != Reach::Full {
            continue;
        }
        let codes = tokens * 3 * (level + level) * 4;
        assert!(reported.total() >= codes, "{reported:?} holds less than the {codes} bytes of its codes");
        let measured = measured_bits(reported.total(), 2 * tokens * 3 * 64).0;
        let nominal = scheme.nominal_bits().0;
        assert!(measured >= nominal, "measured {measured} below nominal {nominal}");
        if tokens == 1024 {
            assert!(measured < 1.05 * nominal, "measured {measured}, nominal {nominal}");
        }
    }
}
