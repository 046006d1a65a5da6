//! Converts rows to polars data frames, for grouping, joining, pivoting and Parquet, and data frames to Markdown.
//!
//! The columns of a frame are the fields of its rows. They come from serde, so this module has no list of columns. Only this
//! module uses polars: callers go from rows to files without its types. It uses the eager part of polars. `lazy` with CSV or
//! Parquet would build 275 crates, including an HTTP stack, instead of 145, and no table here is large.

use std::{fs::File, io::Write, path::Path};

use kvcsr_records::{
    Comparison, RecordsError, SchemeSummary,
    columns::{self, Row},
    files,
};
use polars::{
    io::SerReader,
    prelude::{AnyValue, Column, DataFrame, NamedFrom, ParquetReader, ParquetWriter, Series},
};
use serde_json::Value;

use crate::{error::ReportError, ticks::number};

/// The data frame of `rows`, with one column per field: numbers, texts and booleans. A value is null if the field is null or not a
/// number. Without rows the frame is empty but has all columns.
///
/// # Errors
/// [`RecordsError::Row`] for a row with a list or a struct as a field.
pub fn frame<R: Row>(rows: &[R]) -> Result<DataFrame, ReportError> {
    let refused = |reason: String| RecordsError::Row { row: std::any::type_name::<R>(), reason };
    let objects: Vec<Value> =
        rows.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(|error| refused(error.to_string()))?;
    let columns = columns::names::<R>().iter().map(|&name| {
        let values: Vec<&Value> = objects.iter().map(|object| &object[name]).collect();
        series(name, &values).map(Column::from).ok_or_else(|| refused(format!("field `{name}`")))
    });
    Ok(DataFrame::new(rows.len(), columns.collect::<Result<Vec<Column>, _>>()?)?)
}

/// One column. Its type is that of the first value that is not null.
fn series(name: &str, values: &[&Value]) -> Option<Series> {
    let known = values.iter().find(|value| !value.is_null());
    let name = name.into();
    Some(match known {
        None | Some(Value::String(_)) => Series::new(name, values.iter().map(|v| v.as_str()).collect::<Vec<_>>()),
        Some(Value::Bool(_)) => Series::new(name, values.iter().map(|v| v.as_bool()).collect::<Vec<_>>()),
        Some(Value::Number(number)) if number.is_u64() => {
            Series::new(name, values.iter().map(|v| v.as_u64()).collect::<Vec<_>>())
        }
        Some(Value::Number(_)) => Series::new(name, values.iter().map(|v| v.as_f64()).collect::<Vec<_>>()),
        Some(Value::Array(_) | Value::Object(_) | Value::Null) => return None,
    })
}

/// Writes `rows` as Parquet, through a temporary file.
///
/// # Errors
/// The errors of [`frame`], [`RecordsError::Io`] with the file, or errors of polars.
pub fn write_parquet<R: Row>(path: &Path, rows: &[R]) -> Result<(), ReportError> {
    let mut frame = frame(rows)?;
    // Write to memory first, because the disk errors of polars do not name the file.
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame)?;
    files::replace(path, |file| Ok(file.write_all(&bytes).map_err(RecordsError::io(path))?))
}

/// Reads a table that [`write_parquet`] or another program wrote.
///
/// # Errors
/// [`RecordsError::Io`] with the file, or an error of polars if the file is not Parquet.
pub fn read_parquet(path: &Path) -> Result<DataFrame, ReportError> {
    let file = File::open(path).map_err(RecordsError::io(path))?;
    Ok(ParquetReader::new(file).finish()?)
}

/// One column of a Markdown table.
#[derive(Clone, Copy, Debug)]
pub struct MarkdownColumn<'a> {
    /// The data frame's column.
    pub name: &'a str,
    /// The heading, with the unit if there is one.
    pub heading: &'a str,
    /// Decimals of floating-point columns. `None` is the shortest form with four significant digits.
    pub decimals: Option<usize>,
}

/// The `columns` of a data frame as a Markdown table. Texts are left-aligned, numbers right-aligned.
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

/// The results table: one line per summary. `domains` adds a column for the domain.
///
/// # Errors
/// The errors of [`frame`] and [`markdown`].
pub fn results_markdown(summaries: &[SchemeSummary], domains: bool) -> Result<String, ReportError> {
    let mut columns = vec![
        column("scheme", "scheme", None),
        column("dictionary", "dictionary", None),
        column("nominal_bits", "nominal bits", Some(2)),
        column("measured_bits", "measured bits", Some(2)),
        column("recovery", "far-context recovery", Some(3)),
        column("recovery_low", "from", Some(3)),
        column("recovery_high", "to (95 %)", Some(3)),
        column("kl", "KL (nats)", Some(4)),
        column("kl_tail", "KL, 99.9th percentile", Some(3)),
        column("top1", "top-1 agreement", Some(3)),
        column("ppl", "perplexity", Some(2)),
        column("n", "documents", None),
    ];
    if domains {
        columns.insert(0, column("domain", "domain", None));
    }
    markdown(&frame(summaries)?, &columns)
}

