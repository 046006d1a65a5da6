//! What may be added to a CSR level, and how it is spelled in a scheme's name.

use kvcsr_codec::{CodeLayout, CoefficientFormat};

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

/// What the first call of a cache's `attend` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefill {
    /// Only `absorb` takes a prompt, after an exact prefill; tokens that are fed go without an online part.
    Exact,
    /// The tokens of the first `attend` are the prompt: the online part is filled from them before
    /// they are coded, and they attend to what is restored.
    Restored,
}

/// The online part: sizes in tokens, for keys and for values each. A layer's atoms are that many
/// times its key-value heads (4096 and 8192 at the 32 heads of Llama 2, 1024 and 2048 at the 8 of
/// Llama 3).
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

/// Tokens kept exactly, f16, keys before position embedding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// The first tokens of the sequence ("attention sinks").
    pub sinks: usize,
    /// The most recent tokens, including the one that attends.
    pub recent: usize,
}

/// How decoding attends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionPath {
    /// On the codes, restoring a tile of keys at a time; many queries at once restore everything,
    /// which is then faster.
    Codes,
    /// Restores all keys and values and attends densely: portable, and the oracle of the other.
    Restored,
}

/// How many atoms the vectors of a layer and kind take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// The level, everywhere.
    Uniform,
    /// Another level for keys than for values, the scheme's level on average.
    Split {
        /// Atoms per key.
        keys: usize,
        /// Atoms per value, over all its chunks.
        values: usize,
    },
    /// Levels by layer and kind from a [`super::Budget`] whose mean is the scheme's level.
    Budget,
}

/// A CSR level and what is added to it.
#[derive(Debug, Clone, PartialEq)]
pub struct CsrOptions {
    /// The level: atoms per head vector.
    pub sparsity: usize,
    /// Where the level is not the same for all vectors.
    pub share: Share,
    /// Pursuit stops once `‖x - x̂‖² / ‖x‖²` is at most this; rows then differ in length.
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
    /// CSR-`sparsity` with nothing added.
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

    /// Reads what follows `csr-`, for example `8+online(sampled=64)+fp8`.
    ///
    /// # Errors
    /// A sentence that says which part is wrong, and what is possible.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = text.split('+');
        let level = parts.next().unwrap_or_default();
        let mut options =
            Self::new(level.parse().map_err(|_| "the part after `csr-` is not a number of atoms".to_owned())?);
        let mut seen = Vec::new();
        for part in parts {
            let (name, arguments) = match part.split_once('(') {
                None => (part, ""),
                Some((name, rest)) => {
                    (name, rest.strip_suffix(')').ok_or_else(|| format!("`{part}` lacks a closing parenthesis"))?)
                }
            };
            let format = CoefficientFormat::ALL.into_iter().find(|f| f.as_str() == name);
            let slot = match (format, name) {
                (Some(_), _) => "packed",
                (None, "split" | "budget") => "share",
                (None, name) => name,
            };
            if seen.contains(&slot) {
                return Err(format!("`{part}`: a part of that kind was given before"));
            }
            match (name, format) {
                ("online", _) => options.online = Some(online(arguments)?),
                ("window", _) => options.window = window(arguments)?,
                ("stop", _) => options.stop = Some(stop(arguments)?),
                ("split", _) => options.share = split(arguments, options.sparsity)?,
                (_, _) if !arguments.is_empty() => return Err(format!("`{name}` takes no arguments")),
                (_, Some(format)) => options.layout = CodeLayout::Packed(format),
                ("budget", _) => options.share = Share::Budget,
                ("refit", _) => options.refit = true,
                ("rope", _) => options.rope = true,
                ("restore", _) => options.attention = AttentionPath::Restored,
                _ => {
                    return Err(format!(
                        "`{name}` is no part of a CSR scheme; these are: online(...), window(...), stop(...), \
                         split(...), budget, f16, fp8, int8, int6, int4, refit, rope, restore"
                    ));
                }
            }
            seen.push(slot);
        }
        Ok(options)
    }
}

fn online(arguments: &str) -> Result<OnlinePart, String> {
    let mut part = OnlinePart::default();
    for (key, value) in pairs(arguments)? {
        match key {
            "sampled" => part.sampled = number(key, value)?,
            "guard" => part.guard = number(key, value)?,
            "sampler" => {
                part.sampler =
                    Sampler::NAMES.iter().find(|(name, _)| *name == value).map(|(_, s)| *s).ok_or_else(|| {
                        format!("no sampler `{value}`; there are reverse, uniform, strided and worst")
                    })?;
            }
            "prefill" => {
                part.prefill = match value {
                    "exact" => Prefill::Exact,
                    "restored" => Prefill::Restored,
                    _ => return Err(format!("prefill is exact or restored, not `{value}`")),
                }
            }
            _ => return Err(format!("online has no `{key}`; it has sampled, guard, sampler and prefill")),
        }
    }
    Ok(part)
}

