//! Counts what a reader allocates.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// The system's allocator with two counters. A program in which [`peak`] must be valid installs it with
/// `#[global_allocator]`. Memory that C libraries request is not counted.
pub struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

fn grow(bytes: usize) {
    let bytes = isize::try_from(bytes).unwrap_or(isize::MAX);
    PEAK.fetch_max(LIVE.fetch_add(bytes, Relaxed).saturating_add(bytes), Relaxed);
}

fn shrink(bytes: usize) {
    LIVE.fetch_sub(isize::try_from(bytes).unwrap_or(isize::MAX), Relaxed);
}

// SAFETY: every call is passed unchanged to the system's allocator. The counters are atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old and the new memory may exist at the same time.
        grow(size);
        // SAFETY: the caller's guarantees are passed on.
        let moved = unsafe { System.realloc(at, layout, size) };
        shrink(layout.size());
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Forgets all earlier allocations.
pub fn reset() {
    LIVE.store(0, Relaxed);
    PEAK.store(0, Relaxed);
}

/// The largest number of bytes allocated at the same time since [`reset`], over all threads. It is 0 without the
/// [`Counting`] allocator.
pub fn peak() -> usize {
    usize::try_from(PEAK.load(Relaxed)).unwrap_or(0)
}
