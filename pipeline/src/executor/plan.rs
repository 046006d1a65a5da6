//! The plan: which stages run, in how many slices, and after which others.

use anyhow::Result;

use crate::stage::{Need, Run, Stage, makers};

/// One stage of a plan.
#[derive(Debug)]
pub struct Step {
    pub stage: &'static dyn Stage,
    /// Number of slices; 1: the stage runs as a whole.
    pub slices: usize,
    /// The steps, by number, whose outputs it reads.
    pub needs: Vec<usize>,
}

/// Stages in an order in which they can be run.
#[derive(Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    /// The plan of these stages, each of which comes after those that it needs.
    ///
    /// # Errors
    /// If a section names a scheme that does not exist, or the fetched model cannot be opened.
    pub fn of(run: &Run, stages: &[&'static dyn Stage]) -> Result<Self> {
        let most = run.config.executor.slices();
        let mut steps: Vec<Step> = Vec::with_capacity(stages.len());
        for &stage in stages {
            let slices = match stage.declaration().sliced {
                Some(sliced) if most > 1 => sliced.units(run)?.min(most).max(1),
                _ => 1,
            };
            let earlier: Vec<&str> = steps.iter().map(|step| step.stage.name()).collect();
            let needs = needs(run, stage, &earlier)?;
            steps.push(Step { stage, slices, needs });
        }
        Ok(Self { steps })
    }
}

/// The numbers of those `earlier` stages that a stage reads.
fn needs(run: &Run, stage: &dyn Stage, earlier: &[&str]) -> Result<Vec<usize>> {
    if stage.declaration().follows_all {
        return Ok((0..earlier.len()).collect());
    }
    let mut names: Vec<&str> = Vec::new();
    for need in stage.declaration().needs {
        match need {
            Need::Stage(name) => names.push(name),
            Need::Schemes(schemes) => {
                let makers = makers(run.stages, schemes(&run.config).names)?;
                names.extend(makers.iter().map(|maker| maker.name()));
            }
            Need::Model | Need::Corpora | Need::Documents | Need::Tasks(_) => {}
        }
    }
    Ok((0..earlier.len()).filter(|&at| names.contains(&earlier[at])).collect())
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::config::Config;
    use crate::paths::Paths;
    use crate::stage::Slice;
    use crate::stages::all;

    /// A run of the profile `smoke` whose outputs would lie in `data`.
    pub fn run_in(data: &Path, overrides: &[&str]) -> Run {
        let profiles = Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
        let overrides: Vec<String> = overrides.iter().map(|&item| item.to_owned()).collect();
        Run {
            profile: "smoke".into(),
            arguments: ["--profile", "smoke"].map(str::to_owned).into(),
            config: Config::load(&profiles, "smoke", &overrides).unwrap(),
            paths: Paths {
                root: data.into(),
                run: data.join("runs/smoke"),
                base: None,
                results: data.join("results"),
                cache: data.join("cache"),
                longbench: None,
            },
            force: false,
            slice: Slice::Whole,
            stages: all::ALL,
        }
    }

    #[test]
    fn steps_follow_what_they_read_and_nothing_else() {
        let run =
            run_in(Path::new("/nowhere"), &["evaluate.schemes=[\"dense\",\"csr-8@best\",\"csr+@2\",\"lexico-8\"]"]);
        let plan = Plan::of(&run, &all::reproduced(&run.config).unwrap()).unwrap();
        let of = |name: &str| {
            let step = plan.steps.iter().find(|step| step.stage.name() == name).unwrap();
            assert_eq!(step.slices, 1, "the model is not opened where nothing is sliced");
            step.needs.iter().map(|&at| plan.steps[at].stage.name()).collect::<Vec<_>>()
        };
        assert!(of("calibrate").is_empty());
        assert_eq!(of("train"), ["calibrate", "merge"]);
        assert_eq!(of("calibrate-peers"), ["calibrate"], "beside training");
        assert_eq!(of("suite"), ["train"]);
        assert_eq!(of("evaluate"), ["calibrate", "train", "train-best", "train-plus", "calibrate-peers"]);
        assert_eq!(of("report").len(), plan.steps.len() - 1);
    }

    #[test]
    fn stages_have_as_many_slices_as_units_at_most() {
        let slices = |set: &str| {
            let run = run_in(Path::new("/nowhere"), &[set, "evaluate.documents=1", "heldout.repeats=1"]);
            let stages: Vec<&dyn Stage> = all::ALL.iter().copied().filter(|s| s.name() == "evaluate").collect();
            Plan::of(&run, &stages).unwrap().steps[0].slices
        };
        // One document of each of two domains, and a passage.
        assert_eq!([slices("executor.slices=2"), slices("executor.slices=9"), slices("executor.slices=0")], [2, 3, 1]);
    }
}
