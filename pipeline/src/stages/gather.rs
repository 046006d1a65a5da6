//! Joins the outputs of slices as text: a number that is parsed and written again may differ in its last digit.

use std::collections::{BTreeSet, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kvcsr_eval::longbench::predictions::Predictions;
use serde_json::Value;

use crate::atomic;
use crate::stage::Part;

/// Copies the files of these names from `from` to `to`, in their order, each whole or not at all. Missing files are left out.
pub fn copy(from: &Path, to: &Path, names: &[String]) -> Result<()> {
    for name in names {
        let source = from.join(name);
        if !source.is_file() {
            continue;
        }
        let target = to.join(name);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let bytes = std::fs::read(&source).with_context(|| source.display().to_string())?;
        atomic::write(&target, &bytes)?;
    }
    Ok(())
}

/// The lines of a file of rows; none if it is not there.
fn lines(path: &Path) -> Result<Vec<String>> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => Ok(read.with_context(|| path.display().to_string())?.lines().map(str::to_owned).collect()),
    }
}

/// The key of a row: the values of these members.
fn key(path: &Path, line: &str, members: &[&str]) -> Result<String> {
    let row: Value = serde_json::from_str(line).with_context(|| path.display().to_string())?;
    let values: Vec<String> = members.iter().map(|member| row[*member].to_string()).collect();
    Ok(values.join(" "))
}

/// The lines of `file` of all slices, each with the index of its slice. Each unit of work has `per_unit` lines, and each of `n`
/// slices has every `n`-th unit. So one unit of each slice in turn gives the order of a run without slices.
///
/// # Errors
/// If a file cannot be read.
pub fn interleaved(slices: &[PathBuf], file: &Path, per_unit: usize) -> Result<Vec<(usize, String)>> {
    let parts = slices.iter().map(|slice| lines(&slice.join(file))).collect::<Result<Vec<_>>>()?;
    let mut units: Vec<_> = parts.iter().map(|part| part.chunks(per_unit.max(1))).collect();
    let mut all = Vec::new();
    loop {
        let turn: Vec<Option<&[String]>> = units.iter_mut().map(Iterator::next).collect();
        if turn.iter().all(Option::is_none) {
            return Ok(all);
        }
        for (at, unit) in turn.into_iter().enumerate() {
            all.extend(unit.unwrap_or_default().iter().map(|line| (at, line.clone())));
        }
    }
}

/// Adds the rows of `file` of all slices to the same file in `dir`, in the order of [`interleaved`]. Rows that are already in
/// `dir` stay. `members` are the key of a row. Each unit of work has one row.
///
/// # Errors
/// If two slices have the same row, or a file cannot be read or written.
pub fn rows(slices: &[PathBuf], file: &Path, dir: &Path, members: &[&str]) -> Result<()> {
    let target = dir.join(file);
    let mut whole = lines(&target)?;
    let there: HashSet<String> = whole.iter().map(|line| key(&target, line, members)).collect::<Result<_>>()?;
    let mut added = HashSet::new();
    for (at, line) in interleaved(slices, file, 1)? {
        let path = slices[at].join(file);
        let key = key(&path, &line, members)?;
        if there.contains(&key) {
            continue;
        }
        if !added.insert(key.clone()) {
            bail!("{}: {key} was made in another part already", path.display());
        }
        whole.push(line);
    }
    if !added.is_empty() {
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        atomic::write(&target, whole.iter().map(|line| format!("{line}\n")).collect::<String>().as_bytes())?;
    }
    Ok(())
}

/// The same for the answers in the folder `name` of all slices. Every scheme's file of a task has a row for every record.
///
/// # Errors
/// As [`rows`]; and if a line is no prediction.
pub fn predictions(slices: &[PathBuf], name: &Path, dir: &Path) -> Result<()> {
    let mut files = BTreeSet::new();
    for slice in slices {
        let found = Predictions::open(&slice.join(name))?;
        files.extend(found.files().map(|path| path.strip_prefix(slice).unwrap_or(path).to_owned()));
    }
    files.iter().try_for_each(|file| rows(slices, file, dir, &["_id"]))
}

/// Keeps, of every task, only the records of one slice.
pub fn keep(part: Part, work: &mut [kvcsr_eval::longbench::record::Work<'_>]) {
    for task in work {
        task.records = part.of(std::mem::take(&mut task.records));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Slices with these lines in `rows.jsonl`, and the folder of the whole.
    fn slices(parts: &[&[&str]]) -> (tempfile::TempDir, Vec<PathBuf>, PathBuf) {
        let home = tempfile::tempdir().unwrap();
        let folder = |name: String| {
            let dir = home.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            dir
        };
        let whole = folder("whole".to_owned());
        let dirs = parts.iter().enumerate().map(|(at, lines)| {
            let dir = folder(at.to_string());
            std::fs::write(dir.join("rows.jsonl"), lines.iter().map(|line| format!("{line}\n")).collect::<String>())
                .unwrap();
            dir
        });
        let dirs = dirs.collect();
        (home, dirs, whole)
    }

    /// A row with a number that would change if it were parsed and rounded.
    fn row(id: &str) -> String {
        format!("{{\"id\":\"{id}\",\"x\":3.3549107142857144}}")
    }

    #[test]
    fn rows_come_together_in_the_order_of_the_units_and_keep_their_text() {
        let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(row);
        let (_home, dirs, whole) = slices(&[&[&a, &c, &e], &[&b, &d]]);
        let file = Path::new("rows.jsonl");
        let expected: String = [&a, &b, &c, &d, &e].map(|line| format!("{line}\n")).concat();
        // The whole has no rows, some rows, or all rows.
        for there in [String::new(), format!("{a}\n{b}\n"), expected.clone()] {
            std::fs::write(whole.join(file), there).unwrap();
            rows(&dirs, file, &whole, &["id"]).unwrap();
            assert_eq!(std::fs::read_to_string(whole.join(file)).unwrap(), expected);
        }
    }

    #[test]
    fn units_of_several_rows_stay_together() {
        let all = ["a", "b", "c", "d", "e", "f"].map(row);
        let (_home, dirs, _) = slices(&[&[&all[0], &all[1], &all[4], &all[5]], &[&all[2], &all[3]], &[]]);
        let found = interleaved(&dirs, Path::new("rows.jsonl"), 2).unwrap();
        assert_eq!(found.into_iter().map(|(_, line)| line).collect::<Vec<_>>(), all);
    }

    #[test]
    fn a_row_of_two_slices_is_refused() {
        let (a, b) = (row("a"), row("b"));
        let (_home, dirs, whole) = slices(&[&[&a], &[&b, &a]]);
        let error = rows(&dirs, Path::new("rows.jsonl"), &whole, &["id"]).unwrap_err().to_string();
        assert!(error.contains("1/rows.jsonl") && error.contains("\"a\""), "{error}");
        assert!(!whole.join("rows.jsonl").exists());
    }
}