fn window(arguments: &str) -> Result<Window, String> {
    let mut window = Window { sinks: 4, recent: 128 };
    for (key, value) in pairs(arguments)? {
        match key {
            "sinks" => window.sinks = number(key, value)?,
            "recent" => window.recent = number(key, value)?,
            _ => return Err(format!("window has no `{key}`; it has sinks and recent")),
        }
    }
    Ok(window)
}

fn stop(arguments: &str) -> Result<f32, String> {
    let mut error = 0.05;
    for (key, value) in pairs(arguments)? {
        match key {
            "error" => {
                error = value
                    .parse()
                    .ok()
                    .filter(|x| (f32::MIN_POSITIVE..1.0).contains(x))
                    .ok_or_else(|| format!("stop: `{value}` is not a relative squared error between 0 and 1"))?;
            }
            _ => return Err(format!("stop has no `{key}`; it has error")),
        }
    }
    Ok(error)
}

fn split(arguments: &str, level: usize) -> Result<Share, String> {
    let (mut keys, mut values) = (None, None);
    for (key, value) in pairs(arguments)? {
        let atoms = value.parse().ok().filter(|n| (1..=255).contains(n));
        let atoms = atoms.ok_or_else(|| format!("split: `{value}` is not a number of atoms from 1 to 255"))?;
        match key {
            "k" => keys = Some(atoms),
            "v" => values = Some(atoms),
            _ => return Err(format!("split has no `{key}`; it has k and v")),
        }
    }
    match (keys, values) {
        (Some(keys), Some(values)) if keys + values == 2 * level => Ok(Share::Split { keys, values }),
        _ => {
            Err(format!("split needs k and v with k + v = {}, twice the level, for example split(k=10,v=6)", 2 * level))
        }
    }
}

fn pairs(arguments: &str) -> Result<Vec<(&str, &str)>, String> {
    let pair = |a: &'_ str| -> Result<(usize, usize), String> {
        a.find('=').map(|at| (at, a.len())).ok_or_else(|| format!("`{a}` is not `name=value`"))
    };
    arguments
        .split(',')
        .filter(|a| !a.is_empty())
        .map(|a| pair(a).map(|(at, _)| (a[..at].trim(), a[at + 1..].trim())))
        .collect()
}

fn number(key: &str, value: &str) -> Result<usize, String> {
    value.parse().ok().filter(|&n| n <= 1 << 24).ok_or_else(|| format!("{key}: `{value}` is not a number of tokens"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_read() {
        assert_eq!(CsrOptions::parse("8").unwrap(), CsrOptions::new(8));
        let options =
            CsrOptions::parse("6+online(sampled=3,sampler=worst)+int4+window(recent=7)+refit+restore").unwrap();
        let online = OnlinePart { sampled: 3, sampler: Sampler::Worst, ..OnlinePart::default() };
        let expected = CsrOptions {
            layout: CodeLayout::Packed(CoefficientFormat::Int4),
            online: Some(online),
            window: Window { sinks: 4, recent: 7 },
            refit: true,
            attention: AttentionPath::Restored,
            ..CsrOptions::new(6)
        };
        assert_eq!(options, expected);
        let options = CsrOptions::parse("8+split(k=10,v=6)+stop(error=0.2)+rope").unwrap();
        let share = Share::Split { keys: 10, values: 6 };
        assert_eq!(options, CsrOptions { share, stop: Some(0.2), rope: true, ..CsrOptions::new(8) });
        assert_eq!(CsrOptions::parse("4+budget").unwrap(), CsrOptions { share: Share::Budget, ..CsrOptions::new(4) });
    }

    #[test]
    fn wrong_names_say_what_is_wrong() {
        for (name, reason) in [
            ("x", "not a number of atoms"),
            ("8+online(", "closing parenthesis"),
            ("8+online(guard)", "not `name=value`"),
            ("8+online(guard=-1)", "not a number of tokens"),
            ("8+online(sampler=best)", "reverse, uniform, strided and worst"),
            ("8+online(prefill=no)", "exact or restored"),
            ("8+online(x=1)", "no `x`"),
            ("8+window(size=1)", "sinks and recent"),
            ("8+fp8+int4", "given before"),
            ("8+fp8(3)", "no arguments"),
            ("8+fp9", "no part of a CSR scheme"),
            ("8+stop(error=0)", "between 0 and 1"),
            ("8+stop(error=1)", "between 0 and 1"),
            ("8+stop(error=NaN)", "between 0 and 1"),
            ("8+stop(0.1)", "not `name=value`"),
            ("8+stop(at=0.1)", "it has error"),
            ("8+split", "k + v = 16"),
            ("8+split(k=10,v=5)", "k + v = 16"),
            ("8+split(k=16,v=0)", "from 1 to 255"),
            ("8+split(q=1)", "it has k and v"),
            ("8+split(k=10,v=6)+budget", "given before"),
        ] {
            let error = CsrOptions::parse(name).unwrap_err();
            assert!(error.contains(reason), "{name}: {error}");
        }
    }
}
