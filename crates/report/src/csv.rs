//! Rows as CSV (RFC 4180), for the data file beside each figure. Kept apart from polars so that notebooks need not build it.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{
    error::ReportError,
    files,
    longbench::TaskCell,
    records::{
        CoefficientRow, DivergenceRow, EpochRow, FootprintRow, HeldoutRow, MemoryPoint, PatternRow, ReconstructionRow,
        RetrievalRow, SweepRow, UsageRow,
    },
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

/// Reads rows that [`write()`] or polars wrote, columns by their names. A field that reads as a number is one, so columns of text must not hold
/// bare numbers.
///
/// # Errors
/// [`ReportError::Csv`] naming the file and line of what is not a row.
pub fn read<R: DeserializeOwned>(path: &Path) -> Result<Vec<R>, ReportError> {
    let text = std::fs::read_to_string(path).map_err(ReportError::io(path))?;
    let wrong = |line: usize, reason: String| ReportError::Csv { path: path.to_owned(), line, reason };
    let mut records = records(&text).into_iter();
    let Some((_, header)) = records.next() else { return Ok(Vec::new()) };
    records
        .map(|(line, fields)| {
            if fields.len() != header.len() {
                return Err(wrong(line, format!("expected {} fields, found {}", header.len(), fields.len())));
            }
            let object: serde_json::Map<String, serde_json::Value> =
                header.iter().cloned().zip(fields.into_iter().map(value)).collect();
            serde_json::from_value(serde_json::Value::Object(object)).map_err(|error| wrong(line, error.to_string()))
        })
        .collect()
}

/// A number, or nothing: `null` in a JSON line, an empty field in a CSV file.
pub(crate) fn number_or_empty<'de, D: serde::Deserializer<'de>, N: serde::Deserialize<'de>>(
    field: D,
) -> Result<Option<N>, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Field<N> {
        Number(Option<N>),
        Text(String),
    }
    match serde::Deserialize::deserialize(field)? {
        Field::Number(number) => Ok(number),
        Field::Text(text) if text.is_empty() => Ok(None),
        Field::Text(text) => Err(serde::de::Error::custom(format!("expected a number or nothing, found `{text}`"))),
    }
}

fn value(field: String) -> serde_json::Value {
    match serde_json::from_str(&field) {
        // Read again by the standard library: JSON's reader may be off by a unit in the last place.
        Ok(serde_json::Value::Number(number)) if number.is_f64() => {
            let exact = field.parse().ok().and_then(serde_json::Number::from_f64);
            serde_json::Value::Number(exact.unwrap_or(number))
        }
        Ok(value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_))) => value,
        _ => serde_json::Value::String(field),
    }
}

/// The records of RFC 4180, each with the line that it starts on. Blank lines are none.
fn records(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut records = Vec::new();
    let (mut fields, mut field) = (Vec::new(), String::new());
    let (mut line, mut first) = (1, 1);
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            c if quoted => field.push(c),
            ',' => fields.push(std::mem::take(&mut field)),
            '\r' => {}
            '\n' => {
                end(&mut records, first, &mut fields, &mut field);
                first = line;
            }
            c => field.push(c),
        }
    }
    end(&mut records, first, &mut fields, &mut field);
    records
}

fn end(records: &mut Vec<(usize, Vec<String>)>, line: usize, fields: &mut Vec<String>, field: &mut String) {
    if fields.is_empty() && field.is_empty() {
        return;
    }
    fields.push(std::mem::take(field));
    records.push((line, std::mem::take(fields)));
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

csv_row!(RetrievalRow {
    task => |r| r.task.clone(),
    scheme => |r| r.scheme.clone(),
    tokens => |r| r.tokens.to_string(),
    depth => |r| r.depth.to_string(),
    n => |r| r.n.to_string(),
    score => |r| r.score.to_string(),
});

csv_row!(TaskCell {
    task => |r| r.task.clone(),
    scheme => |r| r.scheme.clone(),
    n => |r| r.n.to_string(),
    samples => |r| r.samples.to_string(),
    score => |r| r.score.to_string(),
    difference => |r| r.difference.map_or_else(String::new, |d| d.points.to_string()),
    low => |r| r.difference.map_or_else(String::new, |d| d.low.to_string()),
    high => |r| r.difference.map_or_else(String::new, |d| d.high.to_string()),
    measured_bits => |r| r.measured_bits.to_string(),
});

csv_row!(MemoryPoint {
    model => |r| r.model.clone(),
    scheme => |r| r.scheme.clone(),
    tokens => |r| r.tokens.to_string(),
    bytes => |r| r.bytes.to_string(),
});

csv_row!(SweepRow {
    point => |r| r.point.clone(),
    scheme => |r| r.scheme.clone(),
    nominal_bits => |r| r.nominal_bits.to_string(),
    measured_bits => |r| r.measured_bits.to_string(),
    shared_bytes => |r| r.shared_bytes.to_string(),
    perplexity => |r| r.perplexity.to_string(),
    kl => |r| r.kl.to_string(),
    top1_percent => |r| r.top1_percent.to_string(),
});

csv_row!(PatternRow {
    layer => |r| r.layer.to_string(),
    kind => |r| r.kind.to_string(),
    head => |r| r.head.to_string(),
    token => |r| r.token.to_string(),
    chunk => |r| r.chunk.to_string(),
    atom => |r| r.atom.to_string(),
    atoms => |r| r.atoms.to_string(),
    coefficient => |r| r.coefficient.to_string(),
});

csv_row!(CoefficientRow {
    layer => |r| r.layer.to_string(),
    kind => |r| r.kind.to_string(),
    step => |r| r.step.to_string(),
    low => |r| r.low.to_string(),
    high => |r| r.high.to_string(),
    share => |r| r.share.to_string(),
});

csv_row!(UsageRow {
    layer => |r| r.layer.to_string(),
    kind => |r| r.kind.to_string(),
    atom => |r| r.atom.to_string(),
    uses => |r| r.uses.to_string(),
});

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn fields_with_separators_are_quoted() {
        let row = MemoryPoint { model: "a,\"b\"".into(), scheme: "FP16".into(), tokens: 1, bytes: 2 };
        assert_eq!(to_string(std::slice::from_ref(&row)), "model,scheme,tokens,bytes\n\"a,\"\"b\"\"\",FP16,1,2\n");
    }

    #[test]
    fn what_was_written_is_read_and_a_wrong_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("memory.csv");
        let rows = vec![MemoryPoint { model: "a,\"b\"".into(), scheme: "FP16".into(), tokens: 1, bytes: 2 }];
        write(&path, &rows).unwrap();
        assert_eq!(read::<MemoryPoint>(&path).unwrap(), rows);
        std::fs::write(&path, "model,scheme,tokens,bytes\nm,s,1,2\nm,s,many,2\n").unwrap();
        let error = read::<MemoryPoint>(&path).unwrap_err().to_string();
        assert!(error.contains("memory.csv") && error.contains("memory.csv:3") && error.contains("many"), "{error}");
    }
}
