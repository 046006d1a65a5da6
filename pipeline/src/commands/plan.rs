//! `kvcsr plan`: writes the bits that csr+@B gives to each layer as a file to edit, or shows the bits and the predicted loss of an
//! edited file.

use anyhow::{Context, Result, ensure};
use clap::Args;
use kvcsr_cache::Geometry;
use kvcsr_cache::schemes::csr_plus::{BitPlan, TABLES};
use kvcsr_codec::CodebookSet;

use crate::config::plain;
use crate::manifest;
use crate::paths::Paths;
use crate::plans;
use crate::stages::train_plus::FILE;

/// Which plan.
///
///   kvcsr plan 2 --profile smol               # writes data/plans/smol/bits-2.toml
///   kvcsr plan --check bits-2 --profile smol  # after an edit: its bits and its loss
///   kvcsr generate --profile smol --scheme "csr+@2(plan=bits-2)" --prompt "..."
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct PlanArgs {
    /// Bits per channel, with everything that a sequence takes in memory, 0.25 to 8
    #[arg(required_unless_present = "check", conflicts_with = "check")]
    bits: Option<f64>,
    /// The profile whose tables are read (`just train-plus` makes them)
    #[arg(long, default_value = "smol")]
    profile: String,
    /// Tokens of the sequence for which the bits of its exact tokens are counted
    #[arg(long, default_value_t = 4096)]
    context: usize,
    /// Name of the file, data/plans/PROFILE/NAME.toml; `bits-B` if it is not given
    #[arg(long, conflicts_with = "check")]
    name: Option<String>,
    /// Instead of writing a plan, show the bits and the predicted loss of the plan NAME, and of the best plan with as many bits
    #[arg(long, value_name = "NAME")]
    check: Option<String>,
}

/// Writes a plan, or checks one.
pub fn run(args: &PlanArgs) -> Result<()> {
    ensure!(plain(&args.profile), "--profile: `{}` is not the name of a profile", args.profile);
    let paths = Paths::find(&args.profile)?;
    let dir = paths.run.join("train-plus");
    ensure!(
        dir.join(manifest::FILE).is_file(),
        "profile `{0}` has no tables of csr+: run `just train-plus profile={0}`",
        args.profile
    );
    let set = CodebookSet::load(dir.join(FILE))?;
    let geometry = Geometry { layers: set.layers, kv_heads: set.kv_heads, head_dim: set.head_dim };
    let folder = paths.plans(&args.profile);
    if let Some(name) = &args.check {
        ensure!(plain(name), "--check: `{name}` is not the name of a plan");
        let path = plans::file(&folder, name);
        let plan = plans::read(&path)?;
        let of = || format!("{}, over the tables `{TABLES}` of profile `{}`", path.display(), args.profile);
        let outcome = plan.outcome(&set, geometry).with_context(of)?;
        println!("{}", of());
        println!(
            "  {:.3} bits per channel, {:.5} nats of KL per token predicted",
            outcome.bits, outcome.predicted_loss
        );
        let bought = BitPlan::of(&set, geometry, outcome.bits, plan.context).and_then(|p| p.outcome(&set, geometry));
        match bought {
            Ok(bought) => println!(
                "  as many bits where they lower the KL most: {:.3} bits per channel, {:.5} nats",
                bought.bits, bought.predicted_loss
            ),
            Err(error) => println!("  as many bits where they lower the KL most: {error}"),
        }
        return Ok(());
    }
    let bits = args.bits.context("a number of bits is needed")?;
    ensure!((0.25..=8.0).contains(&bits), "{bits}: bits per channel from 0.25 to 8 are expected");
    let name = args.name.clone().unwrap_or_else(|| format!("bits-{bits}"));
    ensure!(plain(&name), "--name: `{name}` is not letters, digits, dots, dashes and underscores");
    let plan = BitPlan::of(&set, geometry, bits, args.context)?;
    let path = plans::file(&folder, &name);
    let title = format!("csr+@{bits}, profile {}", args.profile);
    plans::write(&path, &title, &plan, plan.outcome(&set, geometry)?)?;
    println!("{}", paths.show(&path));
    Ok(())
}
