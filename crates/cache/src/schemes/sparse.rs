//! Code shared by the methods that code over atoms.

use std::cell::Cell;

use kvcsr_codec::{Atoms, CodeBuffers};

thread_local! {
    /// Buffers for the unpacked codes of a tile.
    pub(super) static BUFFERS: Cell<CodeBuffers> = Cell::default();
}

/// Computes the products of all atoms with `queries` `(rows, D)`, if they make scoring cheaper than restoring. The
/// scores are for `tokens` keys, with `chunks` rows of `sparsity` atoms each.
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
