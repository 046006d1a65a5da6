//! The command line. Commands of stages come from the stages' declarations: see [`stages`].

mod stages;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::commands::bench::BenchArgs;
use crate::commands::diff_runs::DiffRunsArgs;
use crate::commands::draw::DrawArgs;
use crate::commands::gpu_check::GpuCheckArgs;
use crate::commands::plan::PlanArgs;
use crate::commands::schemes::SchemesArgs;
use crate::commands::score::ScoreArgs;
use crate::commands::stage_times::StageTimesArgs;
use crate::models::Opened;
use crate::stage::Stage;

/// From text to figures: fetch, calibrate, train, evaluate and report on KV-cache compression.
///
/// Every stage writes its outputs and a manifest to data/runs/PROFILE/STAGE. It runs again only
/// if its parameters or inputs changed, and says which. All parameters and their defaults are in
/// pipeline/profiles/defaults.toml. A profile overrides the defaults, and the command line
/// overrides the profile. For example:
///
///   kvcsr train profile=smol set="train.atoms=2048"
#[derive(Debug, Parser)]
#[command(name = "kvcsr", version, verbatim_doc_comment)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// The command that the program runs.
#[derive(Debug)]
pub enum Command {
    /// Runs one stage of [`crate::stages::all::ALL`].
    Stage(&'static dyn Stage, RunArgs),
    /// A command about several stages or a whole run.
    Whole(Whole),
    /// A command that writes no manifest.
    Tool(Box<Tool>),
}

/// Commands about several stages or a whole run. They come first in the help.
#[derive(Debug, Subcommand)]
pub enum Whole {
    /// Download the inputs, run evaluate, suite and report, and before them all stages that they need
    Reproduce {
        #[command(flatten)]
        args: RunArgs,
        /// Run only this stage and the stages that it needs (may be repeated)
        #[arg(long, value_name = "STAGE")]
        to: Vec<String>,
        /// Where the stages run: local, or slurm (as jobs of a cluster; the same as the word executor=slurm). `[executor]` of the
        /// profile sets the jobs' options
        #[arg(long, value_name = "KIND")]
        executor: Option<String>,
    },
    /// Show the state of the jobs that `reproduce executor=slurm` submitted, and the logs of failed ones
    Status(RunArgs),
    /// Cancel the jobs that `reproduce executor=slurm` submitted and that are queued or running
    Cancel(RunArgs),
    /// Download the profile's model and texts, each checked against its sha256; `fetch longbench` downloads LongBench
    Fetch(RunArgs),
    /// Check every downloaded file of data/sources.toml again
    DataVerify,
    /// Run the stages at every point of the profile's [sweep], each point in its own run, and draw the scores against the swept
    /// parameter
    Sweep {
        #[command(flatten)]
        args: RunArgs,
        /// Where the points run: local, or slurm (one job for each point; the same as the word executor=slurm)
        #[arg(long, value_name = "KIND")]
        executor: Option<String>,
    },
    /// Show parameters and scores of two runs side by side
    DiffRuns(DiffRunsArgs),
    /// Keep a profile's run under another name, as data/runs/PROFILE+NAME (files are linked, not copied, if the file system
    /// allows it)
    Keep {
        /// The profile whose run is kept
        profile: String,
        /// The name to keep it under
        name: String,
    },
}

/// Commands that are not stages. They come last in the help.
#[derive(Debug, Subcommand)]
pub enum Tool {
    /// Show the size of a cache, by part and by sequence length, for any published model shape; needs no weights
    Footprint(FootprintArgs),
    /// Continue a prompt with a compressed cache, then show the size of the cache
    Generate(GenerateArgs),
    /// Write the logits of a list of token ids, to compare with another implementation
    Logits(LogitsArgs),
    /// Score a file of LongBench predictions as LongBench's own eval.py does; prints {task, n, score}
    Score(ScoreArgs),
    /// Check a GPU (or rehearse on the CPU): the contract of caches, agreement with the CPU, speed compared with PyTorch, training
    GpuCheck(GpuCheckArgs),
    /// Compare our speed with PyTorch, SPAMS, scikit-learn, faiss and llama.cpp; writes data/results/bench.csv and
    /// docs/PERFORMANCE.md
    Bench(BenchArgs),
    /// Draw the README's two drawings: a vector as three atoms, and the pipeline
    Draw(DrawArgs),
    /// Write time, memory and disk use of the published stages into docs/REPRODUCING.md
    StageTimes(StageTimesArgs),
    /// List the cache schemes that profiles can name
    Schemes(SchemesArgs),
    /// Write the bits that csr+@B gives to each layer as a file to edit, or show the bits and the loss of an edited file
    Plan(PlanArgs),
}

/// Which model, and how it runs.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// A GGUF file, a folder with config.json and weights, hf:owner/name@commit, or `default`: the embedded model
    #[arg(long, default_value = "default", value_name = "PATH")]
    pub model: String,
    /// Device of the model: auto, cpu or cuda:N
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Dtype of the model's matrices: auto (as stored; quantised matrices as f32), f32, bf16, f16, or bf16-fast (activations in
    /// bf16 too; halves the time of a prefill)
    #[arg(long, default_value = "auto")]
    pub dtype: String,
    /// How attention over a compressed cache is computed: codes (SIMD kernels on the CPU), tensor (codes as tensors on the
    /// model's device), or auto (codes on the CPU; on a GPU tensor, for schemes that have it)
    #[arg(long, default_value = "auto")]
    pub attention: String,
    /// Threads; 0: all cores
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

impl ModelArgs {
    /// Sets the threads and opens the model.
    pub fn open(&self) -> Result<Opened> {
        rayon::ThreadPoolBuilder::new().num_threads(self.threads).build_global().context("thread pool")?;
        Opened::named(&self.model)
    }
}

/// Show the size of a cache for these shapes, schemes and sequence lengths. For example:
///
///   kvcsr footprint --shape llama2-7b-chat --tokens 1000..32000 --schemes "dense-f16 kivi-2 csr-8+online csr-4"
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct FootprintArgs {
    /// A profile, for the shape of its model and its number of atoms; or the id of a shape
    #[arg(long, value_name = "NAME")]
    pub profile: Option<String>,
    /// The id of a shape in data/shapes.toml (may be repeated); without --shape and --profile: the two shapes of the paper's
    /// Figure 4
    #[arg(long, value_name = "ID")]
    pub shape: Vec<String>,
    /// Sequence lengths: FIRST..LAST in steps of FIRST, FIRST..LAST:STEP, or a list
    #[arg(long, default_value = "1000..32000")]
    pub tokens: String,
    /// Schemes, separated by spaces: dense-f16, fp8, kivi-2, kivi-4, and csr-S with its parts
    #[arg(long, default_value = "dense-f16 fp8 kivi-2 csr-6+online csr-4+online csr-6 csr-4")]
    pub schemes: String,
    /// Number of sequences in the cache; they share the dictionaries
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Give layers a sliding window of this many tokens, instead of the shape's own
    #[arg(long, value_name = "TOKENS")]
    pub window: Option<usize>,
    /// Number of layers that have this window (default: all)
    #[arg(long, value_name = "LAYERS", requires = "window")]
    pub window_layers: Option<usize>,
    /// Offline atoms per dictionary, instead of the shape's or the profile's
    #[arg(long)]
    pub atoms: Option<usize>,
    /// Folder for the figure and its data
    #[arg(long, default_value = "data/runs/footprint", value_name = "FOLDER")]
    pub out: PathBuf,
}

/// What to continue, and how.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Cache scheme; `kvcsr schemes` lists them
    #[arg(long, default_value = "csr-8")]
    pub scheme: String,
    /// Text to continue; `-` reads it from standard input
    #[arg(long, value_name = "TEXT", required_unless_present_any = ["prompt_file", "load_cache"])]
    pub prompt: Option<String>,
    /// File whose whole text is the text to continue
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as the user's turn
    #[arg(long)]
    pub chat: bool,
    /// Write the prompt's keys and values to a small file, which --load-cache reads (needs the tables of csr+: `just train-plus`)
    #[arg(long, value_name = "FILE", conflicts_with = "load_cache")]
    pub save_cache: Option<PathBuf>,
    /// Approximate bits per channel of that file, from 0.1 to 8
    #[arg(long, value_name = "BITS", default_value_t = 1.0, requires = "save_cache")]
    pub cache_bits: f64,
    /// Start with the prompt in a file that --save-cache wrote, without running the model over it; the text of --prompt follows it
    #[arg(long, value_name = "FILE", conflicts_with = "chat")]
    pub load_cache: Option<PathBuf>,
    /// Generate at most this many tokens
    #[arg(long, default_value_t = 64)]
    pub max_new: usize,
    /// 0: always take the most likely token; above 0: sample tokens at this temperature
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample only from the most likely tokens that together have this probability
    #[arg(long)]
    pub top_p: Option<f64>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop before this text (may be repeated)
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Use the dictionaries that this profile trained
    #[arg(long, default_value = "smol")]
    pub profile: String,
    /// Use this dictionary file instead of the profile's
    #[arg(long, value_name = "FILE")]
    pub dictionaries: Option<PathBuf>,
}

