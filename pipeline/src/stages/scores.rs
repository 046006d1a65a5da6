//! What the stages share that run schemes: the loop over tasks with its progress, and the tables.

use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_cache::Scheme;
use kvcsr_eval::longbench::evaluate::{Progress, Summary, Work, answer_all};
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::results::{LengthResult, OverallResult, TaskResult};
use kvcsr_eval::longbench::runner::{Room, Runner};
use kvcsr_eval::longbench::score::BucketScore;
use kvcsr_report::files;
use kvcsr_report::records::{Bucket, LengthRow, OverallRow, TaskRow};

use crate::ui;

/// Folder of the answers.
pub const PREDICTIONS: &str = "predictions";
/// File of the scores per task and scheme.
pub const RESULTS: &str = "results.jsonl";
/// File of the averages per scheme.
pub const OVERALL: &str = "overall.jsonl";
/// The scores per task and scheme again, for spreadsheets.
pub const TABLE: &str = "results.csv";

/// Lets every scheme answer every record that `dir` lacks, under a bar.
pub fn answer(
    stage: &'static str,
    runner: &Runner<'_>,
    work: &[Work<'_>],
    schemes: &[Box<dyn Scheme>],
    dir: &Path,
) -> Result<Predictions> {
    check_room(stage, runner, work)?;
    let mut predictions = Predictions::open(&dir.join(PREDICTIONS))?;
    let total: usize = work.iter().map(|work| work.records.len() * schemes.len()).sum();
    let bar = ui::bar(stage, total as u64, "records x schemes");
    answer_all(runner, work, schemes, &mut predictions, &mut |progress| match progress {
        Progress::Found(answers) => bar.inc(answers as u64),
        Progress::Answered(row) => {
            bar.set_message(format!("{} {} {}", row.task, row.id, row.label()));
            bar.inc(1);
        }
    })?;
    bar.finish();
    Ok(predictions)
}

/// Refuses prompts that the model cannot hold and says which answers may be cut, before anything is run.
fn check_room(stage: &str, runner: &Runner<'_>, work: &[Work<'_>]) -> Result<()> {
    let setting = match stage {
        "compare" => "compare.task_prompt_tokens".to_owned(),
        stage => format!("{stage}.max_prompt_tokens"),
    };
    let room = runner.room(work).with_context(|| format!("lower {setting}"))?;
    if let Some(Room { positions, prompts, short, longest, answer }) = room.filter(|room| room.short > 0) {
        let leaves = (positions + 1).saturating_sub(answer);
        ui::line(
            stage,
            &format!(
                "warning: {short} of {prompts} prompts leave too few positions for their answers: up to {longest} prompt \
                 tokens and {answer} of an answer are more than the model's {positions} positions. {setting} = {leaves} \
                 leaves enough"
            ),
        );
    }
    Ok(())
}

/// Writes the scores and averages into `dir`.
pub fn write(dir: &Path, summary: &Summary) -> Result<()> {
    files::write_jsonl(&dir.join(RESULTS), &summary.tasks)?;
    files::write_jsonl(&dir.join(OVERALL), &summary.overall)?;
    kvcsr_report::csv::write(&dir.join(TABLE), &task_rows(&summary.tasks))?;
    Ok(())
}

/// The scores and averages that [`write()`] wrote.
pub fn read(dir: &Path) -> Result<Summary> {
    Ok(Summary { tasks: files::read_jsonl(&dir.join(RESULTS))?, overall: files::read_jsonl(&dir.join(OVERALL))? })
}

/// How many of a scheme's answers the end of the model's context cut, if any, to be put behind its numbers.
fn cut(result: &OverallResult) -> Option<String> {
    match result.cut {
        0 => None,
        1 => Some(", 1 answer cut by the end of the context".to_owned()),
        cut => Some(format!(", {cut} answers cut by the end of the context")),
    }
}

/// A sentence for pages about answers that the end of the model's context cut; empty where there are none.
pub fn cut_sentence(summary: &Summary) -> String {
    let schemes: Vec<String> = summary
        .overall
        .iter()
        .filter(|result| result.cut > 0)
        .map(|result| format!("`{}` {} of {}", result.scheme, result.cut, result.n))
        .collect();
    if schemes.is_empty() {
        return String::new();
    }
    format!("Answers that the end of the model's context cut, which lowers scores: {}.\n\n", schemes.join(", "))
}

/// One line per scheme, for the terminal.
pub fn lines(dir: &Path) -> Result<Vec<String>> {
    let line = |o: OverallResult| {
        let less = o
            .difference
            .map_or_else(String::new, |d| format!(", less dense {:+.2} [{:+.2}, {:+.2}]", d.difference, d.low, d.high));
        format!(
            "{:<16} {:.2} over {} tasks, n = {}{less}, {:.2} measured bits at {:.0} tokens{}",
            o.scheme,
            o.task_mean,
            o.tasks,
            o.n,
            o.measured_bits,
            o.tokens,
            cut(&o).unwrap_or_default()
        )
    };
    Ok(read(dir)?.overall.into_iter().map(line).collect())
}

/// Scores as rows of tables.
pub fn task_rows(results: &[TaskResult]) -> Vec<TaskRow> {
    let row = |result: &TaskResult| TaskRow {
        task: result.task.clone(),
        scheme: result.scheme.clone(),
        n: result.n,
        samples: result.samples,
        score: result.score,
        difference: result.difference.map(|d| d.difference),
        low: result.difference.map(|d| d.low),
        high: result.difference.map(|d| d.high),
        nominal_bits: result.nominal_bits,
        measured_bits: result.measured_bits,
        tokens: result.tokens,
        encode_ms: result.encode_ms,
        decode_ms_per_token: result.decode_ms_per_token,
    };
    results.iter().map(row).collect()
}

/// Averages as rows of tables.
pub fn overall_rows(results: &[OverallResult]) -> Vec<OverallRow> {
    let row = |result: &OverallResult| OverallRow {
        scheme: result.scheme.clone(),
        tasks: result.tasks,
        n: result.n,
        task_mean: result.task_mean,
        category_mean: result.category_mean,
        difference: result.difference.map(|d| d.difference),
        low: result.difference.map(|d| d.low),
        high: result.difference.map(|d| d.high),
        rank: result.rank.map(|rank| rank.place),
        tied: result.rank.is_some_and(|rank| rank.tied),
        nominal_bits: result.nominal_bits,
        measured_bits: result.measured_bits,
        tokens: result.tokens,
        encode_ms_per_1k: result.encode_ms_per_1k,
        decode_ms_per_token: result.decode_ms_per_token,
    };
    results.iter().map(row).collect()
}

/// LongBench-E's scores as rows of its table.
pub fn length_rows(results: &[LengthResult]) -> Vec<LengthRow> {
    let bucket = |bucket: BucketScore| Bucket { n: bucket.n, score: (bucket.n > 0).then_some(bucket.score) };
    let row = |result: &LengthResult| LengthRow {
        task: result.task.clone(),
        scheme: result.scheme.clone(),
        buckets: result.buckets.map(bucket),
    };
    results.iter().map(row).collect()
}

/// The distinct tasks of `results`, in their order.
pub fn tasks(results: &[TaskResult]) -> Vec<String> {
    let mut tasks: Vec<String> = Vec::new();
    for result in results {
        if !tasks.contains(&result.task) {
            tasks.push(result.task.clone());
        }
    }
    tasks
}
