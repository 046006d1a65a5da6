//! One file or folder per method. Most methods are codecs of the [common base](crate::coded). [`crate::registry`] lists
//! them.

pub mod asymkv;
pub mod commvq;
pub mod cq;
pub mod csr;
pub mod csr_plus;
pub mod dense;
pub mod evict;
pub mod fp8;
pub mod gear;
pub mod ggml;
mod halves;
pub mod kivi;
pub mod lexico;
pub mod nsnquant;
mod sparse;
pub mod svdq;
pub mod turboquant;
pub(crate) mod variates;
pub mod vidkv;
