//! What methods that code over atoms have in common.

use std::cell::Cell;

use kvcsr_codec::{Atoms, CodeBuffers};

thread_local! {
    /// Codes of a tile, unpacked.
    pub(super) static BUFFERS: Cell<CodeBuffers> = Cell::default();
}

/// Takes the products of all atoms with `queries` `(rows, D)`, if scoring `tokens` keys of `chunks` rows of `sparsity` atoms
/// with them is less work than restoring these keys.
pub(super) fn prepare(
    atoms: Atoms<'_>,
    chunks: usize,
    sparsity: usize,
    queries: &[f32],
    tokens: usize,
    table: &mut Vec<f32>,
) -> bool {
    let (d, codes) = (chunks * atoms.width(), chunks * sparsity);
    let rows = queries.len() / d;
    if rows * (atoms.len() * d + tokens * codes) >= tokens * (sparsity * d + rows * d) {
        return false;
    }
    kvcsr_codec::atom_products(atoms, chunks, queries, table);
    true
}
