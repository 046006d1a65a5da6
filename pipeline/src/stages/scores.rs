//! What the stages that answer tasks share: the loop over tasks with its progress, and the tables.

use std::path::Path;

use anyhow::{Context, Result};
use kvcsr_cache::Scheme;
use kvcsr_eval::longbench::evaluate::{Progress, Summary, answer_all};
use kvcsr_eval::longbench::predictions::Predictions;
use kvcsr_eval::longbench::record::Work;
use kvcsr_eval::longbench::runner::{Room, Runner};
use kvcsr_eval::stats::RANKED_FROM;
use kvcsr_report::records::{OverallRow, TaskRow};
use kvcsr_report::{csv, files};

use crate::room::{self, Amount};
use crate::stage::{Run, SchemeNames};
use crate::stages::sizes::{self, Sizes};
use crate::ui;

/// Folder of the answers.
pub const PREDICTIONS: &str = "predictions";
/// File of the scores per task and scheme.
pub const RESULTS: &str = "results.jsonl";
/// File of the averages per scheme.
pub const OVERALL: &str = "overall.jsonl";
/// The scores per task and scheme again, for spreadsheets.
pub const TABLE: &str = "results.csv";
/// The averages per scheme again.
pub const OVERALL_TABLE: &str = "overall.csv";

/// The memory that answering prompts of at most `tokens` tokens takes: the model, the prefill, and the schemes' copies of it, which
/// together are no larger than the prefill. Answers are small.
///
/// # Errors
/// If the model was not fetched, or a scheme is not known.
pub fn needs_room(run: &Run, schemes: SchemeNames<'_>, tokens: usize, lower: &'static str) -> Result<room::Room> {
    let memory = Sizes::of(run)?.with_prefill(tokens, 2) + sizes::artefacts(run, schemes)?;
    Ok(room::Room { memory: Amount { bytes: memory, lower }, ..room::Room::default() })
}

/// Lets every scheme answer every record that has no answer in `dir`, with a progress bar.
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
    csv::write(&dir.join(OVERALL_TABLE), &summary.overall)?;
    Ok(csv::write(&dir.join(TABLE), &summary.tasks)?)
}

/// The scores and averages that [`write()`] wrote.
pub fn read(dir: &Path) -> Result<Summary> {
    Ok(Summary { tasks: files::read_jsonl(&dir.join(RESULTS))?, overall: files::read_jsonl(&dir.join(OVERALL))? })
}

/// A text to put after a scheme's numbers: how many of its answers were cut by the end of the model's context, if any were.
fn cut(result: &OverallRow) -> Option<String> {
    match result.cut {
        0 => None,
        1 => Some(", 1 answer cut by the end of the context".to_owned()),
        cut => Some(format!(", {cut} answers cut by the end of the context")),
    }
}

/// A sentence for pages about answers that were cut by the end of the model's context; empty if there are none.
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

/// What bold scores and ranks mean, for pages.
pub fn marks() -> String {
    format!(
        "Bold: a compressing scheme (less than 16 measured bits per channel) that no other one beats by a paired 95 % interval above \
         zero; those that cannot be told apart share the mark. A scheme's rank is one more than the number of schemes that are better \
         by such an interval. Tasks with fewer than {RANKED_FROM} records are neither marked nor ranked."
    )
}

/// One line per scheme, for the terminal.
pub fn lines(dir: &Path) -> Result<Vec<String>> {
    let line = |o: OverallRow| {
        let difference = match (o.difference, o.low, o.high) {
            (Some(points), Some(low), Some(high)) => {
                format!(", difference to dense {points:+.2} [{low:+.2}, {high:+.2}]")
            }
            _ => String::new(),
        };
        format!(
            "{:<16} {:.2} over {} tasks, n = {}{difference}, {:.2} measured bits at {:.0} tokens{}",
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

/// The distinct tasks of `results`, in their order.
pub fn tasks(results: &[TaskRow]) -> Vec<String> {
    let mut tasks: Vec<String> = Vec::new();
    for result in results {
        if !tasks.contains(&result.task) {
            tasks.push(result.task.clone());
        }
    }
    tasks
}
