//! What a reader allocates, counted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering::Relaxed};

/// The system's allocator with two counters. A program that wants [`peak`] to mean something installs it with
/// `#[global_allocator]`. Memory that C libraries ask for is not seen.
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

// SAFETY: every call is handed to the system's allocator as it is; the counters are atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        grow(layout.size());
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Old and new memory may be there at once.
        grow(size);
        // SAFETY: the caller's promise, handed on.
        let moved = unsafe { System.realloc(at, layout, size) };
        shrink(layout.size());
        moved
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        shrink(layout.size());
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Forgets what was allocated before.
pub fn reset() {
    LIVE.store(0, Relaxed);
    PEAK.store(0, Relaxed);
}

/// Most bytes allocated at once since [`reset`], by all threads; 0 without the [`Counting`] allocator.
pub fn peak() -> usize {
    usize::try_from(PEAK.load(Relaxed)).unwrap_or(0)
}
