//! Compares the ledger with a counting allocator: the reported bytes are the allocated bytes.

#![allow(clippy::unwrap_used)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::{dictionary, normal};
use kvcsr_codec::{Dictionary, Encoder, PursuitPath, SparseCodes};

thread_local! {
    /// Bytes allocated minus bytes freed by this thread.
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

struct Counting;

fn count(bytes: isize) {
    // This fails only while the thread is being destroyed, when no test measures.
    let _ = LIVE.try_with(|live| live.set(live.get() + bytes));
}

// SAFETY: every call goes to the system allocator unchanged. Counting does not allocate, because the thread-local is
// const-initialised and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller satisfies the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller satisfies the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result of `make`, and the bytes that it holds.
fn held<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    let value = make();
    (value, usize::try_from(LIVE.get() - before).unwrap())
}

#[test]
fn the_footprint_is_what_is_allocated() {
    // All work runs on this thread, because only its allocations are counted.
    let _pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build().unwrap();
    let rows = normal(10_000 * 32, 1);

    let atoms = normal(200 * 32, 2);
    let (d, bytes) = held(|| {
        let mut spare = Vec::with_capacity(10_000);
        spare.extend_from_slice(&atoms);
        Dictionary::normalised(32, spare).unwrap()
    });
    assert_eq!(d.bytes(), bytes);
    assert_eq!(bytes, 200 * 32 * 4);

    let d = dictionary(200, 32, 2);
    for path in [PursuitPath::Gram, PursuitPath::Residual] {
        // Run once before, for the buffers that gemm and rayon keep per thread.
        let warm = Encoder::with_path(d.clone(), path);
        SparseCodes::new(3).encode_append(&warm, &rows).unwrap();
        let (encoder, bytes) = held(|| Encoder::with_path(d.clone(), path));
        assert_eq!(encoder.bytes(), bytes, "{path:?}");

        for s in [1, 3, 8] {
            let mut codes = SparseCodes::new(s);
            let mut total = 0;
            for n in [1, 1, 254, 1, 63, 5000, 7, 4097] {
                let (result, grown) = held(|| codes.encode_append(&encoder, &rows[..n * 32]));
                result.unwrap();
                total += grown;
                assert_eq!(codes.footprint().total(), total, "{path:?} s {s} n {n}");
            }
            assert!(total >= codes.rows() * s * 4);
        }
    }
}
