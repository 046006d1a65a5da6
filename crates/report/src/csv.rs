//! Rows as CSV (RFC 4180), for the data file beside each figure. Kept apart from polars so that notebooks need not build it.

use std::path::Path;

use crate::{
    error::ReportError,
    files,
    records::{DivergenceRow, EpochRow, FootprintRow, HeldoutRow, MemoryPoint, ReconstructionRow},
};

/// A row of a CSV file.
pub trait CsvRow {
    /// Column names, in the order of [`CsvRow::fields`].
    const HEADER: &'static [&'static str];

    /// One text per column, unquoted. Numbers in Rust's shortest form that reads back to the same value.
    fn fields(&self) -> Vec<String>;
}

/// The whole file, header first, lines ended by `\n`.
pub fn to_string<R: CsvRow>(rows: &[R]) -> String {
    let mut text = R::HEADER.join(",");
    text.push('\n');
    for row in rows {
        let fields: Vec<String> = row.fields().into_iter().map(quoted).collect();
        text.push_str(&fields.join(","));
        text.push('\n');
    }
    text
}

/// Writes [`to_string`] to `path` through a temporary file.
pub fn write<R: CsvRow>(path: &Path, rows: &[R]) -> Result<(), ReportError> {
    files::write_text(path, &to_string(rows))
}

fn quoted(field: String) -> String {
    if field.contains([',', '"', '\n', '\r']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field }
}

/// `[3, 4, 5]` as `3 4 5`: one CSV field.
pub(crate) fn spaced(layers: &[usize]) -> String {
    layers.iter().map(usize::to_string).collect::<Vec<_>>().join(" ")
}

/// Lists each field once, so that header and values cannot drift apart.
macro_rules! csv_row {
    ($row:ty { $($name:ident => $value:expr),* $(,)? }) => {
        impl CsvRow for $row {
            const HEADER: &'static [&'static str] = &[$(stringify!($name)),*];

            fn fields(&self) -> Vec<String> {
                vec![$({
                    let show: fn(&$row) -> String = $value;
                    show(self)
                }),*]
            }
        }
    };
}

csv_row!(HeldoutRow {
    id => |r| r.id.clone(),
    domain => |r| r.domain.clone(),
    scheme => |r| r.scheme.clone(),
    dictionary => |r| r.dictionary.to_string(),
    context => |r| r.context.to_string(),
    scored => |r| r.scored.to_string(),
    nll_sum => |r| r.nll_sum.to_string(),
    kl_sum => |r| r.kl_sum.to_string(),
    top1_agree => |r| r.top1_agree.to_string(),
    nominal_bits => |r| r.nominal_bits.to_string(),
    measured_bits => |r| r.measured_bits.to_string(),
    shared_bytes => |r| r.shared_bytes.to_string(),
    encode_ms => |r| r.encode_ms.to_string(),
    score_ms => |r| r.score_ms.to_string(),
});

csv_row!(FootprintRow {
    model => |r| r.model.clone(),
    scheme => |r| r.scheme.clone(),
    tokens => |r| r.tokens.to_string(),
    batch => |r| r.batch.to_string(),
    nominal_bits => |r| r.nominal_bits.to_string(),
    measured_bits => |r| r.measured_bits.to_string(),
    total => |r| r.footprint.total().to_string(),
    indices => |r| r.footprint.indices.to_string(),
    coefficients => |r| r.footprint.coefficients.to_string(),
    packed => |r| r.footprint.packed.to_string(),
    scales => |r| r.footprint.scales.to_string(),
    row_lengths => |r| r.footprint.row_lengths.to_string(),
    dense => |r| r.footprint.dense.to_string(),
    window => |r| r.footprint.window.to_string(),
    online_atoms => |r| r.footprint.online_atoms.to_string(),
    guard => |r| r.footprint.guard.to_string(),
    tables => |r| r.footprint.tables.to_string(),
    dictionaries => |r| r.dictionaries.to_string(),
});

csv_row!(ReconstructionRow {
    layer => |r| r.layer.to_string(),
    kind => |r| r.kind.to_string(),
    dictionary => |r| r.dictionary.to_string(),
    sparsity => |r| r.sparsity.to_string(),
    chunks => |r| r.chunks.to_string(),
    relative => |r| r.relative.to_string(),
    mse => |r| r.mse.to_string(),
    vectors => |r| r.vectors.to_string(),
});

csv_row!(EpochRow {
    group => |r| r.group.clone(),
    kind => |r| r.kind.to_string(),
    layers => |r| spaced(&r.layers),
    epoch => |r| r.epoch.to_string(),
    mse => |r| r.mse.to_string(),
    diversity => |r| r.diversity.to_string(),
    beta => |r| r.beta.to_string(),
    train_relative => |r| r.train_relative.to_string(),
    heldout_relative => |r| r.heldout_relative.to_string(),
    dead_atoms => |r| r.dead_atoms.to_string(),
    usage_entropy => |r| r.usage_entropy.to_string(),
    seconds => |r| r.seconds.to_string(),
});

csv_row!(DivergenceRow {
    kind => |r| r.kind.to_string(),
    layer => |r| r.layer.to_string(),
    other => |r| r.other.to_string(),
    group => |r| r.group.to_string(),
    divergence => |r| r.divergence.to_string(),
});

csv_row!(MemoryPoint {
    model => |r| r.model.clone(),
    scheme => |r| r.scheme.clone(),
    tokens => |r| r.tokens.to_string(),
    bytes => |r| r.bytes.to_string(),
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_with_separators_are_quoted() {
        let row = MemoryPoint { model: "a,\"b\"".into(), scheme: "FP16".into(), tokens: 1, bytes: 2 };
        assert_eq!(to_string(&[row]), "model,scheme,tokens,bytes\n\"a,\"\"b\"\"\",FP16,1,2\n");
    }
}
