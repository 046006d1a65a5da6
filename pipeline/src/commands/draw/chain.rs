//! Draws the pipeline from text to figures, with the files between its stages, as the stages declare them.

use anyhow::{Context, Result};

use super::paper::{Anchor, Sheet};
use crate::stage::Output;
use crate::stages::all;

/// The stages that are drawn, and what each does in a few words.
const STAGES: [(&str, &str); 7] = [
    ("calibrate", "keys and values of every layer"),
    ("merge", "which layers are alike"),
    ("train", "NeuralDict: a dictionary a group"),
    ("allocate", "what an error costs in each layer"),
    ("train-plus", "atoms and axes of CSR+"),
    ("compare", "every scheme, same documents"),
    ("report", "tables, figures, one HTML page"),
];
/// Stages in the upper row; the others follow below, from right to left.
const UPPER: usize = 4;
const WIDE: f64 = 204.0;
const APART: f64 = 236.0;

/// The declared files of a stage, at most two, and whether there are more.
fn files(name: &str) -> Result<(Vec<&'static str>, bool)> {
    let stage = all::ALL.iter().find(|stage| stage.name() == name).with_context(|| format!("no stage {name}"))?;
    let makes = stage.declaration().makes;
    Ok((makes.iter().take(2).map(|Output { file, .. }| *file).collect(), makes.len() > 2))
}

/// The drawing.
pub(super) fn draw() -> Result<String> {
    let mut sheet = Sheet::new((960, 320), "The pipeline: from text to figures, with the files that each stage makes");
    let place = |at: usize| {
        if at < UPPER {
            (12.0 + at as f64 * APART, 62.0)
        } else {
            (12.0 + (UPPER + UPPER - 1 - at) as f64 * APART, 212.0)
        }
    };
    sheet.text("small", Anchor::Start, (12.0, 24.0), "model and texts, fetched by package and sha256");
    sheet.arrow(&[(12.0 + WIDE / 2.0, 32.0), (12.0 + WIDE / 2.0, 58.0)]);
    for (at, (name, about)) in STAGES.into_iter().enumerate() {
        let (x, y) = place(at);
        sheet.rect("box", (x, y), (WIDE, 44.0), 6.0);
        sheet.text("strong", Anchor::Middle, (x + WIDE / 2.0, y + 19.0), format!("just {name}"));
        sheet.text("small", Anchor::Middle, (x + WIDE / 2.0, y + 36.0), about);
        let (files, more) = files(name)?;
        for (line, file) in files.iter().enumerate() {
            let y = y + 50.0 + line as f64 * 22.0;
            sheet.rect("file", (x + 8.0, y), (WIDE - 16.0, 18.0), 3.0);
            let more = if more && line + 1 == files.len() { ", …" } else { "" };
            sheet.text("mono", Anchor::Middle, (x + WIDE / 2.0, y + 13.0), format!("{file}{more}"));
        }
        if at + 1 == STAGES.len() {
            continue;
        }
        let (next, below) = place(at + 1);
        if at + 1 == UPPER {
            let right = x + WIDE + 12.0;
            sheet.arrow(&[
                (x + WIDE, y + 22.0),
                (right, y + 22.0),
                (right, below + 22.0),
                (next + WIDE + 3.0, below + 22.0),
            ]);
        } else if next > x {
            sheet.arrow(&[(x + WIDE, y + 22.0), (next - 3.0, y + 22.0)]);
        } else {
            sheet.arrow(&[(x, y + 22.0), (next + WIDE + 3.0, y + 22.0)]);
        }
    }
    sheet.text("small", Anchor::Start, (12.0, 238.0), "just reproduce runs what is needed.");
    sheet.text("small", Anchor::Start, (12.0, 256.0), "A stage runs again only if its");
    sheet.text("small", Anchor::Start, (12.0, 274.0), "parameters or inputs changed.");
    Ok(sheet.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stage::Need;

    #[test]
    fn the_chain_is_an_order_in_which_stages_can_run() {
        let shown: Vec<&str> = STAGES.iter().map(|(name, _)| *name).collect();
        for (at, name) in shown.iter().enumerate() {
            let stage = all::ALL.iter().find(|stage| stage.name() == *name).unwrap();
            for need in stage.declaration().needs {
                if let Need::Stage(needed) = need {
                    assert!(shown[..at].contains(needed), "{name} needs {needed}, which is not drawn before it");
                }
            }
        }
    }
}
