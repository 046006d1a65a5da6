//! The stages, one file or folder each, and the one list of them.
//!
//! A new stage is its file with a [`Declaration`](crate::stage::Declaration), its line in [`ALL`], its section of
//! [`Config`] if it has parameters, and its recipe in the justfile, which a test asks for.

pub mod ablate;
pub mod allocate;
pub mod artefacts;
pub mod calibrate;
pub mod calibrate_peers;
pub mod compare;
pub mod evaluate;
pub mod heldout;
mod importance;
pub mod longbench;
pub mod merge;
pub mod provenance;
pub mod report;
pub mod scores;
pub mod suite;
pub mod train;
pub mod train_best;
pub mod train_rope;

use std::path::PathBuf;

use anyhow::{Context, Result};
use kvcsr_codec::{Kind, Shard};
use kvcsr_model::{Decoder, Tokenizer};
use serde_json::{Map, Value, json};

use crate::config::Config;
use crate::models::Opened;
use crate::sources::{SourceKind, Sources};
use crate::stage::{Need, Run, Stage, parameters_of};
use crate::text::{self, Side};

/// Every stage, each after those it needs.
pub static ALL: &[&dyn Stage] = &[
    &calibrate::Calibrate,
    &merge::Merge,
    &train::Train,
    &train_best::TrainBest,
    &train_rope::TrainRope,
    &allocate::Allocate,
    &calibrate_peers::CalibratePeers,
    &ablate::Ablate,
    &evaluate::Evaluate,
    &compare::Compare,
    &suite::Suite,
    &longbench::LongBench,
    &report::Report,
];

/// The stages that lead to `goals`, these included, in the order in which they are run.
///
/// # Errors
/// If a section of the configuration names a scheme that there is not.
pub fn leading_to(goals: &[&'static dyn Stage], config: &Config) -> Result<Vec<&'static dyn Stage>> {
    let mut wanted: Vec<&str> = goals.iter().map(|stage| stage.name()).collect();
    // A stage comes after those it needs, so that one pass from the last to the first finds all.
    for stage in ALL.iter().rev() {
        if !wanted.contains(&stage.name()) {
            continue;
        }
        for need in stage.declaration().needs {
            match need {
                Need::Stage(earlier) => wanted.push(earlier),
                Need::Schemes(schemes) => {
                    wanted.extend(artefacts::makers(schemes(config).names)?.iter().map(|maker| maker.name()));
                }
                Need::Model | Need::Corpora | Need::Documents | Need::Tasks(_) => {}
            }
        }
    }
    Ok(ALL.iter().copied().filter(|stage| wanted.contains(&stage.name())).collect())
}

/// The stages that `reproduce` runs.
///
/// # Errors
/// As [`leading_to`].
pub fn reproduced(config: &Config) -> Result<Vec<&'static dyn Stage>> {
    let goals: Vec<&dyn Stage> = ALL.iter().copied().filter(|stage| stage.declaration().reproduced).collect();
    leading_to(&goals, config)
}

/// Tokens per forward call of an exact prefill: bounds the memory of its activations.
pub const PREFILL_CHUNK: usize = 512;

/// The model of the configuration, fetched before.
pub fn open_model(run: &Run) -> Result<(Decoder, Tokenizer)> {
    let model = Opened::of(run)?;
    Ok((model.decoder(&run.config.device, &run.config.dtype)?, model.tokenizer()?))
}

/// Token sequences of one corpus and side of the split.
pub fn corpus(
    run: &Run,
    tokenizer: &Tokenizer,
    id: &str,
    side: Side,
    length: usize,
    count: usize,
) -> Result<Vec<Vec<u32>>> {
    let sources = Sources::load(&run.paths.root)?;
    let source = sources.get(id, SourceKind::Text)?;
    let path = source.fetched(&run.paths)?;
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let rule =
        source.documents.as_ref().with_context(|| format!("data/sources.toml: text `{id}` has no `documents` rule"))?;
    let all = text::documents(&text, rule);
    let picked = text::shuffled(&all, side, run.config.seed, run.config.calibrate.heldout_fraction);
    text::sequences(id, &picked, tokenizer, length, count)
}

/// The parameters of a stage that reads texts: its section of the configuration, and what says which texts are read.
pub fn text_parameters(run: &Run, section: &impl serde::Serialize) -> Result<Map<String, Value>> {
    let mut parameters = parameters_of(section)?;
    parameters.insert("corpora".into(), json!(run.config.corpora));
    parameters.insert("seed".into(), run.config.seed.into());
    parameters.insert("heldout_fraction".into(), run.config.calibrate.heldout_fraction.into());
    Ok(parameters)
}

/// `layer-07-keys.safetensors`.
pub fn shard_name(layer: usize, kind: Kind) -> String {
    format!("layer-{layer:02}-{kind}s.safetensors")
}

/// Layers of the model, as the calibrate stage recorded them.
pub fn layers(run: &Run) -> Result<usize> {
    let outputs = run.finished("calibrate")?.outputs;
    Ok(outputs.iter().filter(|o| o.file.starts_with("calibration/")).count() / 2)
}

/// What calibrate recorded of the attention that one layer's vectors get, `(T, Hkv, 1)`.
pub fn open_weights(run: &Run, side: Side, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Side::Calibration => "importance",
        Side::Heldout => "importance-heldout",
    };
    let path = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Shard::open(&path).context("no recorded attention: run calibrate with calibrate.importance = true")
}

