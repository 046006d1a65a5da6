//! Plans of `csr+@B(plan=NAME)`: files that a person reads and edits, `data/plans/PROFILE/NAME.toml`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use kvcsr_cache::schemes::csr_plus::{BitPlan, Outcome};
use kvcsr_cache::{Needs, SchemeContext};

use crate::atomic;

/// The largest file size that is read.
const LARGEST: u64 = 1 << 20;

/// The file of the plan called `name` in a profile's folder of plans.
pub fn file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.toml"))
}

/// Reads a plan.
///
/// # Errors
/// If the file does not exist or is not a plan.
pub fn read(path: &Path) -> Result<BitPlan> {
    let shown = || path.display().to_string();
    let bytes = std::fs::metadata(path).with_context(shown)?.len();
    ensure!(bytes <= LARGEST, "{}: a plan of at most {LARGEST} bytes is expected, found {bytes}", shown());
    let text = std::fs::read_to_string(path).with_context(shown)?;
    toml::from_str(&text).with_context(|| format!("{}: not a plan as `just kvcsr plan` writes it", shown()))
}

/// Writes a plan with comments for its reader; `title` says which plan it is.
pub fn write(path: &Path, title: &str, plan: &BitPlan, outcome: Outcome) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    atomic::write(path, text(title, plan, outcome)?.as_bytes())
}

/// The text of a plan's file.
pub fn text(title: &str, plan: &BitPlan, outcome: Outcome) -> Result<String> {
    let mut text = String::new();
    let Outcome { bits, predicted_loss } = outcome;
    writeln!(text, "# {title}: {bits:.3} bits per channel, {predicted_loss:.5} nats of KL per token predicted.")?;
    writeln!(
        text,
        "# `just kvcsr plan` wrote this file. Use it as \"csr+@B(plan=NAME)\", where NAME is the name of this file."
    )?;
    writeln!(
        text,
        "# After an edit, `just kvcsr plan --check NAME` says how many bits the plan takes, and what it loses.\n"
    )?;
    for (name, tokens, meaning) in [
        ("context", plan.context, "tokens of the sequence for which the bits of the exact tokens are counted"),
        ("sinks", plan.sinks, "first tokens kept in f16"),
        ("recent", plan.recent, "last tokens kept in f16"),
        ("graded", plan.graded, "tokens before those, kept in 4 bits beside their codes"),
    ] {
        writeln!(text, "{:<18}# {meaning}", format!("{name} = {tokens}"))?;
    }
    writeln!(
        text,
        "\n# A row per layer: how many coordinates of a token get 8, 7, 6, 5, 4, 3, 2 and 1 bits. The others get none."
    )?;
    writeln!(text, "layers = [")?;
    for (layer, counts) in plan.layers.iter().enumerate() {
        let counts: Vec<String> = counts.iter().map(|count| format!("{count:>4}")).collect();
        writeln!(text, "    [{}],  # layer {layer}", counts.join(","))?;
    }
    writeln!(text, "]")?;
    Ok(text)
}

/// Names of the plans that schemes need.
fn names(needs: &[Needs]) -> impl Iterator<Item = &str> {
    needs.iter().filter_map(|needs| needs.plan.as_deref())
}

/// The context with those plans that schemes need and that `folder` holds.
///
/// # Errors
/// As [`read`].
pub fn with(mut cx: SchemeContext, needs: &[Needs], folder: &Path) -> Result<SchemeContext> {
    for name in names(needs) {
        let path = file(folder, name);
        if path.is_file() {
            cx = cx.with_plan(name, read(&path)?);
        }
    }
    Ok(cx)
}

/// Names and digests of the plans that schemes need.
///
/// # Errors
/// If a plan is missing.
pub fn digests(needs: &[Needs], folder: &Path) -> Result<Vec<(String, String)>> {
    let digest = |name: &str| {
        let path = file(folder, name);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("{}: a scheme needs this plan; `just kvcsr plan` writes one", path.display()))?;
        Ok((format!("plans/{name}.toml"), blake3::hash(&bytes).to_hex().to_string()))
    };
    names(needs).map(digest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_was_written() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = file(folder.path(), "mine");
        let plan = BitPlan {
            context: 4096,
            sinks: 4,
            recent: 32,
            graded: 0,
            layers: vec![[0, 0, 1, 20, 3, 4, 100, 6], [0; 8]],
        };
        write(&path, "csr+@2", &plan, Outcome { bits: 1.99, predicted_loss: 0.01 })?;
        assert_eq!(read(&path)?, plan);
        let needs = |plan: Option<&str>| {
            let nothing = Needs::nothing(kvcsr_cache::KeysCoded::BeforeRope);
            [Needs { plan: plan.map(str::to_owned), ..nothing }]
        };
        assert_eq!(digests(&needs(Some("mine")), folder.path())?[0].0, "plans/mine.toml");
        assert!(digests(&needs(None), folder.path())?.is_empty());
        let missing = digests(&needs(Some("other")), folder.path()).map_err(|e| format!("{e:#}"));
        assert!(missing.is_err_and(|error| error.contains("other.toml") && error.contains("kvcsr plan")));
        Ok(())
    }

    #[test]
    fn what_is_no_plan_is_refused_by_its_file() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = file(folder.path(), "mine");
        for (text, expected) in [
            ("context = 1", "sinks"),
            ("context = -1\nsinks = 4\nrecent = 32\ngraded = 0\nlayers = []", "context"),
            ("context = 1\nsinks = 4\nrecent = 32\ngraded = 0\nlayers = [[1, 2]]", "layers"),
            ("context = 1\nsinks = 4\nrecent = 32\ngraded = 0\nlayers = []\nbits = 2", "bits"),
        ] {
            std::fs::write(&path, text)?;
            let error = read(&path).map(drop).map_err(|error| format!("{error:#}"));
            assert!(
                error.as_ref().is_err_and(|e| e.contains("mine.toml") && e.contains(expected)),
                "{text}: {error:?}"
            );
        }
        Ok(())
    }
}
