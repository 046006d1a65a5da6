//! Runs many records under many schemes, continues interrupted runs, and summarises the results.
//!
//! [`answer_all`] is the loop of every evaluation with tasks, whatever the tasks (LongBench's or those of [`crate::suite`]) and
//! the schemes are. [`summarise`] computes scores, differences and averages from its answers.

use std::collections::HashMap;

use kvcsr_cache::Scheme;
use kvcsr_records::{OverallRow, TaskRow};

use crate::error::Result;
use crate::longbench::predictions::{PredictionRow, Predictions, label};
use crate::longbench::record::Work;
use crate::longbench::results::{by_task, overall};
use crate::longbench::runner::Runner;
use crate::longbench::tasks::TaskTable;
use crate::stats::Bootstrap;

/// Events that [`answer_all`] reports while it runs.
#[derive(Debug)]
pub enum Progress<'r> {
    /// This many answers existed already.
    Found(usize),
    /// This answer was generated and is on disk.
    Answered(&'r PredictionRow),
}

/// The labels of `schemes`, as they appear in answers.
#[must_use]
pub fn labels(schemes: &[Box<dyn Scheme>]) -> Vec<String> {
    schemes.iter().map(|scheme| label(scheme.name(), scheme.dictionaries())).collect()
}

/// Lets every scheme answer every record of `work` that is missing in `predictions`. Each answer is written immediately.
///
/// # Errors
/// The same as [`Runner::run`].
pub fn answer_all(
    runner: &Runner<'_>,
    work: &[Work<'_>],
    schemes: &[Box<dyn Scheme>],
    predictions: &mut Predictions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<()> {
    let labels = labels(schemes);
    for Work { task, records } in work {
        for record in records {
            let todo: Vec<&dyn Scheme> = schemes
                .iter()
                .zip(&labels)
                .filter(|(_, label)| !predictions.contains(&task.name, &record.id, label))
                .map(|(scheme, _)| scheme.as_ref())
                .collect();
            progress(Progress::Found(schemes.len() - todo.len()));
            runner.run(task, record, &todo, &mut |row| {
                let row = predictions.append(row)?;
                progress(Progress::Answered(row));
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Sorts the rows in the order of `work`, and for each record in the order of `labels`. Files of answers are read scheme by
/// scheme.
#[must_use]
pub fn in_order(work: &[Work<'_>], labels: &[String], rows: &[PredictionRow]) -> Vec<PredictionRow> {
    let by_key: HashMap<_, _> =
        rows.iter().map(|row| ((row.task.as_str(), row.id.as_str(), row.label()), row)).collect();
    let records = work.iter().flat_map(|work| work.records.iter().map(|record| (work.task.name.as_str(), record)));
    let keys =
        records.flat_map(|(task, record)| labels.iter().map(move |label| (task, record.id.as_str(), label.clone())));
    keys.filter_map(|key| by_key.get(&key).map(|row| (*row).clone())).collect()
}

/// Scores per task and scheme, and averages per scheme.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// One row per task and scheme.
    pub tasks: Vec<TaskRow>,
    /// One row per scheme.
    pub overall: Vec<OverallRow>,
}

/// The scores in `rows` for the tasks of `work` under the schemes with these `labels`.
///
/// # Errors
/// The same as [`overall`].
pub fn summarise(
    table: &TaskTable,
    work: &[Work<'_>],
    labels: &[String],
    rows: &[PredictionRow],
    bootstrap: Bootstrap,
) -> Result<Summary> {
    let tasks: Vec<&str> = work.iter().map(|work| work.task.name.as_str()).collect();
    let tasks = by_task(table, rows, &tasks, labels, bootstrap);
    let overall = overall(table, rows, &tasks, labels, bootstrap)?;
    Ok(Summary { tasks, overall })
}
