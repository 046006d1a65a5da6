//! Codebooks of vector quantisers: the search in them, and the files that hold them.

pub mod codebooks;
mod nearest;
mod tied;

pub use self::codebooks::{CodebookSet, Table};
pub use self::nearest::Nearest;
pub use self::tied::TiedCodebook;
