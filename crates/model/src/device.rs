//! Which device a model runs on, and which dtype its matrices are kept in, by the names people give them.

use std::fmt;
use std::panic::catch_unwind;
use std::str::FromStr;

use candle_core::{DType, Device};

use crate::error::{ModelError, Result};

/// The device called `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is the first CUDA device where this build and machine
/// have one, else the CPU.
///
/// # Errors
/// [`ModelError::Device`] for another name, and for a device that is not there.
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

/// A CUDA device, or why there is none.
fn cuda(index: usize) -> std::result::Result<Device, String> {
    if !cfg!(feature = "cuda") {
        return Err(
            "this build runs models on the CPU only; build with `--features cuda`, or take auto or cpu".to_owned()
        );
    }
    // A driver that is a stub, or older than the build, may panic instead of failing.
    match catch_unwind(|| Device::new_cuda(index)) {
        Ok(Ok(device)) => Ok(device),
        Ok(Err(error)) => Err(format!("it is not there: {error}")),
        Err(_) => Err("no CUDA driver was found".to_owned()),
    }
}

/// What a model's matrices are kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// As the checkpoint has them; f32 for quantised ones.
    #[default]
    Auto,
    /// 4 bytes a weight.
    F32,
    /// 2 bytes a weight, 8 bits of mantissa.
    Bf16,
    /// As [`Precision::Bf16`], and activations rounded to bf16 as well in products of many tokens: half the time of a
    /// prefill where the CPU multiplies pairs of bf16.
    Bf16Fast,
    /// 2 bytes a weight, 11 bits of mantissa, up to 65504.
    F16,
}

/// How a decoder keeps its matrices and multiplies by them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// What they are stored in: f32, bf16 or f16.
    pub dtype: DType,
    /// Whether activations may be rounded to bf16 where they meet bf16 matrices.
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
    /// How the matrices of a checkpoint stored in `stored` ([`crate::Checkpoint::dtype`]) are kept.
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
        // No machine has so many.
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
