//! What may be added to a CSR level, and how it is written in a scheme's name.

use kvcsr_codec::{CodeLayout, CoefficientFormat};

use crate::Window;
use crate::name::{Arguments, SchemeName};

/// Which of a prompt's vectors become online atoms (paper section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampler {
    /// The most recent tokens first: the paper's main results.
    Reverse,
    /// A seeded random choice without replacement.
    Uniform,
    /// Evenly spaced over the prompt.
    Strided,
    /// The vectors that the offline dictionary fits worst.
    Worst,
}

impl Sampler {
    const NAMES: [(&'static str, Self); 4] =
        [("reverse", Self::Reverse), ("uniform", Self::Uniform), ("strided", Self::Strided), ("worst", Self::Worst)];
}

/// What the first `attend` call of a cache is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefill {
    /// Only `absorb` takes a prompt, after an exact prefill. Tokens that come through `attend` get no online part.
    Exact,
    /// The tokens of the first `attend` are the prompt. The online part is filled from them before they are coded, and
    /// they attend to the restored vectors.
    Restored,
}

/// The online part. Sizes are in tokens, for keys and for values each. The number of atoms in a layer is this size
/// times the number of key-value heads (4096 and 8192 at the 32 heads of Llama 2, 1024 and 2048 at the 8 of Llama 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlinePart {
    /// Sampled vectors per key-value head.
    pub sampled: usize,
    /// Guard vectors per key-value head.
    pub guard: usize,
    /// How sampled vectors are chosen.
    pub sampler: Sampler,
    /// Where the prompt comes from.
    pub prefill: Prefill,
}

impl Default for OnlinePart {
    fn default() -> Self {
        Self { sampled: 128, guard: 256, sampler: Sampler::Reverse, prefill: Prefill::Exact }
    }
}

/// How decoding attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPath {
    /// On the codes, restoring one tile of keys at a time. If there are many queries, everything is restored, because
    /// this is then faster.
    Codes,
    /// Restores all keys and values and attends densely. It is portable, and the reference that the other path is
    /// tested against.
    Restored,
}

/// How many atoms the vectors of each layer and kind get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The level of the scheme, everywhere.
    Uniform,
    /// Different levels for keys and values. Their average is the scheme's level.
    Split {
        /// Atoms per key.
        keys: usize,
        /// Atoms per value, over all its chunks.
        values: usize,
    },
    /// Levels by layer and kind from a [`crate::Budget`] whose mean is the scheme's level.
    Budget,
}

/// A CSR level and its additions.
#[derive(Debug, Clone, PartialEq)]
pub struct CsrOptions {
    /// The level: atoms per head vector.
    pub sparsity: usize,
    /// How atoms are divided if the level is not the same for all vectors.
    pub share: Share,
    /// The pursuit stops once `‖x - x̂‖² / ‖x‖²` is at most this. Rows then differ in length.
    pub stop: Option<f32>,
    /// Whether keys are coded after position embedding instead of before.
    pub rope: bool,
    /// How codes are stored.
    pub layout: CodeLayout,
    /// Atoms from the prompt.
    pub online: Option<OnlinePart>,
    /// Tokens kept exactly.
    pub window: Window,
    /// Whether least squares replace the coefficients of matching pursuit.
    pub refit: bool,
    /// How decoding attends.
    pub attention: AttentionPath,
}

impl CsrOptions {
    /// CSR-`sparsity` without additions.
    pub fn new(sparsity: usize) -> Self {
        Self {
            sparsity,
            share: Share::Uniform,
            stop: None,
            rope: false,
            layout: CodeLayout::Paper,
            online: None,
            window: Window::default(),
            refit: false,
            attention: AttentionPath::Codes,
        }
    }

    /// Reads a whole name, for example `csr-8+online(sampled=64)+fp8`. It ignores a dictionary set after `@`.
    ///
    /// # Errors
    /// A sentence that says which part is wrong, and what is possible.
    pub fn parse(name: &str) -> Result<Self, String> {
        Self::read(&SchemeName::parse(name)?)?
            .ok_or_else(|| format!("`{name}` is not a CSR scheme: csr-S and its parts"))
    }

    /// The options that a parsed name describes. `None` if the name belongs to another method.
    ///
    /// # Errors
    /// The errors of [`CsrOptions::parse`].
    pub fn read(name: &SchemeName<'_>) -> Result<Option<Self>, String> {
        let Some(level) = name.level("csr") else { return Ok(None) };
        let level = level.parse().map_err(|_| format!("`{level}` after `csr-` is not a number of atoms"))?;
        name.arguments.only(&[])?;
        let mut options = Self { window: name.window()?, ..Self::new(level) };
        let mut seen = Vec::new();
        for part in &name.parts {
            let format = CoefficientFormat::ALL.into_iter().find(|f| f.as_str() == part.name);
            let slot = match (format, part.name) {
                (Some(_), _) => "packed",
                (None, "split" | "budget") => "share",
                (None, name) => name,
            };
            if seen.contains(&slot) {
                return Err(format!("`+{}`: a part of that kind was given before", part.name));
            }
            seen.push(slot);
            let named = |reason: String| format!("{}: {reason}", part.name);
            match part.name {
                "window" => {}
                "online" => options.online = Some(online(&part.arguments).map_err(named)?),
                "stop" => options.stop = Some(stop(&part.arguments).map_err(named)?),
                "split" => options.share = split(&part.arguments, level).map_err(named)?,
                other => {
                    match (other, format) {
                        (_, Some(format)) => options.layout = CodeLayout::Packed(format),
                        ("budget", _) => options.share = Share::Budget,
                        ("refit", _) => options.refit = true,
                        ("rope", _) => options.rope = true,
                        ("restore", _) => options.attention = AttentionPath::Restored,
                        _ => {
                            return Err(format!(
                                "`{other}` is no part of a CSR scheme; these are: online(...), window(...), stop(...), \
                                 split(...), budget, f16, fp8, int8, int6, int4, refit, rope, restore"
                            ));
                        }
                    }
                    part.arguments.only(&[]).map_err(named)?;
                }
            }
        }
        Ok(Some(options))
    }

