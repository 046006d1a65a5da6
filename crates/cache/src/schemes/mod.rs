//! One file per scheme. [`crate::registry`] lists them.

pub mod csr;
pub mod dense;
