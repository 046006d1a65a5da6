//! The one list of all stages. The command line, the order of `reproduce`, the downloads, the search for the stage that makes a
//! scheme's artefacts, and the report use it. Stages themselves get it with their [`Run`](crate::stage::Run).

use anyhow::Result;

use super::{
    ablate, allocate, at_rest, calibrate, calibrate_peers, ceiling, compare, evaluate, longbench, merge, report, suite,
    train, train_best, train_plus, train_rope,
};
use crate::config::Config;
use crate::stage::{Need, Stage, makers};

/// Every stage, each after those it needs.
pub static ALL: &[&dyn Stage] = &[
    &calibrate::Calibrate,
    &ceiling::Ceiling,
    &merge::Merge,
    &train::Train,
    &train_best::TrainBest,
    &train_rope::TrainRope,
    &allocate::Allocate,
    &train_plus::TrainPlus,
    &calibrate_peers::CalibratePeers,
    &ablate::Ablate,
    &evaluate::Evaluate,
    &compare::Compare,
    &at_rest::AtRest,
    &suite::Suite,
    &longbench::LongBench,
    &report::Report,
];

/// The stages `goals` and all stages that they need, in the order in which they run.
///
/// # Errors
/// If a section of the configuration names a scheme that does not exist.
pub fn leading_to(goals: &[&'static dyn Stage], config: &Config) -> Result<Vec<&'static dyn Stage>> {
    let mut wanted: Vec<&str> = goals.iter().map(|stage| stage.name()).collect();
    // A stage comes after those that it needs, so one pass from the last to the first finds all.
    for stage in ALL.iter().rev() {
        if !wanted.contains(&stage.name()) {
            continue;
        }
        for need in stage.declaration().needs {
            match need {
                Need::Stage(earlier) => wanted.push(earlier),
                Need::Schemes(schemes) => {
                    wanted.extend(makers(ALL, schemes(config).names)?.iter().map(|maker| maker.name()));
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

/// Lets every stage check its section, and returns `config`.
///
/// # Errors
/// The first check that fails.
pub fn checked(config: Config) -> Result<Config> {
    ALL.iter().try_for_each(|stage| stage.check(&config))?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::config::tests::smoke;
    use crate::stages::report::sections;

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
        for shown in sections::ALL.iter().flat_map(|section| section.stages()) {
            assert!(known.contains(shown), "a section shows the stage {shown}; there are {}", known.join(", "));
        }
    }

    /// Name, sentence and body of every command in the justfile's group of stages.
    fn commands() -> Vec<(String, String, String)> {
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
    fn the_justfile_has_a_command_for_every_stage_with_its_sentence_and_no_others() {
        let declared: Vec<(&str, &str)> = ALL.iter().map(|stage| (stage.name(), stage.declaration().about)).collect();
        let commands = commands();
        let written: Vec<(&str, &str)> =
            commands.iter().map(|(name, about, _)| (name.as_str(), about.as_str())).collect();
        assert_eq!(written, declared);
        for (name, _, body) in &commands {
            // Or it runs the stage with those that it needs.
            let led = format!("@{{{{ kvcsr }}}} reproduce --to {name} --to report \"$@\"");
            assert!(body.lines().any(|line| line == "@{{ stage }}" || line == led), "{name}: {body}");
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

    #[test]
    fn only_the_stages_are_asked_for_that_some_scheme_is_built_from() {
        let needs = |names: &[&str]| -> Result<Vec<&str>> {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            let stages = leading_to(&makers(ALL, &names)?, &smoke())?;
            Ok(stages.iter().map(|stage| stage.name()).filter(|name| !["calibrate", "merge"].contains(name)).collect())
        };
        assert!(needs(&["dense", "dense-f16", "kivi-2", "svdq-2"]).unwrap().is_empty());
        assert_eq!(needs(&["csr-8@kmeans", "csr-8+window"]).unwrap(), ["train"]);
        assert_eq!(needs(&["csr-8+rope"]).unwrap(), ["train", "train-rope"]);
        assert_eq!(needs(&["dense", "csr-8+refit@best"]).unwrap(), ["train", "train-best"]);
        assert_eq!(needs(&["csr-8+budget"]).unwrap(), ["train", "allocate"]);
        for calibrated in [
            "lexico-8",
            "lexico-8+packed@lexico-4096",
            "cq-8c8b",
            "cq-8c8b+window",
            "commvq-k-1",
            "svdq-2(basis=calibrated)",
        ] {
            assert_eq!(needs(&["dense", calibrated]).unwrap(), ["calibrate-peers"], "{calibrated}");
        }
        assert!(needs(&["densest"]).is_err());
    }

    /// The profile `name` with overrides, as the program loads it.
    fn loaded(name: &str, overrides: &[&str]) -> Result<Config> {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        let overrides: Vec<String> = overrides.iter().map(|&text| text.to_owned()).collect();
        checked(Config::load(&profiles, name, &overrides)?)
    }

    #[test]
    fn every_profile_passes_its_stages_checks_and_a_bad_value_does_not() {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles")).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let name = file.strip_suffix(".toml").unwrap();
            if name != "defaults" {
                loaded(name, &["model=/path/to/model"]).unwrap();
            }
        }
        let refused = format!("{:#}", loaded("smoke", &["train.sparsity=7"]).unwrap_err());
        assert!(refused.contains("value_chunks"), "{refused}");
    }

    #[test]
    fn texts_of_the_papers_profiles_fit_their_models() {
        let fits = |profile: &str, positions, set: &[&str]| {
            let config = loaded(profile, &[&["model=/path/to/model"], set].concat()).unwrap();
            ALL.iter().try_for_each(|stage| stage.fits(&config, positions))
        };
        for (profile, positions) in
            [("llama2-7b-chat", 4096), ("llama3-8b-instruct", 8192), ("baichuan2-7b-chat", 4096)]
        {
            fits(profile, positions, &[]).unwrap();
        }
        for (set, said) in [
            ("compare.contexts=[1024,4096]", "compare: a context of 4096 tokens and what follows take 4873 positions"),
            ("at_rest.contexts=[4096]", "lower at_rest.contexts"),
            ("calibrate.sequence=8192", "calibrate.sequence = 8192: the model has 4096 positions"),
        ] {
            let refused = fits("llama2-7b-chat", 4096, &[set]).unwrap_err().to_string();
            assert!(refused.contains(said), "{refused}");
        }
    }
}
