//! Rows and summaries as polars data frames; CSV, Parquet and Markdown.
//!
//! polars stays behind this module: callers need none of its types to go from rows to files.

use std::{fs::File, path::Path};

use polars::{
    df,
    error::PolarsError,
    io::{SerReader, SerWriter, csv::write::CsvWriter},
    prelude::{AnyValue, DataFrame, ParquetReader, ParquetWriter},
};

use crate::{
    ablation::AblationRow,
    aggregate::{Comparison, SchemeSummary},
    csv::spaced,
    error::ReportError,
    files,
    records::{DivergenceRow, EpochRow, HeldoutRow, MemoryPoint, ReconstructionRow},
    ticks::number,
};

/// Rows that make a table, one column per field.
pub trait Tabular: Sized {
    /// The data frame of `rows`. No rows give an empty frame with all columns.
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError>;
}

fn strings<'r, R>(rows: &'r [R], of: impl Fn(&'r R) -> &'r str) -> Vec<&'r str> {
    rows.iter().map(of).collect()
}

fn counts<R>(rows: &[R], of: impl Fn(&R) -> usize) -> Vec<u64> {
    rows.iter().map(|row| of(row) as u64).collect()
}

fn floats<R>(rows: &[R], of: impl Fn(&R) -> f64) -> Vec<f64> {
    rows.iter().map(of).collect()
}

fn built(frame: Result<DataFrame, PolarsError>) -> Result<DataFrame, ReportError> {
    frame.map_err(ReportError::from)
}

impl Tabular for HeldoutRow {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        built(df![
            "id" => strings(rows, |r| &r.id),
            "domain" => strings(rows, |r| &r.domain),
            "scheme" => strings(rows, |r| &r.scheme),
            "dictionary" => strings(rows, |r| r.dictionary.as_str()),
            "context" => counts(rows, |r| r.context),
            "scored" => counts(rows, |r| r.scored),
            "nll_sum" => floats(rows, |r| r.nll_sum),
            "kl_sum" => floats(rows, |r| r.kl_sum),
            "top1_agree" => counts(rows, |r| r.top1_agree),
            "nominal_bits" => floats(rows, |r| r.nominal_bits),
            "measured_bits" => floats(rows, |r| r.measured_bits),
            "shared_bytes" => counts(rows, |r| r.shared_bytes),
            "encode_ms" => floats(rows, |r| r.encode_ms),
            "score_ms" => floats(rows, |r| r.score_ms),
        ])
    }
}

impl Tabular for ReconstructionRow {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let kinds: Vec<String> = rows.iter().map(|row| row.kind.to_string()).collect();
        built(df![
            "layer" => counts(rows, |r| r.layer),
            "kind" => kinds,
            "dictionary" => strings(rows, |r| r.dictionary.as_str()),
            "sparsity" => counts(rows, |r| r.sparsity),
            "chunks" => counts(rows, |r| r.chunks),
            "relative" => floats(rows, |r| r.relative),
            "mse" => floats(rows, |r| r.mse),
            "vectors" => counts(rows, |r| r.vectors),
        ])
    }
}

impl Tabular for EpochRow {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let kinds: Vec<String> = rows.iter().map(|row| row.kind.to_string()).collect();
        let layers: Vec<String> = rows.iter().map(|row| spaced(&row.layers)).collect();
        built(df![
            "group" => strings(rows, |r| &r.group),
            "kind" => kinds,
            "layers" => layers,
            "epoch" => counts(rows, |r| r.epoch),
            "mse" => floats(rows, |r| r.mse),
            "diversity" => floats(rows, |r| r.diversity),
            "beta" => floats(rows, |r| r.beta),
            "train_relative" => floats(rows, |r| r.train_relative),
            "heldout_relative" => floats(rows, |r| r.heldout_relative),
            "dead_atoms" => counts(rows, |r| r.dead_atoms),
            "usage_entropy" => floats(rows, |r| r.usage_entropy),
            "seconds" => floats(rows, |r| r.seconds),
        ])
    }
}

impl Tabular for AblationRow {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let kinds: Vec<String> = rows.iter().map(|row| row.kind.to_string()).collect();
        let weighted: Vec<Option<f64>> = rows.iter().map(|row| row.weighted).collect();
        built(df![
            "section" => strings(rows, |r| &r.section),
            "name" => strings(rows, |r| &r.name),
            "layer" => counts(rows, |r| r.layer),
            "kind" => kinds,
            "atoms" => counts(rows, |r| r.atoms),
            "sparsity" => counts(rows, |r| r.sparsity),
            "chunks" => counts(rows, |r| r.chunks),
            "vectors" => counts(rows, |r| r.vectors),
            "epochs" => counts(rows, |r| r.epochs),
            "relative" => floats(rows, |r| r.relative),
            "mse" => floats(rows, |r| r.mse),
            "weighted" => weighted,
            "seconds" => floats(rows, |r| r.seconds),
        ])
    }
}