/// One layer's vectors as the calibrate stage left them.
pub fn open_shard(run: &Run, side: Side, layer: usize, kind: Kind) -> Result<Shard> {
    let folder = match side {
        Side::Calibration => "calibration",
        Side::Heldout => "heldout",
    };
    let path: PathBuf = run.stage_dir("calibrate").join(folder).join(shard_name(layer, kind));
    Ok(Shard::open(&path)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::tests::smoke;

    #[test]
    fn every_stage_comes_after_those_it_needs() {
        for (at, stage) in ALL.iter().enumerate() {
            let earlier: Vec<&str> = ALL[..at].iter().map(|stage| stage.name()).collect();
            for need in stage.declaration().needs {
                if let Need::Stage(needed) = need {
                    assert!(earlier.contains(needed), "{} needs {needed}", stage.name());
                }
            }
        }
        let names: BTreeSet<&str> = ALL.iter().map(|stage| stage.name()).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn only_what_the_schemes_are_built_from_is_run() {
        let run = |names: &[&str]| {
            let mut config = smoke();
            config.evaluate.schemes = names.iter().map(|&name| name.to_owned()).collect();
            reproduced(&config).unwrap().iter().map(|stage| stage.name()).collect::<Vec<_>>()
        };
        assert_eq!(run(&["dense"]), ["calibrate", "merge", "train", "evaluate", "suite", "report"]);
        assert_eq!(
            run(&["dense", "csr-8+rope", "csr-8@best", "lexico-8"]),
            [
                "calibrate",
                "merge",
                "train",
                "train-best",
                "train-rope",
                "calibrate-peers",
                "evaluate",
                "suite",
                "report"
            ]
        );
    }

    #[test]
    fn sections_of_the_report_show_stages_that_there_are() {
        let known: Vec<&str> = ALL.iter().map(|stage| stage.name()).collect();
        for shown in report::sections::stages() {
            assert!(known.contains(&shown), "a section shows the stage {shown}; there are {}", known.join(", "));
        }
    }

    /// Sentence and body of every recipe in the justfile's group of stages, by name.
    fn recipes() -> Vec<(String, String, String)> {
        let mut found = Vec::new();
        let justfile = include_str!("../../../justfile");
        let lines: Vec<&str> = justfile.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| **line == "[group('stages')]") {
            let name = lines[at + 1].split([' ', ':']).next().unwrap();
            let body: Vec<&str> =
                lines[at + 2..].iter().take_while(|line| line.starts_with(' ')).map(|line| line.trim()).collect();
            assert!(at > 0, "{line}");
            found.push((name.to_owned(), lines[at - 1].trim_start_matches("# ").to_owned(), body.join("\n")));
        }
        found
    }

    #[test]
    fn the_justfile_has_a_recipe_for_every_stage_with_its_sentence_and_no_others() {
        let declared: Vec<(&str, &str)> = ALL.iter().map(|stage| (stage.name(), stage.declaration().about)).collect();
        let recipes = recipes();
        let written: Vec<(&str, &str)> =
            recipes.iter().map(|(name, about, _)| (name.as_str(), about.as_str())).collect();
        assert_eq!(written, declared);
        for (name, _, body) in &recipes {
            assert!(body.lines().any(|line| line == "@{{ stage }}"), "{name}: {body}");
        }
    }

    #[test]
    fn what_a_stage_makes_is_in_the_guide_to_the_files() {
        let guide = include_str!("../../../data/README.md");
        for stage in ALL {
            for output in stage.declaration().makes {
                assert!(
                    guide.contains(&format!("`{}", output.file)),
                    "data/README.md lacks {} of {}",
                    output.file,
                    stage.name()
                );
            }
        }
    }
}
