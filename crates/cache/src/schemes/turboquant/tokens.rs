//! The codes of one sequence. Attention does not rotate keys and values back: it rotates queries instead of keys, and
//! rotates only the sums of values.

use std::ops::Range;
use std::sync::Arc;

use kvcsr_codec::Footprint;
use kvcsr_codec::kernels::{Isa, Matrix, MatrixMut, multiply, multiply_add};

use super::{Coded, Part, TURNED};
use crate::coded::{Block, CodedTokens, HeadTokens, PerHead, ScoresCodes, SumsCodes};

/// The keys or values of one head.
struct Head {
    part: Arc<Part>,
    coded: Coded,
}

impl HeadTokens for Head {
    fn append(&mut self, rows: &[f32], _tokens: usize, _prompt: bool) {
        self.part.encode(rows, &mut self.coded);
    }

    fn restore(&self, tokens: Range<usize>, out: &mut [f32]) {
        self.part.decode(&self.coded, tokens, out);
    }

    fn footprint(&self) -> Footprint {
        self.coded.footprint()
    }

    fn drop_first(&mut self, tokens: usize) {
        self.part.drop_first(&mut self.coded, tokens);
    }
}

/// The keys or values of one sequence.
pub(super) struct Tokens {
    part: Arc<Part>,
    heads: PerHead<Head>,
}

impl Tokens {
    /// An empty store for `heads` heads.
    pub(super) fn new(part: &Arc<Part>, heads: usize) -> Self {
        let head = |_| Head { part: part.clone(), coded: Coded::default() };
        Self { part: part.clone(), heads: PerHead::new(heads, head) }
    }
}

impl CodedTokens for Tokens {
    fn append(&mut self, block: &Block<'_>) {
        self.heads.append(block);
    }

    fn restore(&self, head: usize, tokens: Range<usize>, out: &mut [f32]) {
        self.heads.restore(head, tokens, out);
    }

    fn scores_codes(&self) -> Option<&dyn ScoresCodes> {
        Some(self)
    }

    fn sums_codes(&self) -> Option<&dyn SumsCodes> {
        Some(self)
    }

    fn footprint(&self) -> Footprint {
        let tables = size_of::<Self>() - size_of::<PerHead<Head>>();
        self.heads.footprint() + Footprint { tables, ..Footprint::default() }
    }

    fn drop_first(&mut self, tokens: usize) {
        self.heads.drop_first(tokens);
    }
}

/// The table holds the rotated queries, `(rows, D)`.
impl ScoresCodes for Tokens {
    fn prepare(&self, queries: &[f32], _tokens: usize, table: &mut Vec<f32>) -> bool {
        table.resize(queries.len(), 0.0);
        self.part.rotation.apply(queries, table);
        true
    }

    fn score(&self, head: usize, tokens: Range<usize>, table: &[f32], out: &mut [f32]) {
        let (n, d, rows) = (tokens.len(), self.part.size, table.len() / self.part.size);
        let mut turned = TURNED.take();
        self.part.unpack(&self.heads.head(head).coded, tokens, &mut turned);
        if rows < 4 {
            Isa::detect().scores(&turned, table, d, out);
        } else {
            let queries = Matrix::new(table, rows, d).transposed();
            multiply(MatrixMut::new(out, n, rows), Matrix::new(&turned, n, d), queries);
        }
        TURNED.set(turned);
    }
}

/// The sums are those of rotated values, `(D, rows)`.
impl SumsCodes for Tokens {
    fn sums(&self, rows: usize, _tokens: usize) -> usize {
        self.part.size * rows
    }

    fn add(&self, head: usize, tokens: Range<usize>, weights: &[f32], rows: usize, sums: &mut [f32]) {
        let (n, d) = (tokens.len(), self.part.size);
        let mut turned = TURNED.take();
        self.part.unpack(&self.heads.head(head).coded, tokens, &mut turned);
        let values = Matrix::new(&turned, n, d).transposed();
        multiply_add(MatrixMut::new(sums, d, rows), values, Matrix::new(weights, n, rows));
        TURNED.set(turned);
    }

    fn finish(&self, _head: usize, sums: &[f32], rows: usize, out: &mut [f32]) {
        let d = self.part.size;
        let (mut own, mut back) = (vec![0f32; rows * d], vec![0f32; rows * d]);
        for (row, own) in own.chunks_exact_mut(d).enumerate() {
            own.iter_mut().zip(sums.iter().skip(row).step_by(rows)).for_each(|(to, sum)| *to = *sum);
        }
        self.part.rotation.undo(&own, &mut back);
        out.iter_mut().zip(&back).for_each(|(out, x)| *out += x);
    }
}
