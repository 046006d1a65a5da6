//! Checks that several sections of the configuration share.

use anyhow::{Result, bail};

/// Whether `profile` is a plain name and not a path.
pub fn plain(profile: &str) -> bool {
    profile.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && !profile.starts_with('.')
        && !profile.is_empty()
}

/// Checks that these numbers of a section are at least 1.
pub fn positive(section: &str, numbers: &[(&str, usize)]) -> Result<()> {
    match numbers.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => bail!("{section}.{name} must be at least 1, found 0"),
        None => Ok(()),
    }
}

/// Checks that a continuation has a token to score.
pub fn continuation(section: &str, tokens: usize) -> Result<()> {
    if tokens < 2 {
        bail!("{section}.continuation must be at least 2 (the first token is not scored), found {tokens}");
    }
    Ok(())
}

/// Checks that a list of schemes contains `dense`, which all others are compared with.
pub fn with_dense(section: &str, schemes: &[String]) -> Result<()> {
    if !schemes.iter().any(|s| s == "dense") {
        bail!("{section}.schemes must contain `dense`: everything is compared with it");
    }
    Ok(())
}

/// Checks that at least one task or group is named.
pub fn some_task(section: &str, tasks: &[String]) -> Result<()> {
    if tasks.is_empty() {
        bail!("{section}.tasks is empty: name at least one task or group");
    }
    Ok(())
}

/// Checks that `dictionaries` is empty or names a profile.
pub fn profile_or_own(section: &str, profile: &str) -> Result<()> {
    if !profile.is_empty() && !plain(profile) {
        bail!("{section}.dictionaries = `{profile}`: the name of a profile is expected");
    }
    Ok(())
}
