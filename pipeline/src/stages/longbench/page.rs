//! The page of LongBench scores, also in the paper's layout, and the part that docs/RESULTS.md shows.

use std::fmt::Write as _;

use anyhow::Result;
use kvcsr_eval::longbench::evaluate::Summary;
use kvcsr_eval::longbench::tasks::TaskTable;
use kvcsr_report::longbench::{paper_markdown, published, run_markdown, schemes_markdown};
use kvcsr_report::records::TaskRow;

use super::records::tasks;
use crate::config::sections::longbench::Settings;
use crate::models::Opened;
use crate::stage::Run;
use crate::stages::scores;

/// The page with the tables.
pub const PAGE: &str = "longbench.md";

/// How many records, in words.
fn size(settings: &Settings) -> String {
    let e = if settings.e { " of LongBench-E" } else { "" };
    match settings.limit {
        0 => format!("all records{e} at hand"),
        limit => format!("the first {limit} records{e} of each task at hand"),
    }
}

/// What docs/RESULTS.md shows: one line per scheme.
pub fn shown(run: &Run, summary: &Summary) -> Result<String> {
    let settings = &run.config.longbench;
    let page = format!("data/results/{}/{PAGE}", run.label());
    let n = summary.overall.first().map_or(0, |o| o.n);
    let of = tasks(settings)?.iter().map(|task| task.samples).sum::<usize>();
    let few = if n < of {
        "With so few records a score says little and is not comparable with published ones: read the intervals of the difference. "
    } else {
        ""
    };
    Ok(format!(
        "`{}` on {} tasks of LongBench v1, {}: n = {n} of {of} records, at most {} prompt tokens. {few}{} Made by `{}`.\n\n{}\n\
         Every task, and the paper's Tables 1 and 2: [`{page}`](../{page}).\n",
        run.config.model,
        scores::tasks(&summary.tasks).len(),
        size(settings),
        settings.max_prompt_tokens,
        scores::marks(),
        run.command("longbench"),
        schemes_markdown(&summary.overall),
    ))
}

/// Every scheme and task.
pub fn page(run: &Run, summary: &Summary) -> Result<String> {
    let settings = &run.config.longbench;
    let tasks = scores::tasks(&summary.tasks);
    let size = size(settings);
    let mut page = String::new();
    writeln!(page, "# LongBench v1 with `{}`, profile `{}`\n", run.config.model, run.profile)?;
    writeln!(
        page,
        "Made by `{}` on {size}: at most {} prompt tokens (the middle is cut out), chat wrap `{}`, greedy decoding, {}, code similarity by `{}`. \
         Each prompt is prefilled once, exactly; every scheme then compresses that prefill and answers. Scores are LongBench's own (task table \
         version {}). Differences are to `dense` over the same records, with 95 % intervals of the paired bootstrap ({} draws). Measured bits \
         count every byte allocated per channel of the prefilled tokens, dictionaries apart. A task with fewer records than LongBench's says so, \
         and its score is not comparable with published ones. {} Decoding times are those of schemes that decode beside each other, one to a core.\n",
        run.command("longbench"),
        settings.max_prompt_tokens,
        serde_json::to_value(settings.chat)?.as_str().unwrap_or_default(),
        Opened::of(&run.config.model, &run.paths)?.dtype(&run.config.dtype)?,
        serde_json::to_value(settings.code_sim)?.as_str().unwrap_or_default(),
        TaskTable::embedded().version(),
        run.config.resamples,
        scores::marks(),
    )?;
    writeln!(page, "{}", schemes_markdown(&summary.overall))?;
    page.push_str(&scores::cut_sentence(summary));
    writeln!(page, "{}", run_markdown(&tasks, &summary.tasks, &summary.overall))?;
    let published = published();
    writeln!(page, "## In the paper's layout\n\n{}. {}\n", published.source, published.note)?;
    for table in &published.tables {
        // The paper's tables are of LongBench v1.
        let same = !settings.e && table.model == settings.paper_model;
        let ours: &[TaskRow] = if same { &summary.tasks } else { &[] };
        writeln!(page, "### Table {}, {}\n", table.table, table.model)?;
        writeln!(page, "{}", paper_markdown(&published.tasks, table, ours))?;
    }
    Ok(page)
}
