//! Rows that are written to disk as they are made, by a stage that may be killed and continued.

use std::{
    collections::HashSet,
    fs::{self, File},
    hash::Hash,
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
};

use kvcsr_codec::atomic;
use serde::{Serialize, de::DeserializeOwned};

use crate::error::RecordsError;

/// A file of JSON lines to which a running stage appends its rows. Each row is identified by a key.
///
/// Appended rows are on disk. After a kill, a new run finds the rows of the previous run, without a last line that was cut
/// off. It asks [`Journal::contains`] which rows are still missing.
///
/// ```
/// use kvcsr_records::{Journal, MemoryPoint};
///
/// let folder = tempfile::tempdir()?;
/// let (mut journal, left) = Journal::open(&folder.path().join("points.jsonl"), |row: &MemoryPoint| row.tokens)?;
/// assert!(left.is_empty());
/// journal.append(&MemoryPoint { model: "Llama2-7B".into(), scheme: "FP16".into(), tokens: 1000, bytes: 524_288_000 })?;
/// assert!(journal.contains(&1000) && !journal.contains(&2000));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Journal<R, K> {
    path: PathBuf,
    key: fn(&R) -> K,
    done: HashSet<K>,
}

impl<R: Serialize + DeserializeOwned, K: Eq + Hash> Journal<R, K> {
    /// Opens the file `path`, or creates it and its folder. Returns the rows that it already holds.
    ///
    /// # Errors
    /// [`RecordsError::Io`]. [`RecordsError::Json`] and [`RecordsError::Line`], with the line's number, for a line that is not a
    /// row or that repeats a key.
    pub fn open(path: &Path, key: fn(&R) -> K) -> Result<(Self, Vec<R>), RecordsError> {
        Self::open_checked(path, key, |_, repeats| {
            if repeats { Err("the same row stands on an earlier line already".to_owned()) } else { Ok(()) }
        })
    }

