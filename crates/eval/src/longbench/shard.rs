//! A run in parts: which records each part answers, and the parts' answers put together.
//!
//! Part `i/n` takes every `n`-th record of every task, starting with the `i`-th, so that parts take about equally long. The
//! caller makes sure that the parts were made under one configuration; here it is checked that no record was answered twice
//! and none is missing.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::error::{EvalError, Result};
use crate::longbench::predictions::Predictions;
use crate::longbench::record::Work;

/// Part `index` of `count`, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    index: usize,
    count: usize,
}

impl Shard {
    /// Which of how many, from 1.
    #[must_use]
    pub fn place(self) -> (usize, usize) {
        (self.index, self.count)
    }

    /// Leaves of every task the records of this part.
    pub fn keep(self, work: &mut [Work<'_>]) {
        for Work { records, .. } in work {
            let mut at = 0;
            records.retain(|_| {
                let mine = at % self.count == self.index - 1;
                at += 1;
                mine
            });
        }
    }
}

impl FromStr for Shard {
    type Err = EvalError;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match parts {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Self { index, count }),
            _ => Err(EvalError::Shard(text.to_owned())),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// Copies the answers of every part into `whole`, in the order of `work`, which holds all records.
///
/// # Errors
/// [`EvalError::Repeated`] for a record that two parts answered, and whatever reading and writing fail with.
pub fn merge(parts: &[impl AsRef<Path>], work: &[Work<'_>], labels: &[String], whole: &mut Predictions) -> Result<()> {
    let mut rows = std::collections::HashMap::new();
    for folder in parts {
        for row in Predictions::open(folder.as_ref())?.rows() {
            let key = (row.task.clone(), row.id.clone(), row.label());
            if rows.insert(key, row.clone()).is_some() {
                return Err(EvalError::Repeated {
                    folder: folder.as_ref().to_owned(),
                    task: row.task.clone(),
                    id: row.id.clone(),
                    scheme: row.label(),
                });
            }
        }
    }
    for Work { task, records } in work {
        for record in records {
            for label in labels {
                let key = (task.name.clone(), record.id.clone(), label.clone());
                if let (false, Some(row)) = (whole.contains(&task.name, &record.id, label), rows.remove(&key)) {
                    whole.append(row)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::longbench::predictions::tests::row;
    use crate::longbench::record::Record;
    use crate::longbench::tasks::{Language, TaskTable};

    fn work(ids: &[&str]) -> Vec<Work<'static>> {
        let record = |id: &&str| Record {
            input: String::new(),
            context: "c".to_owned(),
            answers: vec!["a".to_owned()],
            length: 1,
            dataset: "qasper".to_owned(),
            language: Language::En,
            all_classes: None,
            id: (*id).to_owned(),
        };
        vec![Work { task: TaskTable::embedded().get("qasper").unwrap(), records: ids.iter().map(record).collect() }]
    }

    #[test]
    fn parts_are_disjoint_and_complete() {
        let ids = ["a", "b", "c", "d", "e"];
        let mut seen = Vec::new();
        for part in ["1/3", "2/3", "3/3"] {
            let mut work = work(&ids);
            part.parse::<Shard>().unwrap().keep(&mut work);
            assert!((1..=2).contains(&work[0].records.len()));
            seen.extend(work.remove(0).records.into_iter().map(|record| record.id));
        }
        seen.sort();
        assert_eq!(seen, ids);
    }

    #[test]
    fn names_of_no_part_are_refused() {
        for bad in ["", "1", "0/2", "3/2", "1/0", "a/b", "1/2/3"] {
            assert!(bad.parse::<Shard>().is_err(), "{bad}");
        }
        assert_eq!("2/3".parse::<Shard>().unwrap().to_string(), "2/3");
    }

    #[test]
    fn answers_come_together_in_the_order_of_the_records() {
        let folder = tempfile::tempdir().unwrap();
        let part = |name: &str, ids: &[&str]| {
            let path = folder.path().join(name);
            let mut predictions = Predictions::open(&path).unwrap();
            for id in ids {
                predictions.append(row("qasper", id, "dense", 1.0)).unwrap();
            }
            path
        };
        let parts = [part("one", &["a", "c"]), part("two", &["b"])];
        let mut whole = Predictions::open(&folder.path().join("whole")).unwrap();
        let labels = ["dense".to_owned()];
        merge(&parts, &work(&["a", "b", "c"]), &labels, &mut whole).unwrap();
        assert_eq!(whole.rows().iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);

        let again = [parts[0].clone(), part("three", &["c"])];
        let mut whole = Predictions::open(&folder.path().join("other")).unwrap();
        let error = merge(&again, &work(&["a", "c"]), &labels, &mut whole).unwrap_err().to_string();
        assert!(error.contains("three") && error.contains("record c"), "{error}");
    }
}
