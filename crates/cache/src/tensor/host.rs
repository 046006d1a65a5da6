//! The only function that copies numbers from a device to the host, and a count of its calls.

use std::cell::Cell;

use candle_core::{DType, Tensor};

use crate::CacheError;

thread_local! {
    static READS: Cell<u64> = const { Cell::new(0) };
}

/// The numbers of `x`, in order. On a device this waits for all earlier work, so a decode step must not call it.
///
/// # Errors
/// If they cannot be copied.
pub fn read_to_host(x: &Tensor) -> Result<Vec<f32>, CacheError> {
    READS.set(READS.get() + 1);
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// How many times this thread called [`read_to_host`].
pub fn host_reads() -> u64 {
    READS.get()
}
