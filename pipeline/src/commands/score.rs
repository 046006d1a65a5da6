//! score: computes the score of a file of LongBench predictions, as LongBench's `eval.py` prints it.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use kvcsr_eval::longbench::metrics::CodeSim;
use kvcsr_eval::longbench::score::score_file;
use kvcsr_eval::longbench::tasks::TaskTable;
use kvcsr_eval::suite::Suite;

/// What to score, and how.
#[derive(Debug, Args)]
pub struct ScoreArgs {
    /// LongBench v1 task, for example qasper, or a task of the suite, for example story_qa
    #[arg(long)]
    pub task: String,
    /// File with one JSON object per line: pred, answers, all_classes and length
    #[arg(long, value_name = "FILE.jsonl")]
    pub predictions: PathBuf,
    /// String similarity of the code tasks
    #[arg(long, value_enum, default_value_t = Ratio::Difflib)]
    pub code_sim: Ratio,
}

/// The string similarity of the code tasks, as named on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Ratio {
    /// Python's difflib, which is used with LongBench's own requirements
    Difflib,
    /// python-Levenshtein, which fuzzywuzzy uses if it is installed
    Levenshtein,
}

impl From<Ratio> for CodeSim {
    fn from(ratio: Ratio) -> Self {
        match ratio {
            Ratio::Difflib => Self::Difflib,
            Ratio::Levenshtein => Self::Levenshtein,
        }
    }
}

/// Prints one JSON object: task, n, score.
pub fn run(args: &ScoreArgs) -> Result<()> {
    let own = Suite::embedded().table();
    let task = TaskTable::embedded().get(&args.task).or_else(|error| own.get(&args.task).map_err(|_| error))?;
    let score = score_file(task, &args.predictions, args.code_sim.into())?;
    println!("{}", serde_json::to_string(&score)?);
    Ok(())
}
