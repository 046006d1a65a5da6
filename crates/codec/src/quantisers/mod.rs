//! Quantisers: scalar levels, vector codebooks, the search for the nearest centroid, and files for them.

pub mod codebooks;
mod lloyd_max;
mod nearest;
mod tied;

pub use self::codebooks::{CodebookSet, Table};
pub use self::lloyd_max::{LloydMax, WIDEST, lloyd_max};
pub use self::nearest::Nearest;
pub use self::tied::TiedCodebook;