    /// Atoms per key and per value, over all chunks of a value. For a [`Share::Budget`], the mean.
    pub fn levels(&self) -> (usize, usize) {
        match self.share {
            Share::Split { keys, values } => (keys, values),
            Share::Uniform | Share::Budget => (self.sparsity, self.sparsity),
        }
    }
}

fn online(arguments: &Arguments<'_>) -> Result<OnlinePart, String> {
    arguments.only(&["sampled", "guard", "sampler", "prefill"])?;
    let default = OnlinePart::default();
    let sampler = match arguments.get("sampler") {
        None => default.sampler,
        Some(value) => Sampler::NAMES
            .iter()
            .find(|(name, _)| *name == value)
            .map(|(_, sampler)| *sampler)
            .ok_or_else(|| format!("no sampler `{value}`; there are reverse, uniform, strided and worst"))?,
    };
    let prefill = match arguments.get("prefill") {
        None => default.prefill,
        Some("exact") => Prefill::Exact,
        Some("restored") => Prefill::Restored,
        Some(value) => return Err(format!("prefill is exact or restored, not `{value}`")),
    };
    let sampled = arguments.tokens("sampled", default.sampled)?;
    Ok(OnlinePart { sampled, guard: arguments.tokens("guard", default.guard)?, sampler, prefill })
}

fn stop(arguments: &Arguments<'_>) -> Result<f32, String> {
    arguments.only(&["error"])?;
    let Some(value) = arguments.get("error") else { return Ok(0.05) };
    value
        .parse()
        .ok()
        .filter(|x| (f32::MIN_POSITIVE..1.0).contains(x))
        .ok_or_else(|| format!("`{value}` is not a relative squared error between 0 and 1"))
}

fn split(arguments: &Arguments<'_>, level: usize) -> Result<Share, String> {
    arguments.only(&["k", "v"])?;
    let atoms = |name: &str| -> Result<Option<usize>, String> {
        let Some(value) = arguments.get(name) else { return Ok(None) };
        let atoms = value.parse().ok().filter(|n| (1..=255).contains(n));
        atoms.map(Some).ok_or_else(|| format!("`{value}` is not a number of atoms from 1 to 255"))
    };
    match (atoms("k")?, atoms("v")?) {
        (Some(keys), Some(values)) if keys + values == 2 * level => Ok(Share::Split { keys, values }),
        _ => {
            Err(format!("k and v are needed with k + v = {}, twice the level, for example split(k=10,v=6)", 2 * level))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read() {
        assert_eq!(CsrOptions::parse("csr-8").unwrap(), CsrOptions::new(8));
        let options =
            CsrOptions::parse("csr-6+online(sampled=3,sampler=worst)+int4+window(recent=7)+refit+restore").unwrap();
        let online = OnlinePart { sampled: 3, sampler: Sampler::Worst, ..OnlinePart::default() };
        let expected = CsrOptions {
            layout: CodeLayout::Packed(CoefficientFormat::Int4),
            online: Some(online),
            window: Window { sinks: 4, recent: 7, graded: 0 },
            refit: true,
            attention: AttentionPath::Restored,
            ..CsrOptions::new(6)
        };
        assert_eq!(options, expected);
        let options = CsrOptions::parse("csr-8+split(k=10,v=6)+stop(error=0.2)+rope").unwrap();
        let share = Share::Split { keys: 10, values: 6 };
        assert_eq!(options, CsrOptions { share, stop: Some(0.2), rope: true, ..CsrOptions::new(8) });
        assert_eq!(
            CsrOptions::parse("csr-4+budget").unwrap(),
            CsrOptions { share: Share::Budget, ..CsrOptions::new(4) }
        );
    }

    #[test]
    fn wrong_names_say_what_is_wrong() {
        for (name, reason) in [
            ("csr-x", "not a number of atoms"),
            ("csr-8+online(", "closing parenthesis"),
            ("csr-8+online(guard)", "not `name=value`"),
            ("csr-8+online(guard=-1)", "not a number up to 2^24"),
            ("csr-8+online(sampler=best)", "reverse, uniform, strided and worst"),
            ("csr-8+online(prefill=no)", "exact or restored"),
            ("csr-8+online(x=1)", "no argument `x`"),
            ("csr-8+window(size=1)", "sinks, recent"),
            ("csr-8+fp8+int4", "given before"),
            ("csr-8+fp8(x=3)", "there are none"),
            ("csr-8(x=3)", "there are none"),
            ("csr-8+fp9", "no part of a CSR scheme"),
            ("csr-8+stop(error=0)", "between 0 and 1"),
            ("csr-8+stop(error=1)", "between 0 and 1"),
            ("csr-8+stop(error=NaN)", "between 0 and 1"),
            ("csr-8+stop(0.1)", "not `name=value`"),
            ("csr-8+stop(at=0.1)", "there are error"),
            ("csr-8+split", "k + v = 16"),
            ("csr-8+split(k=10,v=5)", "k + v = 16"),
            ("csr-8+split(k=16,v=0)", "from 1 to 255"),
            ("csr-8+split(q=1)", "there are k, v"),
            ("csr-8+split(k=10,v=6)+budget", "given before"),
            ("kivi-2", "not a CSR scheme"),
        ] {
            let error = CsrOptions::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