impl Tabular for DivergenceRow {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let kinds: Vec<String> = rows.iter().map(|row| row.kind.to_string()).collect();
        built(df![
            "kind" => kinds,
            "layer" => counts(rows, |r| r.layer),
            "other" => counts(rows, |r| r.other),
            "group" => counts(rows, |r| r.group),
            "divergence" => floats(rows, |r| r.divergence),
        ])
    }
}

impl Tabular for MemoryPoint {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let bytes: Vec<u64> = rows.iter().map(|row| row.bytes).collect();
        built(df![
            "model" => strings(rows, |r| &r.model),
            "scheme" => strings(rows, |r| &r.scheme),
            "tokens" => counts(rows, |r| r.tokens),
            "bytes" => bytes,
        ])
    }
}

impl Tabular for SchemeSummary {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        built(df![
            "domain" => strings(rows, |s| s.domain.as_deref().unwrap_or("all")),
            "scheme" => strings(rows, |s| &s.scheme),
            "dictionary" => strings(rows, |s| s.dictionary.as_str()),
            "documents" => counts(rows, |s| s.documents),
            "context" => counts(rows, |s| s.context),
            "scored" => counts(rows, |s| s.scored),
            "nominal_bits" => floats(rows, |s| s.nominal_bits),
            "measured_bits" => floats(rows, |s| s.measured_bits),
            "shared_bytes" => counts(rows, |s| s.shared_bytes),
            "perplexity" => floats(rows, |s| s.perplexity),
            "kl" => floats(rows, |s| s.kl),
            "top1_percent" => floats(rows, |s| s.top1_percent),
            "encode_ms_per_1k" => floats(rows, |s| s.encode_ms_per_1k),
            "score_ms_per_token" => floats(rows, |s| s.score_ms_per_token),
        ])
    }
}

impl Tabular for Comparison {
    fn frame(rows: &[Self]) -> Result<DataFrame, ReportError> {
        let wins: Vec<bool> = rows.iter().map(Comparison::neuraldict_wins).collect();
        built(df![
            "place" => strings(rows, |c| &c.place),
            "scheme" => strings(rows, |c| &c.scheme),
            "metric" => strings(rows, |c| c.metric),
            "neuraldict" => floats(rows, |c| c.neuraldict),
            "kmeans" => floats(rows, |c| c.kmeans),
            "neuraldict_wins" => wins,
        ])
    }
}

/// Writes `rows` as CSV, through a temporary file.
pub fn write_csv<R: Tabular>(path: &Path, rows: &[R]) -> Result<(), ReportError> {
    let mut frame = R::frame(rows)?;
    files::replace(path, |unfinished| {
        let file = File::create(unfinished).map_err(ReportError::io(unfinished))?;
        CsvWriter::new(file).finish(&mut frame)?;
        Ok(())
    })
}

/// Writes `rows` as Parquet, through a temporary file.
pub fn write_parquet<R: Tabular>(path: &Path, rows: &[R]) -> Result<(), ReportError> {
    let mut frame = R::frame(rows)?;
    files::replace(path, |unfinished| {
        let file = File::create(unfinished).map_err(ReportError::io(unfinished))?;
        ParquetWriter::new(file).finish(&mut frame)?;
        Ok(())
    })
}

/// Reads a table that [`write_parquet`] or another program wrote.
///
/// # Errors
/// [`ReportError::Io`] naming the file, or polars' own for a file that is not Parquet.
pub fn read_parquet(path: &Path) -> Result<DataFrame, ReportError> {
    let file = File::open(path).map_err(ReportError::io(path))?;
    Ok(ParquetReader::new(file).finish()?)
}

/// One column of a Markdown table.
#[derive(Clone, Copy, Debug)]
pub struct MarkdownColumn<'a> {
    /// The data frame's column.
    pub name: &'a str,
    /// The heading, with the unit where there is one.
    pub heading: &'a str,
    /// Digits after the point for floating-point columns; `None` for the shortest form of four significant digits.
    pub decimals: Option<usize>,
}