    /// Does the same as [`Journal::open`] with another check. `check` gets each row, and whether the row repeats a key.
    ///
    /// # Errors
    /// The same as [`Journal::open`], and [`RecordsError::Line`] with the text that `check` returns.
    pub fn open_checked(
        path: &Path,
        key: fn(&R) -> K,
        check: impl Fn(&R, bool) -> Result<(), String>,
    ) -> Result<(Self, Vec<R>), RecordsError> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(RecordsError::io(folder))?;
        }
        let bytes = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            read => read.map_err(RecordsError::io(path))?,
        };
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let (mut rows, mut done) = (Vec::new(), HashSet::new());
        for (index, line) in bytes[..whole].split(|&byte| byte == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let (path, line_number) = (path.to_owned(), index + 1);
            let row: R = match serde_json::from_slice(line) {
                Ok(row) => row,
                Err(source) => return Err(RecordsError::Json { path, line: line_number, source }),
            };
            let repeats = !done.insert(key(&row));
            check(&row, repeats).map_err(|reason| RecordsError::Line { path, line: line_number, reason })?;
            rows.push(row);
        }
        let is_new = !path.exists();
        if whole < bytes.len() || is_new {
            let file = File::options().create(true).append(true).open(path).map_err(RecordsError::io(path))?;
            file.set_len(whole as u64).map_err(RecordsError::io(path))?;
        }
        if let Some(folder) = path.parent().filter(|folder| is_new && !folder.as_os_str().is_empty()) {
            atomic::sync_folder(folder).map_err(RecordsError::io(path))?;
        }
        Ok((Self { path: path.to_owned(), key, done }, rows))
    }

    /// Whether the journal has a row with this key.
    pub fn contains(&self, key: &K) -> bool {
        self.done.contains(key)
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a row, makes sure that it is on disk, and returns it as [`Journal::open`] will read it. A number may differ in
    /// its last digit after it was written and read.
    ///
    /// # Errors
    /// [`RecordsError::Io`], or [`RecordsError::Json`] for a row that JSON cannot represent.
    pub fn append(&mut self, row: &R) -> Result<R, RecordsError> {
        let line = self.done.len() + 1;
        // Do this first: with a number that JSON cannot represent, the file could not be opened again.
        let read = serde_json::to_vec(row).and_then(|text| serde_json::from_slice(&text));
        let read = read.map_err(|source| RecordsError::Json { path: self.path.clone(), line, source })?;
        self.append_all(std::slice::from_ref(row))?;
        Ok(read)
    }

    /// Appends rows in one write and makes sure that they are on disk.
    ///
    /// # Errors
    /// The same as [`Journal::append`].
    pub fn append_all(&mut self, rows: &[R]) -> Result<(), RecordsError> {
        let mut lines = Vec::new();
        for row in rows {
            let line = self.done.len() + 1;
            serde_json::to_writer(&mut lines, row).map_err(|source| RecordsError::Json {
                path: self.path.clone(),
                line,
                source,
            })?;
            lines.push(b'\n');
        }
        // The file is opened for each write, because a stage may have hundreds of journals.
        let write = || {
            let mut file = File::options().append(true).open(&self.path)?;
            file.write_all(&lines)?;
            file.sync_data()
        };
        write().map_err(RecordsError::io(&self.path))?;
        self.done.extend(rows.iter().map(self.key));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::MemoryPoint;

    fn point(tokens: usize) -> MemoryPoint {
        MemoryPoint { model: "m".into(), scheme: "s".into(), tokens, bytes: 2 * tokens as u64 }
    }

    fn open(path: &Path) -> Result<(Journal<MemoryPoint, usize>, Vec<MemoryPoint>), RecordsError> {
        Journal::open(path, |row: &MemoryPoint| row.tokens)
    }

    #[test]
    fn a_killed_run_goes_on_with_whole_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/points.jsonl");
        let (mut journal, left) = open(&path).unwrap();
        assert!(left.is_empty() && path.is_file());
        journal.append(&point(1)).unwrap();
        journal.append_all(&[point(2), point(3)]).unwrap();
        let whole = fs::read(&path).unwrap();

        // The run is killed while it writes the last row, or the end of its line.
        for cut in [20, 1] {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let (mut journal, left) = open(&path).unwrap();
            assert_eq!(left, [point(1), point(2)]);
            assert!(journal.contains(&2) && !journal.contains(&3));
            journal.append(&point(3)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        assert_eq!(open(&path).unwrap().1, [point(1), point(2), point(3)]);
    }

    #[test]
    fn a_row_is_returned_as_it_will_be_read() {
        #[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
        struct Row {
            at: usize,
            x: f64,
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let open = || Journal::open(&path, |row: &Row| row.at).unwrap();
        let mut journal = open().0;
        let mut changed = 0;
        let returned: Vec<Row> = (0..500)
            .map(|at| {
                let row = Row { at, x: 16.0 * (at as f64 * 0.754_877_666).fract() / 3.0 };
                let read = journal.append(&row).unwrap();
                changed += usize::from(read != row);
                read
            })
            .collect();
        assert_eq!(open().1, returned);
        println!("{changed} of 500 numbers are read otherwise than they were written");
    }

    #[test]
    fn lines_that_are_no_rows_or_repeat_one_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("points.jsonl");
        let row = serde_json::to_string(&point(1)).unwrap();
        for (second, named) in [("{}", "missing field"), (row.as_str(), "earlier line")] {
            fs::write(&path, format!("{row}\n{second}\n")).unwrap();
            let error = open(&path).unwrap_err().to_string();
            assert!(error.contains("points.jsonl:2: ") && error.contains(named), "{error}");
        }
        let odd = |row: &MemoryPoint, _| if row.tokens % 2 == 1 { Ok(()) } else { Err("an even row".to_owned()) };
        fs::write(&path, serde_json::to_string(&point(4)).unwrap() + "\n").unwrap();
        let error = Journal::open_checked(&path, |row: &MemoryPoint| row.tokens, odd).unwrap_err().to_string();
        assert!(error.ends_with("points.jsonl:1: an even row"), "{error}");
    }
}