/// The model, the token ids and the output file.
#[derive(Debug, Args)]
pub struct LogitsArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// File with a JSON list of token ids
    #[arg(long, value_name = "FILE")]
    pub ids: PathBuf,
    /// Safetensors file to write: one tensor `logits`, (T, V) f32
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// The profile, its overrides, and how it runs.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Profile: the name of a file in pipeline/profiles, without .toml
    #[arg(long, default_value = "smol")]
    pub profile: String,
    /// Override a parameter, for example train.atoms=2048 (may be repeated)
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub overrides: Vec<String>,
    /// Write the outputs to data/runs/PROFILE+NAME, apart from the profile's own; stages that do not change are shared
    #[arg(long, value_name = "NAME")]
    pub run: Option<String>,
    /// Run the stage even if it is up to date
    #[arg(long)]
    pub force: bool,
    /// The same options as words: profile=NAME, run=NAME, set="PATH=VALUE PATH=VALUE", force
    #[arg(value_name = "WORD")]
    pub words: Vec<String>,
    /// `2/4` or `merge/4`, from the options `--shard` and `--merge` of stages that can run in slices; empty: the whole stage.
    #[arg(skip)]
    pub slice: String,
    /// Where stages run, from the word executor=KIND. `reproduce` and `sweep` have the option `--executor` beside it.
    #[arg(skip)]
    pub executor: Option<String>,
}

