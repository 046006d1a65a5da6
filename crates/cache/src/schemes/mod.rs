//! One file per scheme. [`crate::registry`] lists them.

pub mod asymkv;
pub mod coded;
pub mod csr;
pub mod dense;
pub mod fp8;
pub mod gear;
pub mod ggml;
pub mod kivi;
pub mod turboquant;
pub mod vidkv;
