//! The two overall averages in use.
//!
//! LongBench's own tables average the means of six categories. Papers on cache compression average the tasks. For the same
//! scores the two averages differ by several points, so both are computed and have separate names.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::longbench::score::TaskScore;
use crate::longbench::tasks::{Category, TaskTable};

/// Overall averages of a set of task scores, 0 to 100, not rounded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Averages {
    /// Mean over the tasks, as papers report it.
    pub task_mean: f64,
    /// Mean over the category means, as LongBench reports it. It is the official average only if all six categories are present.
    pub category_mean: f64,
    /// Mean of the tasks of each category that has tasks.
    pub by_category: BTreeMap<Category, f64>,
}

/// Averages `scores`. NaN if there are none.
///
/// # Errors
/// [`EvalError::UnknownTask`](crate::EvalError::UnknownTask) for a score of a task that the table does not have.
pub fn averages(table: &TaskTable, scores: &[TaskScore]) -> Result<Averages> {
    let mut members: BTreeMap<Category, Vec<f64>> = BTreeMap::new();
    for score in scores {
        let category = table.get(&score.task)?.category;
        members.entry(category).or_default().push(score.score);
    }
    let by_category: BTreeMap<_, _> = members.into_iter().map(|(category, scores)| (category, mean(&scores))).collect();
    let task_scores: Vec<f64> = scores.iter().map(|score| score.score).collect();
    let category_means: Vec<f64> = by_category.values().copied().collect();
    Ok(Averages { task_mean: mean(&task_scores), category_mean: mean(&category_means), by_category })
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn scores(scores: &[(&str, f64)]) -> Vec<TaskScore> {
        scores.iter().map(|&(task, score)| TaskScore { task: task.to_owned(), n: 200, score }).collect()
    }

    #[test]
    fn the_official_average_weighs_categories_not_tasks() {
        // LongBench's README: GPT-3.5-Turbo-16k has 44.0 overall on the English tasks.
        let table = TaskTable::embedded();
        let found = averages(
            table,
            &scores(&[
                ("narrativeqa", 23.6),
                ("qasper", 43.3),
                ("multifieldqa_en", 52.3),
                ("hotpotqa", 51.6),
                ("2wikimqa", 37.7),
                ("musique", 26.9),
                ("gov_report", 29.5),
                ("qmsum", 23.4),
                ("multi_news", 26.7),
                ("trec", 68.0),
                ("triviaqa", 91.4),
                ("samsum", 41.7),
                ("passage_count", 4.5),
                ("passage_retrieval_en", 71.0),
                ("lcc", 54.7),
                ("repobench-p", 53.6),
            ]),
        )
        .unwrap();
        assert_eq!(format!("{:.1}", found.category_mean), "44.0");
        assert_eq!(format!("{:.1}", found.by_category[&Category::FewShot]), "67.0");
        assert_eq!(format!("{:.2}", found.task_mean), "43.74");
        assert_eq!(found.by_category.len(), 6);
    }

    #[test]
    fn absent_categories_do_not_count() {
        let table = TaskTable::embedded();
        let found = averages(table, &scores(&[("trec", 60.0), ("lcc", 50.0), ("samsum", 40.0)]));
        let found = found.unwrap();
        assert_eq!((found.task_mean, found.category_mean), (50.0, 50.0));
        assert!(averages(table, &[]).unwrap().task_mean.is_nan());
        assert!(averages(table, &scores(&[("x", 1.0)])).is_err());
    }
}