impl RunArgs {
    /// Turns the words into the options that they stand for.
    pub fn resolve(mut self) -> Result<Self> {
        for word in std::mem::take(&mut self.words) {
            match word.split_once('=') {
                Some(("profile", name)) => self.profile = name.to_owned(),
                Some(("run", name)) => self.run = Some(name.to_owned()),
                Some(("set", items)) => self.overrides.extend(split(items)),
                Some(("executor", kind)) => self.executor = Some(kind.to_owned()),
                Some((path, _)) if path.contains('.') => self.overrides.push(word),
                None if word == "force" => self.force = true,
                _ => bail!(
                    "`{word}` was not understood: expected profile=NAME, run=NAME, set=\"PATH=VALUE ...\" or force"
                ),
            }
        }
        Ok(self)
    }

    /// The arguments that give another process the same configuration, without `force`, the slice and the executor.
    pub fn arguments(&self) -> Vec<String> {
        let run = self.run.iter().flat_map(|name| ["--run", name]);
        let overrides = self.overrides.iter().flat_map(|item| ["--set", item]);
        ["--profile", &self.profile].into_iter().chain(run).chain(overrides).map(str::to_owned).collect()
    }
}

/// Splits at spaces outside brackets and quotes, so that lists may contain spaces.
fn split(items: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let (mut depth, mut quoted) = (0i32, false);
    for c in items.chars() {
        match c {
            '"' => quoted = !quoted,
            '[' | '{' if !quoted => depth += 1,
            ']' | '}' if !quoted => depth -= 1,
            _ => {}
        }
        if c.is_whitespace() && depth == 0 && !quoted {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts.retain(|p| !p.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn resolve(words: &[&str]) -> Result<RunArgs> {
        match Cli::parse_from(["kvcsr", "train"].iter().chain(words)).command {
            Command::Stage(stage, args) if stage.name() == "train" => args.resolve(),
            other => unreachable!("{other:?}"),
        }
    }

    #[test]
    fn words_and_options_mean_the_same() {
        let a = resolve(&["profile=smoke", "set=train.atoms=2048 evaluate.schemes=[\"dense\", \"csr-4\"]", "force"])
            .unwrap();
        assert_eq!((a.profile.as_str(), a.force), ("smoke", true));
        assert_eq!(a.overrides, ["train.atoms=2048", "evaluate.schemes=[\"dense\", \"csr-4\"]"]);
        let b = resolve(&["--profile", "smoke", "--set", "train.atoms=2048", "train.epochs=1"]).unwrap();
        assert_eq!(b.overrides, ["train.atoms=2048", "train.epochs=1"]);
        assert!(resolve(&["profil=smoke"]).unwrap_err().to_string().contains("profile=NAME"));
    }

    #[test]
    fn options_of_a_stage_are_parameters() {
        let longbench = |args: &[&str]| Cli::try_parse_from(["kvcsr", "longbench"].iter().chain(args));
        let overrides = |args: &[&str]| match longbench(args).unwrap().command {
            Command::Stage(_, args) => args.overrides,
            other => unreachable!("{other:?}"),
        };
        assert_eq!(overrides(&["--keep-going"]), ["longbench.keep_going=true"]);
        assert_eq!(overrides(&["--set", "a.b=1", "--keep-going"]), ["a.b=1", "longbench.keep_going=true"]);
        assert!(Cli::try_parse_from(["kvcsr", "suite", "--keep-going"]).is_err());
    }

    #[test]
    fn stages_of_many_units_can_be_run_in_slices() {
        let slice = |args: &[&str]| match Cli::try_parse_from(["kvcsr"].iter().chain(args)).map(|cli| cli.command) {
            Ok(Command::Stage(_, args)) => Some(args.slice),
            Ok(other) => unreachable!("{other:?}"),
            Err(_) => None,
        };
        assert_eq!(slice(&["longbench", "--shard", "2/4"]).unwrap(), "2/4");
        assert_eq!(slice(&["train", "profile=smoke", "--merge", "4"]).unwrap(), "merge/4");
        assert_eq!(slice(&["train"]).unwrap(), "");
        assert!(slice(&["suite", "--merge", "4", "--shard", "1/4"]).is_none());
        assert!(slice(&["merge", "--shard", "1/4"]).is_none(), "one job");
    }

    #[test]
    fn arguments_give_another_process_the_same_configuration() {
        let args = resolve(&["profile=smoke", "run=big", "set=train.atoms=2048 a.b=[1, 2]", "force"]).unwrap();
        let said = args.arguments();
        assert_eq!(said, ["--profile", "smoke", "--run", "big", "--set", "train.atoms=2048", "--set", "a.b=[1, 2]"]);
        let words: Vec<&str> = said.iter().map(String::as_str).collect();
        assert_eq!(resolve(&words).unwrap().overrides, args.overrides);
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