/// The comparisons in which NeuralDict is not better, as a table below a sentence that counts them. If it is always better, only
/// the sentence.
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
    let table = markdown(&frame(&lost)?, &columns)?;
    Ok(format!("NeuralDict does not beat k-means in {} of {} comparisons:\n\n{table}", lost.len(), comparisons.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;
    use crate::{
        aggregate,
        records::{DictionarySource, EpochRow, HeldoutRow, LengthRow},
    };

    fn rows() -> Vec<HeldoutRow> {
        let row = HeldoutRow {
            id: "a, b".to_owned(),
            domain: "wiki".to_owned(),
            scheme: "csr-4".to_owned(),
            dictionary: DictionarySource::NeuralDict,
            context: 100,
            windows: 1,
            scored: 10,
            nll_sum: 20.0,
            kl_sum: 0.125,
            kl_tail: 0.5,
            top1_agree: 9,
            far: 3,
            far_kl_sum: 0.25,
            hidden_kl_sum: 1.0,
            nominal_bits: 1.0,
            measured_bits: 2.25,
            shared_bytes: 5,
            stored_bytes: 4,
            channels: 8,
            encode_ms: 1.5,
            decode_ms_per_token: None,
        };
        vec![row.clone(), HeldoutRow { dictionary: DictionarySource::KMeans, kl_sum: 0.1, ..row }]
    }

    #[test]
    fn the_results_table_shows_rounded_numbers_to_the_right() {
        let table = results_markdown(&aggregate::overall(&rows()).unwrap(), false).unwrap();
        assert_eq!(
            table,
            "| scheme | dictionary | nominal bits | measured bits | far-context recovery | from | to (95 %) | KL (nats) | KL, 99.9th percentile | top-1 agreement | perplexity | documents |\n\
             |---|---|--:|--:|--:|---|---|--:|--:|--:|--:|--:|\n\
             | csr-4 | neuraldict | 1.00 | 2.25 | 0.750 | null | null | 0.0125 | 0.500 | 0.900 | 7.39 | 1 |\n\
             | csr-4 | kmeans | 1.00 | 2.25 | 0.750 | null | null | 0.0100 | 0.500 | 0.900 | 7.39 | 1 |\n"
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
    fn columns_have_the_names_and_types_of_the_fields() {
        let frame = frame(&rows()).unwrap();
        let names: Vec<&str> = frame.get_column_names().into_iter().map(|name| name.as_str()).collect();
        assert_eq!(names, columns::names::<HeldoutRow>());
        let types =
            |names: &[&str]| names.iter().map(|name| frame.column(name).unwrap().dtype().clone()).collect::<Vec<_>>();
        use polars::prelude::DataType::{Float64, String, UInt64};
        assert_eq!(types(&["dictionary", "context", "nll_sum"]), [String, UInt64, Float64]);
        // A whole number in a floating-point field stays a floating-point number.
        assert_eq!(frame.column("nominal_bits").unwrap().f64().unwrap().get(0), Some(1.0));

        let comparison = Comparison::new("all".to_owned(), "csr-4".to_owned(), "KL", f64::NAN, 0.1);
        let frame = super::frame(&[comparison]).unwrap();
        assert_eq!(frame.column("neuraldict").unwrap().null_count(), 1);
        assert_eq!(frame.column("neuraldict_wins").unwrap().bool().unwrap().get(0), Some(false));
        let listed = LengthRow { task: "trec".to_owned(), scheme: "dense".to_owned(), buckets: Default::default() };
        assert!(super::frame(&[listed]).unwrap_err().to_string().contains("field `buckets`"));
    }

    #[test]
    fn parquet_is_whole_and_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tables/rows.parquet");
        write_parquet(&path, &rows()).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!((&bytes[..4], &bytes[bytes.len() - 4..]), (&b"PAR1"[..], &b"PAR1"[..]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(read_parquet(&path).unwrap().equals_missing(&frame(&rows()).unwrap()));
        let missing = read_parquet(&folder.path().join("none.parquet")).unwrap_err().to_string();
        assert!(missing.contains("none.parquet"), "{missing}");
    }

    #[test]
    fn no_rows_give_an_empty_frame_with_columns() {
        let frame = frame::<EpochRow>(&[]).unwrap();
        assert_eq!((frame.height(), frame.width()), (0, 12));
    }
}
