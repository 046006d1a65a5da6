//! Every scheme on the same prompts: for each context a table and the frontier; times against the context; the README's table.

use anyhow::Result;
use kvcsr_report::compare::{self, CompareRow};
use kvcsr_report::figures::{Frontier, TimeLength};
use kvcsr_report::save::Figure;
use serde_json::Value;

use crate::stage::Run;
use crate::stages::compare::{Measured, shown};
use crate::stages::report::sections::Section;
use crate::stages::report::sheet::{README, RESULTS, Sheet};

/// The name of the table's files.
pub const TABLE: &str = "compare";

/// See the module.
pub struct Compare;

impl Section for Compare {
    fn title(&self) -> &'static str {
        "Every scheme on the same prompts"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["compare"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let measured = Measured::read(run)?;
        let contexts = contexts(&measured.rows);
        let about = format!("{} {}", BOLD, about_tasks(&measured));
        sheet.markdown(&about);
        for &context in &contexts {
            let rows = at(&measured.rows, context);
            let stem = format!("{}-{context}", Frontier::NAME);
            let table = compare::markdown(&rows);
            sheet.markdown(&format!("### {context} tokens\n\n{}.", circumstances(&measured.rows, context)));
            sheet.figure_as::<Frontier>(&stem, &rows)?;
            sheet.markdown(&table);
            if context == shown(&contexts) {
                let link = sheet.link();
                let text = format!(
                    "`{}`, f32; {}. Made by `just compare`. {about}\n\n{table}\n\
                     ![Every scheme's KL against its measured bits]({link}/{stem}.svg)\n\n\
                     Other contexts, single texts and times: [`{folder}/report.md`]({link}/report.md), \
                     [`{folder}/{TABLE}.csv`]({link}/{TABLE}.csv).\n",
                    run.config.model,
                    circumstances(&measured.rows, context),
                    folder = link.trim_start_matches("../"),
                );
                sheet.show_in(&RESULTS, "compare", &text)?;
                let headline = format!(
                    "`{}`, {context} tokens compressed, n = {}. Made by `just compare`.\n\n{}",
                    run.config.model,
                    documents(&rows),
                    compare::headline_markdown(&rows),
                );
                sheet.show_in(&README, "headline", &headline)?;
            }
        }
        times(&measured.rows, sheet)?;
        sheet.table(TABLE, &measured.rows)
    }
}

const BOLD: &str = "Bold: on the Pareto frontier of bits and KL.";

/// How time grows with the context. Figures over all contexts belong here.
fn times(rows: &[CompareRow], sheet: &mut Sheet<'_>) -> Result<()> {
    let all: Vec<CompareRow> = rows.iter().filter(|row| row.domain == "all").cloned().collect();
    sheet.figure::<TimeLength>(&all)?;
    sheet.folded("Times against the context", &compare::times_markdown(&all));
    Ok(())
}

/// The contexts, in their order.
fn contexts(rows: &[CompareRow]) -> Vec<usize> {
    let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
    contexts.dedup();
    contexts
}

/// The rows of one context over all texts.
fn at(rows: &[CompareRow], context: usize) -> Vec<CompareRow> {
    rows.iter().filter(|row| row.context == context && row.domain == "all").cloned().collect()
}

/// What the rows of one context come from.
fn circumstances(rows: &[CompareRow], context: usize) -> String {
    let mut domains: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.context == context && row.domain != "all") {
        if !domains.contains(&row.domain.as_str()) {
            domains.push(&row.domain);
        }
    }
    let all = at(rows, context);
    format!(
        "{context} tokens prefilled exactly and compressed, n = {} documents of {}, {} following tokens scored in all",
        documents(&all),
        domains.join(", "),
        all.iter().map(|row| row.scored).max().unwrap_or(0),
    )
}

fn documents(rows: &[CompareRow]) -> usize {
    rows.iter().map(|row| row.n).max().unwrap_or(0)
}

/// What prompts the column of tasks comes from.
fn about_tasks(measured: &Measured) -> String {
    let Some(one) = measured.tasks.overall.first() else {
        return "Tasks were not run (`compare.tasks`).".to_owned();
    };
    let sizes: Vec<String> = measured
        .tasks
        .tasks
        .iter()
        .filter(|task| task.scheme == one.scheme)
        .map(|task| format!("{} ({})", task.task, task.n))
        .collect();
    let most = measured.parameters.get("task_prompt_tokens").map_or_else(|| "?".to_owned(), Value::to_string);
    format!(
        "Tasks: mean score, 0 to 100, over {} tasks of the suite (not LongBench), n = {} prompts in all: {}; {:.0} tokens each on \
         average, at most {most}, and one score per scheme, whatever the context; in brackets the difference to dense on the \
         same prompts, with the 95 % interval of the paired bootstrap. So few prompts show large losses only.",
        one.tasks,
        one.n,
        sizes.join(", "),
        one.tokens,
    )
}
