//! One file per scheme. [`crate::registry`] lists them.

pub mod coded;
pub mod csr;
pub mod dense;
pub mod fp8;
