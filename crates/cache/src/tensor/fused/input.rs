//! Inputs and outputs of the kernels: checked, contiguous, on one device.

use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::cuda_backend::{CudaDType, CudaDevice};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// The common device of all `inputs` of `function`. Each input is a name, a tensor, and the type that it must have.
///
/// # Errors
/// If an input has another type, no elements, or is on another device.
pub(super) fn check(function: &str, inputs: &[(&str, &Tensor, DType)]) -> Result<CudaDevice> {
    let [(first, tensor, _), ..] = inputs else { bail!("{function}: no input") };
    let Device::Cuda(device) = tensor.device() else {
        bail!("{function}: {first} must be on a CUDA device, and are on {:?}", tensor.device().location());
    };
    for (name, tensor, dtype) in inputs {
        if tensor.dtype() != *dtype {
            bail!("{function}: {name} must be {}, and are {}", dtype.as_str(), tensor.dtype().as_str());
        }
        if tensor.elem_count() == 0 {
            bail!("{function}: {name} are empty: {:?}", tensor.dims());
        }
        if !tensor.device().same_device(&Device::Cuda(device.clone())) {
            bail!("{function}: {name} are on {:?}, and {first} on another device", tensor.device().location());
        }
    }
    Ok(device.clone())
}

/// A size as the kernels need it: a signed number of 32 bits.
///
/// # Errors
/// If the size is too large.
pub(super) fn int(name: &str, size: usize) -> Result<i32> {
    let Ok(size) = i32::try_from(size) else { bail!("{size} {name} are more than a kernel can count") };
    Ok(size)
}

/// The tensor as contiguous memory, at an offset where four floats can be read at once.
///
/// # Errors
/// If it must be copied and this fails.
pub(super) fn aligned(tensor: &Tensor) -> Result<Tensor> {
    let tensor = tensor.contiguous()?;
    if tensor.layout().start_offset().is_multiple_of(4) { Ok(tensor) } else { tensor.force_contiguous() }
}

/// The elements of a contiguous tensor on the device.
///
/// # Errors
/// If it is not contiguous, does not have type `T`, or is not on a CUDA device.
pub(super) fn view<'a, T: CudaDType + DeviceRepr>(storage: &'a Storage, layout: &Layout) -> Result<CudaView<'a, T>> {
    let (Storage::Cuda(storage), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
        bail!("a kernel reads contiguous tensors on a CUDA device");
    };
    Ok(storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// A tensor that owns the output of a kernel.
pub(super) fn output<T: CudaDType + DeviceRepr>(
    slice: CudaSlice<T>,
    device: &CudaDevice,
    shape: impl Into<Shape>,
) -> Tensor {
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}
