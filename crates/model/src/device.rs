//! The device on which a model runs and the dtype of its matrices, by their usual names.

use std::fmt;
use std::panic::catch_unwind;
use std::str::FromStr;

use candle_core::{DType, Device};

use crate::error::{ModelError, Result};

/// The device called `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the first CUDA device if this build and this machine
/// have one, and otherwise the CPU.
///
/// # Errors
/// [`ModelError::Device`] for any other name, and for a device that does not exist.
pub fn find_device(name: &str) -> Result<Device> {
    let refuse = |reason: String| Err(ModelError::Device { name: name.to_owned(), reason });
    let index = match (name, name.strip_prefix("cuda")) {
        ("cpu", _) => return Ok(Device::Cpu),
        ("auto", _) => return Ok(cuda(0).unwrap_or(Device::Cpu)),
        (_, Some("")) => 0,
        (_, Some(index)) => match index.strip_prefix(':').map(str::parse::<usize>) {
            Some(Ok(index)) => index,
            _ => return refuse("expected auto, cpu or cuda:N with a whole number N".to_owned()),
        },
        _ => return refuse("expected auto, cpu or cuda:N".to_owned()),
    };
    cuda(index).or_else(refuse)
}

/// A CUDA device, or the reason why there is none.
fn cuda(index: usize) -> std::result::Result<Device, String> {
    if !cfg!(feature = "cuda") {
        return Err(
            "this build runs models on the CPU only; build with `--features cuda`, or take auto or cpu".to_owned()
        );
    }
    // If the driver is a stub, or older than the build, it may panic instead of returning an error.
    match catch_unwind(|| Device::new_cuda(index)) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(format!("it is not there: {error}")),
        Err(_) => Err("no CUDA driver was found".to_owned()),
    }
}

/// The precision in which a model's matrices are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// The dtype of the checkpoint, or f32 if the checkpoint is quantised.
    #[default]
    Auto,
    /// 4 bytes per weight.
    F32,
    /// 2 bytes per weight, 8 bits of mantissa.
    Bf16,
    /// The same as [`Precision::Bf16`], but activations are also rounded to bf16 in products of many tokens. This
    /// halves the time of a prefill if the CPU has a fast product of bf16 pairs.
    Bf16Fast,
    /// 2 bytes per weight, 11 bits of mantissa, up to 65504.
    F16,
}

/// How a decoder stores its matrices, and how it multiplies by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The dtype in which they are stored: f32, bf16 or f16.
    pub dtype: DType,
    /// Whether activations may be rounded to bf16 in products with bf16 matrices.
    pub rounded: bool,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = format!("{:?}", self.dtype).to_lowercase();
        write!(f, "{dtype}{}", if self.rounded { "-fast" } else { "" })
    }
}

impl From<DType> for Kept {
    fn from(dtype: DType) -> Self {
        Self { dtype, rounded: false }
    }
}

impl Precision {
    /// How the matrices of a checkpoint are stored, if the checkpoint has the dtype `stored`
    /// ([`crate::Checkpoint::dtype`]).
    pub fn resolve(self, stored: DType) -> Kept {
        match self {
            Self::Auto => stored.into(),
            Self::F32 => DType::F32.into(),
            Self::Bf16 => DType::BF16.into(),
            Self::Bf16Fast => Kept { dtype: DType::BF16, rounded: true },
            Self::F16 => DType::F16.into(),
        }
    }
}

const NAMES: [(&str, Precision); 5] = [
    ("auto", Precision::Auto),
    ("f32", Precision::F32),
    ("bf16", Precision::Bf16),
    ("bf16-fast", Precision::Bf16Fast),
    ("f16", Precision::F16),
];

impl FromStr for Precision {
    type Err = ModelError;

    fn from_str(name: &str) -> Result<Self> {
        let known = NAMES.iter().find(|(known, _)| *known == name).map(|(_, precision)| *precision);
        known.ok_or_else(|| {
            let (expected, found) = ("auto, f32, bf16, bf16-fast or f16".to_owned(), name.to_owned());
            ModelError::Input { what: "dtype", expected, found }
        })
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(_, precision)| precision == self).map_or("", |(name, _)| name);
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn devices_that_are_not_there_say_why() {
        assert!(find_device("cpu").unwrap().is_cpu());
        find_device("auto").unwrap();
        let refused = |name: &str| find_device(name).unwrap_err().to_string();
        for name in ["gpu", "cuda:", "cuda:x", "cuda0", "CPU", ""] {
            assert!(refused(name).contains("expected auto, cpu or cuda:N"), "{name}");
        }
        // No machine has this many devices.
        let absent = refused("cuda:9999");
        assert!(absent.starts_with("device `cuda:9999`") && !absent.contains("expected"), "{absent}");
        if !cfg!(feature = "cuda") {
            assert!(absent.contains("--features cuda"), "{absent}");
        }
    }

    #[test]
    fn dtypes_are_read_and_written() {
        for (name, precision) in NAMES {
            assert_eq!(name.parse::<Precision>().unwrap(), precision);
            assert_eq!(precision.to_string(), name);
            assert!(precision == Precision::Auto || precision.resolve(DType::F32).to_string() == name);
        }
        assert_eq!(Precision::Auto.resolve(DType::BF16), DType::BF16.into());
        assert_eq!(Precision::F32.resolve(DType::BF16), DType::F32.into());
        assert_eq!(Precision::Bf16Fast.resolve(DType::F32), Kept { dtype: DType::BF16, rounded: true });
        assert!("fp16".parse::<Precision>().unwrap_err().to_string().contains("auto, f32, bf16, bf16-fast or f16"));
    }
}
