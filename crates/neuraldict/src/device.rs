//! The device on which libtorch computes, and the number of its threads.

use tch::{Cuda, Device, Kind, Tensor};

use crate::{
    config::Selection,
    error::{NeuralDictError, Result},
};

/// Environment variables and their values with which libtorch and its BLAS compute the same bits on every x86-64 CPU with
/// AVX2.
///
/// Both variables are read at the first call. NeuralDict training on the CPU does not depend on them: matrix products are those of
/// the codec, and square roots those of Rust. MKL rounds square roots differently on CPUs of other makers, whatever `MKL_CBWR` says.
/// Eigenvectors, Cholesky factors and the closed-form trainers still depend on the variables. A program should set those that the
/// user has not set, before it starts a thread.
pub const SAME_EVERYWHERE: [(&str, &str); 2] = [("MKL_CBWR", "COMPATIBLE"), ("ATEN_CPU_CAPABILITY", "avx2")];

/// Whether the codec computes the products of `tensor`, with the same bits on every CPU. This is the case for f32 on the CPU.
pub(crate) fn is_on_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float
}

/// Sets the number of CPU threads that libtorch uses inside one operation, for the whole process.
///
/// By default libtorch uses one thread per core. A training step is hundreds of operations of much less than a millisecond
/// each. OpenMP's threads wait actively at the end of each operation. If other programs use the cores too, two threads have
/// been seen to take ten times as long as one. Therefore call this with 1, and run several
/// [`train_group`](crate::train_group)s in parallel instead. The codec's matching pursuit always uses rayon's global pool.
/// Values below 1 are treated as 1. Threads that have already called libtorch keep their number, so call this first.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Number of CPU threads libtorch uses inside one operation.
#[must_use]
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Converts `auto`, `cpu`, `cuda` or `cuda:N` to a device that exists.
///
/// # Errors
/// [`NeuralDictError::Device`] for any other word, or for a CUDA device that libtorch does not find.
pub fn resolve_device(requested: &str) -> Result<Device> {
    let fail = |reason: String| Err(NeuralDictError::Device { requested: requested.to_owned(), reason });
    let index = match requested {
        "auto" => return Ok(Device::cuda_if_available()),
        "cpu" => return Ok(Device::Cpu),
        "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse::<usize>().ok()) {
            Some(index) => index,
            None => return fail("expected auto, cpu, cuda or cuda:N".to_owned()),
        },
    };
    if !Cuda::is_available() {
        return fail("this libtorch sees no CUDA device: point LIBTORCH at a CUDA build, or use cpu".to_owned());
    }
    let count = usize::try_from(Cuda::device_count()).unwrap_or(0);
    if index >= count {
        return fail(format!("only {count} CUDA device(s) found"));
    }
    Ok(Device::Cuda(index))
}

/// Replaces `Auto` by the implementation that suits the device.
#[must_use]
pub fn resolve_selection(selection: Selection, device: Device) -> Selection {
    match selection {
        Selection::Auto if device.is_cuda() => Selection::Torch,
        Selection::Auto => Selection::Codec,
        chosen => chosen,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn words_become_devices() {
        assert_eq!(resolve_device("cpu").unwrap(), Device::Cpu);
        for word in ["gpu", "cuda:", "cuda:x", "cuda:-1", ""] {
            let message = resolve_device(word).unwrap_err().to_string();
            assert!(message.contains("expected auto, cpu"), "{message}");
        }
    }

    #[test]
    fn a_missing_cuda_device_is_an_error_with_a_way_out() {
        // No machine has this many devices, so the test passes with and without CUDA.
        let message = resolve_device("cuda:4096").unwrap_err().to_string();
        assert!(message.contains("cuda:4096"), "{message}");
        assert!(message.contains("LIBTORCH") || message.contains("found"), "{message}");
    }

    #[test]
    fn auto_selection_follows_the_device() {
        assert_eq!(resolve_selection(Selection::Auto, Device::Cpu), Selection::Codec);
        assert_eq!(resolve_selection(Selection::Auto, Device::Cuda(0)), Selection::Torch);
        assert_eq!(resolve_selection(Selection::Torch, Device::Cpu), Selection::Torch);
    }
}
