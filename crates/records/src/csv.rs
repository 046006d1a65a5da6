//! Rows as CSV (RFC 4180): the names of the fields, then one line per row. Numbers are read back exactly. A missing value is
//! an empty field.

use std::path::Path;

use csv::{ErrorKind, ReaderBuilder, StringRecord, WriterBuilder};
use serde::de::DeserializeOwned;

use crate::{
    columns::{self, Row},
    error::RecordsError,
    files,
};

/// The content of the file. Without rows it has only the names of the columns.
///
/// # Errors
/// [`RecordsError::Row`] for a row with a list or a struct as a field.
pub fn to_string<R: Row>(rows: &[R]) -> Result<String, RecordsError> {
    let refused = |error: csv::Error| RecordsError::Row { row: std::any::type_name::<R>(), reason: error.to_string() };
    let mut writer = WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.write_record(columns::names::<R>()).map_err(refused)?;
    for row in rows {
        writer.serialize(row).map_err(refused)?;
    }
    let bytes = writer.into_inner().map_err(|error| refused(error.into_error().into()))?;
    String::from_utf8(bytes)
        .map_err(|error| RecordsError::Row { row: std::any::type_name::<R>(), reason: error.to_string() })
}

/// Writes [`to_string`] to `path` through a temporary file.
///
/// # Errors
/// The errors of [`to_string`] and of [`files::write_text`].
pub fn write<R: Row>(path: &Path, rows: &[R]) -> Result<(), RecordsError> {
    files::write_text(path, &to_string(rows)?)
}

/// Removes from a table the columns for whose name `left_out` is true. Lines may have any number of fields.
///
/// # Errors
/// [`RecordsError::Row`] if the input is not text.
pub fn without_columns(table: &str, left_out: impl Fn(&str) -> bool) -> Result<String, RecordsError> {
    let refused = |error: csv::Error| RecordsError::Row { row: "a table", reason: error.to_string() };
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(table.as_bytes());
    let mut writer = WriterBuilder::new().flexible(true).from_writer(Vec::new());
    let mut names = StringRecord::new();
    for (at, line) in reader.records().enumerate() {
        let line = line.map_err(refused)?;
        if at == 0 {
            names = line.clone();
        }
        let kept = line.iter().enumerate().filter(|(column, _)| !names.get(*column).is_some_and(&left_out));
        writer.write_record(kept.map(|(_, field)| field)).map_err(refused)?;
    }
    let bytes = writer.into_inner().map_err(|error| refused(error.into_error().into()))?;
    String::from_utf8(bytes).map_err(|error| RecordsError::Row { row: "a table", reason: error.to_string() })
}

/// Reads rows. Columns are matched by their names.
///
/// # Errors
/// [`RecordsError::Io`] with the file; [`RecordsError::Csv`] with the file, line and column that is not part of a row.
pub fn read<R: DeserializeOwned>(path: &Path) -> Result<Vec<R>, RecordsError> {
    let text = std::fs::read_to_string(path).map_err(RecordsError::io(path))?;
    let mut reader = ReaderBuilder::new().from_reader(text.as_bytes());
    let wrong = |error: &csv::Error, found: &StringRecord, names: &StringRecord| RecordsError::Csv {
        path: path.to_owned(),
        line: error.position().or(found.position()).map_or(1, |position| position.line() as usize),
        reason: reason(error, found, names),
    };
    let nothing = StringRecord::new();
    let names = reader.headers().map_err(|error| wrong(&error, &nothing, &nothing))?.clone();
    reader
        .records()
        .map(|record| {
            let record = record.map_err(|error| wrong(&error, &nothing, &names))?;
            record.deserialize(Some(&names)).map_err(|error| wrong(&error, &record, &names))
        })
        .collect()
}

/// Describes the error, with the column and its text if one column is the cause.
fn reason(error: &csv::Error, found: &StringRecord, names: &StringRecord) -> String {
    match error.kind() {
        ErrorKind::UnequalLengths { expected_len, len, .. } => format!("expected {expected_len} fields, found {len}"),
        ErrorKind::Deserialize { err, .. } => {
            let column = err.field().map(|at| at as usize).and_then(|at| Some((names.get(at)?, found.get(at)?)));
            let what = err.kind();
            column.map_or_else(|| what.to_string(), |(name, text)| format!("column `{name}`: `{text}`: {what}"))
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::MemoryPoint;

    #[test]
    fn fields_with_separators_are_quoted() {
        let row = MemoryPoint { model: "a,\"b\"".into(), scheme: "FP16".into(), tokens: 1, bytes: 2 };
        assert_eq!(
            to_string(std::slice::from_ref(&row)).unwrap(),
            "model,scheme,tokens,bytes\n\"a,\"\"b\"\"\",FP16,1,2\n"
        );
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
        assert!(error.contains("column `tokens`"), "{error}");
        for (text, said) in
            [("m,s,1\n", "expected 4 fields, found 3"), ("m,s,1,2\n\"m\n", "expected 4 fields, found 1")]
        {
            std::fs::write(&path, format!("model,scheme,tokens,bytes\n{text}")).unwrap();
            let error = read::<MemoryPoint>(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        std::fs::write(&path, "model,scheme,tokens\nm,s,1\n").unwrap();
        assert!(read::<MemoryPoint>(&path).unwrap_err().to_string().contains("missing field `bytes`"));
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Numbers {
        name: String,
        whole: u64,
        share: f64,
        known: Option<f64>,
    }

    #[test]
    fn numbers_read_back_to_the_last_bit_and_empty_fields_are_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("numbers.csv");
        let shares = [0.1 + 0.2, 1.0 / 3.0, 5e-324, f64::MAX, -0.0, 1e23, 123_456_789.123_456_78, 20.0];
        let row = |(at, share): (usize, &f64)| Numbers {
            name: at.to_string(),
            whole: u64::MAX - at as u64,
            share: *share,
            known: (at % 2 == 0).then_some(-share),
        };
        let rows: Vec<Numbers> = shares.iter().enumerate().map(row).collect();
        write(&path, &rows).unwrap();
        let read: Vec<Numbers> = read(&path).unwrap();
        assert_eq!(read, rows);
        assert!(read.iter().zip(&rows).all(|(read, row)| read.share.to_bits() == row.share.to_bits()));
    }

    #[test]
    fn no_rows_leave_the_names_and_a_list_is_refused() {
        assert_eq!(to_string::<MemoryPoint>(&[]).unwrap(), "model,scheme,tokens,bytes\n");
        #[derive(Serialize, Deserialize)]
        struct Listed {
            layers: Vec<usize>,
        }
        let error = to_string(&[Listed { layers: vec![1, 2] }]).unwrap_err().to_string();
        assert!(error.contains("Listed"), "{error}");
    }
}
