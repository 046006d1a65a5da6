//! Where libtorch computes, and with how many threads.

use tch::{Cuda, Device, Kind, Tensor};

use crate::{
    config::Selection,
    error::{NeuralDictError, Result},
};

/// Environment variables, and the values with which libtorch and its BLAS compute the same bits on every x86-64 machine with AVX2.
///
/// Both are read at the first call. The products of training NeuralDict are the codec's, and do not depend on them; on Intel's processors
/// something else in it does depend on `MKL_CBWR` (found by a test there, not yet traced). So do eigenvectors, Cholesky factors and the
/// closed-form trainers. A program sets those that the user has not set, before it starts a thread.
pub const SAME_EVERYWHERE: [(&str, &str); 2] = [("MKL_CBWR", "COMPATIBLE"), ("ATEN_CPU_CAPABILITY", "avx2")];

/// Whether products of `tensor` are made by the codec, whose bits are the same on every machine: f32 on the CPU.
pub(crate) fn is_on_host(tensor: &Tensor) -> bool {
    tensor.device() == Device::Cpu && tensor.kind() == Kind::Float
}

/// Sets the number of CPU threads libtorch uses inside one operation, for the whole process.
///
/// libtorch otherwise takes one per core. A training step is hundreds of operations of well under a
/// millisecond, and OpenMP's threads spin at the barrier of each: when other work shares the cores,
/// two threads have been seen to take ten times as long as one. So call this with 1 and run
/// several [`train_group`](crate::train_group)s side by side instead; the codec's matching pursuit
/// uses rayon's global pool in any case. Values below 1 count as 1. Threads that have already
/// called libtorch keep their number: call this first.
pub fn set_threads(threads: usize) {
    tch::set_num_threads(i32::try_from(threads.max(1)).unwrap_or(i32::MAX));
}

/// Number of CPU threads libtorch uses inside one operation.
#[must_use]
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Turns `auto`, `cpu`, `cuda` or `cuda:N` into a device that exists.
///
/// # Errors
/// [`NeuralDictError::Device`] for another word, or for a CUDA device that libtorch does not see.
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

/// Replaces `Auto` by the pursuit that suits the device.
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
        // No machine has this many, so the test holds with and without CUDA.
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
