//! Tries budgets as real caches, on texts that their costs were not measured on.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use kvcsr_cache::tensor::Attention;
use kvcsr_cache::{Budget, Budgets, SchemeContext, registry};
use kvcsr_codec::DictionarySet;
use kvcsr_eval::heldout::{HeldoutText, Reference};
use kvcsr_model::Decoder;
use kvcsr_records::Journal;
use serde::{Deserialize, Serialize};

use crate::stages::inputs::PREFILL_CHUNK;
use crate::ui;

/// The part of a scheme's name that says that it needs this stage.
pub const PART: &str = "+budget";

/// CSR's own levels: what an allocation must beat.
pub const UNIFORM: &str = "even";

/// The allocations that are tried. They differ in the power of the error that KL is assumed to grow with: the higher the power, the
/// closer to even levels. On the embedded model, a power of one loses to the even levels, and a power of six loses to four.
pub const POWERS: [(&str, f64); 3] = [("power 2", 2.0), ("power 3", 3.0), ("power 4", 4.0)];

/// A budget that may become the budget of its level.
pub struct Candidate {
    pub level: usize,
    pub name: &'static str,
    pub budget: Budget,
}

/// The KL of a candidate on one text.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckRow {
    pub id: String,
    pub level: usize,
    pub name: String,
    pub scored: usize,
    pub kl_sum: f64,
}

/// Appends a row for every text and candidate that `path` lacks.
pub fn run(
    set: DictionarySet,
    decoder: &Decoder,
    texts: &[(String, HeldoutText)],
    candidates: &[Candidate],
    path: &Path,
) -> Result<()> {
    let (mut journal, _) = Journal::open(path, |row: &CheckRow| (row.id.clone(), row.level, row.name.clone()))?;
    let mut context = SchemeContext::new(decoder.geometry())
        .with_dictionaries(registry::DEFAULT_DICTIONARIES, set)
        .with_attention(Attention::Auto, decoder.device());
    let dense = registry::build("dense", &context)?;
    let bar = ui::bar("allocate", (texts.len() * candidates.len()) as u64, "texts x budgets tried");
    for (id, text) in texts {
        let todo: Vec<&Candidate> =
            candidates.iter().filter(|c| !journal.contains(&(id.clone(), c.level, c.name.to_owned()))).collect();
        bar.inc((candidates.len() - todo.len()) as u64);
        if todo.is_empty() {
            continue;
        }
        let reference = Reference::new(decoder, text, PREFILL_CHUNK, dense.as_ref())?;
        for candidate in todo {
            let Candidate { level, name, budget } = candidate;
            bar.set_message(format!("{id}: level {level}, {name}"));
            context = context.with_budgets(Budgets::from([(*level, budget.clone())]));
            let scheme = registry::build(&format!("csr-{level}{PART}"), &context)?;
            let score = reference.score(decoder, scheme.as_ref())?;
            journal.append(&CheckRow {
                id: id.clone(),
                level: *level,
                name: (*name).to_owned(),
                scored: score.scored,
                kl_sum: score.kl_sum,
            })?;
            bar.inc(1);
        }
    }
    bar.finish();
    Ok(())
}

/// Mean KL of every candidate of a level, in the order they were tried.
pub fn means(level: usize, rows: &[CheckRow]) -> Vec<(String, f64)> {
    let mut sums: Vec<(String, f64, usize)> = Vec::new();
    for row in rows.iter().filter(|row| row.level == level) {
        match sums.iter_mut().find(|(name, ..)| *name == row.name) {
            Some((_, kl, scored)) => (*kl, *scored) = (*kl + row.kl_sum, *scored + row.scored),
            None => sums.push((row.name.clone(), row.kl_sum, row.scored)),
        }
    }
    sums.into_iter().map(|(name, kl, scored)| (name, kl / scored.max(1) as f64)).collect()
}

/// For every level, the budget with the lowest KL in the trial; among equal ones the first, which is CSR's own.
pub fn best(candidates: &[Candidate], rows: &[CheckRow]) -> Budgets {
    let mut best: BTreeMap<usize, (f64, &Budget)> = BTreeMap::new();
    for Candidate { level, name, budget } in candidates {
        let Some((_, kl)) = means(*level, rows).into_iter().find(|(tried, _)| tried == name) else { continue };
        if best.get(level).is_none_or(|(least, _)| kl < *least) {
            best.insert(*level, (kl, budget));
        }
    }
    best.into_iter().map(|(level, (_, budget))| (level, budget.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_budget_where_tried_is_kept_and_even_levels_where_none_is_better() {
        let budget = |level: usize, shift: usize| Budget { keys: vec![level - shift], values: vec![level + shift] };
        let candidate = |level, name, shift| Candidate { level, name, budget: budget(level, shift) };
        let candidates = [
            candidate(4, UNIFORM, 0),
            candidate(4, "allocated", 2),
            candidate(8, UNIFORM, 0),
            candidate(8, "allocated", 4),
            candidate(8, "damped", 2),
        ];
        let row = |id: &str, level, name: &str, kl_sum| CheckRow {
            id: id.into(),
            level,
            name: name.into(),
            scored: 10,
            kl_sum,
        };
        let rows = [
            row("a", 4, UNIFORM, 3.0),
            row("a", 4, "allocated", 3.0),
            row("a", 8, UNIFORM, 2.0),
            row("b", 8, UNIFORM, 2.0),
            row("a", 8, "allocated", 1.0),
            row("b", 8, "allocated", 4.0),
            row("a", 8, "damped", 1.5),
            row("b", 8, "damped", 1.0),
        ];
        let best = best(&candidates, &rows);
        assert_eq!(best[&4], budget(4, 0));
        assert_eq!(best[&8], budget(8, 2));
        assert_eq!(means(8, &rows)[1], ("allocated".to_owned(), 0.25));
    }
}
