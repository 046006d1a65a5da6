//! Every scheme on the same long documents: for each context a table and the frontier; what sequences share; times; the README's
//! table.

use anyhow::Result;
use kvcsr_report::SchemeSummary;
use kvcsr_report::compare::{self, LEGEND};
use kvcsr_report::figures::{Frontier, TimeLength};
use kvcsr_report::records::heldout::{ALL, REPEAT};
use kvcsr_report::save::Figure;
use serde_json::Value;

use crate::stage::Run;
use crate::stages::compare::{Measured, shown};
use crate::stages::report::section::Section;
use crate::stages::report::sections::provenance::made_by;
use crate::stages::report::sheet::{README, RESULTS, Sheet};

/// The name of the table's files.
pub const TABLE: &str = "compare";
/// The name of the files of single documents, which it is made from.
const DOCUMENTS: &str = "compare-documents";

/// See the module.
pub struct Compare;

impl Section for Compare {
    fn title(&self) -> &'static str {
        "Every scheme on the same documents"
    }

    fn stages(&self) -> &'static [&'static str] {
        &["compare"]
    }

    fn write(&self, run: &Run, sheet: &mut Sheet<'_>) -> Result<()> {
        let measured = Measured::read(run)?;
        let contexts = contexts(&measured.rows);
        let about = format!("{LEGEND} {} {}", compare::exact_tokens(&measured.rows), about_tasks(&measured));
        sheet.markdown(&about);
        for &context in &contexts {
            let rows = at(&measured.rows, context);
            let all: Vec<SchemeSummary> = rows.iter().filter(|row| row.domain == ALL).cloned().collect();
            let stem = format!("{}-{context}", Frontier::NAME);
            let (table, memory) = (compare::markdown(&rows), compare::memory_markdown(&rows));
            let circumstances = circumstances(&rows, context);
            sheet.markdown(&format!("### {context} tokens\n\n{circumstances}."));
            sheet.figure_as::<Frontier>(&stem, &all)?;
            sheet.markdown(&table);
            sheet.markdown(&format!("{MEMORY}\n\n{memory}"));
            if context == shown(&contexts) {
                let link = sheet.link();
                let text = format!(
                    "`{}`; {circumstances}. {}\n\n{about}\n\n{table}\n\
                     ![What every scheme loses of the far context, against its measured bits]({link}/{stem}.svg)\n\n{MEMORY}\n\n\
                     {memory}\nOther contexts, single domains and times: [`{folder}/report.md`]({link}/report.md), \
                     [`{folder}/{TABLE}.csv`]({link}/{TABLE}.csv); \
                     single documents: [`{folder}/{DOCUMENTS}.csv`]({link}/{DOCUMENTS}.csv).\n",
                    run.config.model,
                    made_by(run, "compare")?,
                    folder = link.trim_start_matches("../"),
                );
                sheet.show_in(&RESULTS, "compare", &text)?;
                let headline = format!(
                    "`{}`, {context} tokens compressed, n = {} long documents. Made by `{}`.\n\n{}\n{}{}\n",
                    run.config.model,
                    documents(&rows),
                    run.command("compare"),
                    compare::headline_markdown(&rows),
                    compare::exact_tokens(compare::headline(&rows)),
                    about_scores(&measured),
                );
                sheet.show_in(&README, "headline", &headline)?;
            }
        }
        times(&measured.rows, sheet)?;
        sheet.table(DOCUMENTS, &measured.documents)?;
        sheet.table(TABLE, &measured.rows)
    }
}

/// The text above the table of shared bytes.
pub const MEMORY: &str = "What all sequences share, dictionaries and codebooks, as this program holds it and as a deployment would store it \
     (f16, without tables made from it); and measured bits with the stored bytes spread over 1, 8 and 64 sequences of this length:";

/// How time grows with the context. Figures over all contexts belong here.
fn times(rows: &[SchemeSummary], sheet: &mut Sheet<'_>) -> Result<()> {
    let all: Vec<SchemeSummary> = rows.iter().filter(|row| row.domain == ALL).cloned().collect();
    sheet.figure::<TimeLength>(&all)?;
    sheet.folded("Times against the context", &compare::times_markdown(&all));
    Ok(())
}

/// The contexts, in their order.
fn contexts(rows: &[SchemeSummary]) -> Vec<usize> {
    let mut contexts: Vec<usize> = rows.iter().map(|row| row.context).collect();
    contexts.dedup();
    contexts
}

/// The rows of one context, of all domains.
fn at(rows: &[SchemeSummary], context: usize) -> Vec<SchemeSummary> {
    rows.iter().filter(|row| row.context == context).cloned().collect()
}

/// A description of what the rows of one context come from.
fn circumstances(rows: &[SchemeSummary], context: usize) -> String {
    let mut domains: Vec<&str> = Vec::new();
    for row in rows.iter().filter(|row| row.domain != ALL && row.domain != REPEAT) {
        if !domains.contains(&row.domain.as_str()) {
            domains.push(&row.domain);
        }
    }
    let passages = rows.iter().filter(|row| row.domain == REPEAT).map(|row| row.n).max().unwrap_or(0);
    let of_all = || rows.iter().filter(|row| row.domain == ALL);
    let far = of_all().map(|row| row.far_share).fold(0.0, f64::max);
    format!(
        "at most {context} tokens prefilled exactly and compressed; n = {} single long documents ({}), each a unit and every domain of \
         equal weight, {} positions scored in all, {:.1} % of them far; and {passages} passages that come back",
        documents(rows),
        domains.join(", "),
        of_all().map(|row| row.scored).max().unwrap_or(0),
        100.0 * far,
    )
}

fn documents(rows: &[SchemeSummary]) -> usize {
    rows.iter().filter(|row| row.domain == ALL).map(|row| row.n).max().unwrap_or(0)
}

/// What the README says of the scores on tasks.
fn about_scores(measured: &Measured) -> String {
    measured.tasks.overall.first().map_or_else(String::new, |one| {
        format!(" Tasks: {} prompts of {:.0} tokens on average, so only large losses show.", one.n, one.tokens)
    })
}

/// A description of the prompts that the column of tasks comes from.
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
         same prompts, with the 95 % interval of the paired bootstrap. So few prompts show large losses only, and an interval may reach beyond what is possible.",
        one.tasks,
        one.n,
        sizes.join(", "),
        one.tokens,
    )
}