/// A data frame's `columns` as a Markdown table: text left, numbers right.
pub fn markdown(frame: &DataFrame, columns: &[MarkdownColumn<'_>]) -> Result<String, ReportError> {
    let mut lines = vec![String::from("|"), String::from("|")];
    lines.resize(frame.height() + 2, String::from("|"));
    for column in columns {
        let data = frame.column(column.name)?;
        lines[0] += &format!(" {} |", column.heading);
        lines[1] += if data.dtype().is_primitive_numeric() { "--:|" } else { "---|" };
        for (row, line) in lines[2..].iter_mut().enumerate() {
            *line += &format!(" {} |", cell(&data.get(row)?, column.decimals));
        }
    }
    Ok(lines.join("\n") + "\n")
}

fn cell(value: &AnyValue<'_>, decimals: Option<usize>) -> String {
    match (value, decimals) {
        (AnyValue::Float64(value), _) if !value.is_finite() => value.to_string(),
        (AnyValue::Float64(value), Some(decimals)) => format!("{value:.decimals$}"),
        (AnyValue::Float64(value), None) => number(*value),
        (other, _) => other.get_str().map_or_else(|| other.to_string(), |text| text.replace('|', "\\|")),
    }
}

fn column<'a>(name: &'a str, heading: &'a str, decimals: Option<usize>) -> MarkdownColumn<'a> {
    MarkdownColumn { name, heading, decimals }
}

/// The results table: one line per summary. `domains` adds the domain's column.
pub fn results_markdown(summaries: &[SchemeSummary], domains: bool) -> Result<String, ReportError> {
    let mut columns = vec![
        column("scheme", "scheme", None),
        column("dictionary", "dictionary", None),
        column("nominal_bits", "nominal bits", Some(2)),
        column("measured_bits", "measured bits", Some(2)),
        column("perplexity", "perplexity", Some(2)),
        column("kl", "KL (nats)", Some(4)),
        column("top1_percent", "top-1 agreement (%)", Some(1)),
        column("documents", "documents", None),
    ];
    if domains {
        columns.insert(0, column("domain", "domain", None));
    }
    markdown(&SchemeSummary::frame(summaries)?, &columns)
}

/// The comparisons that NeuralDict does not win, as a table under a sentence that counts them; the sentence alone where it wins all.
pub fn losses_markdown(comparisons: &[Comparison]) -> Result<String, ReportError> {
    let lost: Vec<Comparison> = crate::aggregate::not_better(comparisons).into_iter().cloned().collect();
    if comparisons.is_empty() {
        return Ok("No pair of NeuralDict and k-means was measured.\n".to_owned());
    }
    if lost.is_empty() {
        return Ok(format!("NeuralDict beats k-means in all {} comparisons.\n", comparisons.len()));
    }
    let columns = [
        column("place", "where", None),
        column("scheme", "scheme", None),
        column("metric", "metric", None),
        column("neuraldict", "NeuralDict", None),
        column("kmeans", "k-means", None),
    ];
    let table = markdown(&Comparison::frame(&lost)?, &columns)?;
    Ok(format!("NeuralDict does not beat k-means in {} of {} comparisons:\n\n{table}", lost.len(), comparisons.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::{aggregate, csv, records::DictionarySource};

    fn rows() -> Vec<HeldoutRow> {
        let row = HeldoutRow {
            id: "a, b".to_owned(),
            domain: "wiki".to_owned(),
            scheme: "csr-4".to_owned(),
            dictionary: DictionarySource::NeuralDict,
            context: 100,
            scored: 10,
            nll_sum: 20.0,
            kl_sum: 0.125,
            top1_agree: 9,
            nominal_bits: 1.0,
            measured_bits: 2.25,
            shared_bytes: 5,
            encode_ms: 1.5,
            score_ms: 2.5,
        };
        vec![row.clone(), HeldoutRow { dictionary: DictionarySource::KMeans, kl_sum: 0.1, ..row }]
    }

    #[test]
    fn the_results_table_shows_rounded_numbers_to_the_right() {
        let table = results_markdown(&aggregate::overall(&rows()).unwrap(), false).unwrap();
        assert_eq!(
            table,
            "| scheme | dictionary | nominal bits | measured bits | perplexity | KL (nats) | top-1 agreement (%) | documents |\n\
             |---|---|--:|--:|--:|--:|--:|--:|\n\
             | csr-4 | neuraldict | 1.00 | 2.25 | 7.39 | 0.0125 | 90.0 | 1 |\n\
             | csr-4 | kmeans | 1.00 | 2.25 | 7.39 | 0.0100 | 90.0 | 1 |\n"
        );
    }

    #[test]
    fn losses_are_told() {
        let comparisons = aggregate::compare_heldout(&aggregate::overall(&rows()).unwrap());
        let text = losses_markdown(&comparisons).unwrap();
        assert!(text.starts_with("NeuralDict does not beat k-means in 1 of 1 comparisons:"), "{text}");
        assert!(text.contains("| all | csr-4 | KL | 0.0125 | 0.01 |"), "{text}");
        assert!(losses_markdown(&[]).unwrap().starts_with("No pair"));
    }

    #[test]
    fn both_csv_writers_agree_on_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.csv");
        write_csv(&path, &rows()).unwrap();
        let polars = fs::read_to_string(&path).unwrap();
        let own = csv::to_string(&rows());
        assert_eq!(polars.lines().next(), own.lines().next());
        assert!(polars.contains("\"a, b\",wiki,csr-4,neuraldict,100,10,20.0,0.125,9"), "{polars}");
    }

    #[test]
    fn parquet_is_whole_and_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tables/rows.parquet");
        write_parquet(&path, &rows()).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((&bytes[..4], &bytes[bytes.len() - 4..]), (&b"PAR1"[..], &b"PAR1"[..]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(read_parquet(&path).unwrap().equals_missing(&HeldoutRow::frame(&rows()).unwrap()));
        let missing = read_parquet(&folder.path().join("none.parquet")).unwrap_err().to_string();
        assert!(missing.contains("none.parquet"), "{missing}");
    }

    #[test]
    fn no_rows_give_an_empty_frame_with_columns() {
        let frame = EpochRow::frame(&[]).unwrap();
        assert_eq!((frame.height(), frame.width()), (0, 12));
    }
}
