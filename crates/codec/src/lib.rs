//! Dictionaries, matching pursuit, sparse codes and the byte ledger of CSR.
//!
//! CSR (Zhang et al., AAAI 2025, arXiv 2412.11741) replaces each key or value vector of an
//! attention cache by `s` (index, coefficient) pairs over a learned dictionary. This crate
//! implements only that codec. Its functions take and return slices and use no tensor framework.
//! The cache, the trainer and the tools can therefore share one implementation and its tests.
//!
//! ```
//! use std::sync::Arc;
//! use kvcsr_codec::{Dictionary, Encoder, SparseCodes};
//!
//! # fn main() -> Result<(), kvcsr_codec::CodecError> {
//! // Three atoms of width 2; `normalised` scales the last one to (0.6, 0.8).
//! let atoms = vec![1.0, 0.0, 0.0, 1.0, 3.0, 4.0];
//! let dictionary = Arc::new(Dictionary::normalised(2, atoms)?);
//! let encoder = Encoder::new(dictionary.clone());
//!
//! let mut codes = SparseCodes::new(2);
//! codes.encode_append(&encoder, &[1.0, 2.0])?;
//! // <x, d_2> = 2.2 is the largest correlation; it leaves the residual (-0.32, 0.24).
//! assert_eq!(codes.indices(), [2, 0]);
//!
//! let mut restored = [0.0; 2];
//! codes.decode_into(&dictionary, 0..1, &mut restored)?;
//! assert!((restored[0] - 1.0).abs() < 1e-3 && (restored[1] - 1.76).abs() < 1e-3);
//! assert_eq!(codes.footprint().total(), 256 * 2 * (2 + 2)); // one page of rows
//! # Ok(())
//! # }
//! ```
//!
//! # Glossary
//!
//! | paper | here |
//! |---|---|
//! | `D`, `d_n` | [`Dictionary`], [`Dictionary::atom`] |
//! | `N` | [`Dictionary::len`] |
//! | `d`, the width of an atom, `d_h / s_n` | [`Dictionary::width`] |
//! | `s`, the MP-level | `sparsity` |
//! | `s_n` | [`DictionaryGroup::chunks`] |
//! | `d_h` | [`DictionarySet::head_dim`] |
//! | `MP(x, D, s)` | [`Encoder::encode`] |
//! | `r` | one row of [`SparseCodes`] |
//! | `c_g`, `i_g` | a coefficient and its index |
//! | `R_g` | residual |
//! | `X^ = D r`, de-sparse | [`SparseCodes::decode_into`] |
//! | ReNorm | [`Dictionary::normalised`] |
//! | merged layers, `M_K`, `M_V` | [`DictionaryGroup::layers`] |
//! | MSE (Table 3) | [`ReconstructionError::mse`] |
//! | online part, sampling and Guard | [`OnlineAtoms`], [`Atoms`] |
//!
//! # Files
//!
//! [`shard`] files hold calibration vectors. [`set`] files hold trained dictionaries. [`codebooks`] files hold what other
//! calibrated methods learn. All are safetensors files. A reader does not trust their content and checks it. A writer
//! uses a temporary name and renames the file when it is complete.

mod codes;
mod dictionary;
mod error;
mod files;
mod footprint;
pub mod kernels;
mod pursuit;
mod quantisers;

pub use codes::{
    BitReader, BitWriter, EIGHT, pack_bits, pack_small, packed_bytes, unpack_bits, unpack_small, unpack_wide,
};
pub use codes::{CodeBuffers, CodeLayout, Codes, CoefficientFormat, START_ROWS, SparseCodes, index_bits, stop_early};
pub use codes::{Coder, Odds, RangeDecoder, RangeEncoder};
pub use codes::{add_atom_sums, add_weighted_codes, atom_products, score_codes};
pub use codes::{from_e4m3, to_e4m3};
pub use dictionary::{Atoms, Dictionary, MAX_ATOMS, OnlineAtoms, refit};
pub use error::CodecError;
pub use files::{DictionaryGroup, DictionarySet, Shard, ShardHeader, ShardWriter, atomic, set, shard};
pub use footprint::{BitsPerChannel, Footprint, Kind, measured_bits, nominal_bits};
pub use pursuit::{Encoder, GRAM_BUDGET, OrthogonalCodes, PursuitPath, relative_residuals};
pub use pursuit::{ReconstructionError, reconstruction_error};
pub use quantisers::{CodebookSet, LloydMax, Nearest, Table, TiedCodebook, WIDEST, codebooks, lloyd_max};
