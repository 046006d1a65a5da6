//! What a Hugging Face `config.json` says about positions. Every key is either used or refused.
//!
//! transformers 5 writes `rope_parameters`. Earlier versions wrote `rope_theta` and `rope_scaling`, and people add
//! `rope_scaling` by hand. If both are present, `rope_scaling` is used, as in transformers (`modeling_rope_utils.py`,
//! `convert_rope_params_to_dict`).

use serde_json::Value;

use super::config::Config;
use super::{DEFAULT_ROPE_THETA, Position, RopeScaling};
use crate::error::{ModelError, Result};

/// How the layers of a model encode positions.
pub(super) struct Positions {
    /// The layers that see everything.
    pub(super) full: Position,
    /// The layers with a window, if they differ.
    pub(super) sliding: Option<Position>,
    /// The longest context, in tokens.
    pub(super) max: usize,
}

/// The rotary bases of models that have one base for each kind of layer.
pub(super) struct Bases {
    pub(super) full: f64,
    pub(super) sliding: f64,
}

/// The keys that each type has in addition to `rope_theta`, `rope_type` and `type`.
const TYPES: [(&str, &[&str]); 4] = [
    ("default", &[]),
    ("linear", &["factor"]),
    ("llama3", &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]),
    (
        "yarn",
        &[
            "factor",
            "original_max_position_embeddings",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "attention_factor",
            "truncate",
        ],
    ),
];
const COMMON: [&str; 4] = ["rope_theta", "rope_type", "type", "partial_rotary_factor"];
/// Keys that some authors write and that no program reads.
const WITHOUT_EFFECT: [&str; 1] = ["finetuned"];

/// Keys at the top level that this file reads.
const TOP: [&str; 5] =
    ["rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rope_local_base_freq"];
/// If a word of a key begins with one of these, the key is about positions.
const ABOUT_POSITIONS: [&str; 6] = ["rope", "longrope", "rotary", "alibi", "ntk", "logn"];
/// Values that do not ask for anything special.
const NEUTRAL: [(&str, &str); 6] = [
    ("rope_interleaved", "false"),
    ("rope_traditional", "false"),
    ("alibi", "false"),
    ("use_dynamic_ntk", "false"),
    ("use_logn_attn", "false"),
    ("position_embedding_type", "\"rope\""),
];

const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

impl Config<'_> {
    /// The positions of a family whose layers all encode them in the same way, unless `rope_parameters` is nested by
    /// the types in `layer_types`.
    pub(super) fn positions(&self, max: usize) -> Result<Positions> {
        self.only_known_positions(&[])?;
        let parameters = self.object("rope_parameters", "rope_parameters.")?;
        let old = self.object("rope_scaling", "rope_scaling.")?.filter(|old| !old.keys.is_empty());
        let top = self.optional_float("rope_theta")?;
        if let Some(old) = &old {
            let theta = old.optional_float("rope_theta")?.or(top).unwrap_or(DEFAULT_ROPE_THETA);
            let dropped = parameters.as_ref().map(|p| p.optional_float("rope_theta")).transpose()?.flatten();
            let named = top.is_some() || old.get("rope_theta").is_some();
            if let Some(dropped) = dropped.filter(|&dropped| dropped != theta && !named) {
                let expected = format!(
                    "rope_theta beside rope_type: rope_scaling takes the place of rope_parameters, whose rope_theta \
                     {dropped} would be lost"
                );
                return Err(ModelError::bad_value(self.path, "rope_scaling", expected, "no rope_theta"));
            }
            return self.one(old, theta, max);
        }
        let Some(parameters) = parameters else {
            return Ok(Positions {
                full: rope(top.unwrap_or(DEFAULT_ROPE_THETA), RopeScaling::None),
                sliding: None,
                max,
            });
        };
        if parameters.keys.values().any(Value::is_object) {
            if self.get("layer_types").is_none() {
                let nested = parameters.keys.iter().find(|(_, value)| value.is_object());
                let (key, value) = nested.expect("one is an object");
                let expected = "numbers and names: only models with layer_types have it by layer type; write its \
                                keys into rope_parameters itself";
                return Err(ModelError::bad_value(
                    self.path,
                    format!("rope_parameters.{key}"),
                    expected,
                    value.to_string(),
                ));
            }
            let theta = top.unwrap_or(DEFAULT_ROPE_THETA);
            let positions = self.by_type(&parameters, None, &Bases { full: theta, sliding: theta }, max)?;
            return Ok(Positions { max: extended(&positions.full, max), ..positions });
        }
        let theta = parameters.optional_float("rope_theta")?.or(top).unwrap_or(DEFAULT_ROPE_THETA);
        self.one(&parameters, theta, max)
    }

    /// The positions of a family with one rotary base for full layers and one for sliding layers. `rope_scaling`
    /// applies only to the full layers.
    pub(super) fn positions_by_type(&self, bases: &Bases, max: usize) -> Result<Positions> {
        self.only_known_positions(&["rope_local_base_freq"])?;
        let top = self.optional_float("rope_theta")?;
        let local = self.optional_float("rope_local_base_freq")?;
        let bases = Bases { full: top.unwrap_or(bases.full), sliding: local.unwrap_or(bases.sliding) };
        let old = self.object("rope_scaling", "rope_scaling.")?.filter(|old| !old.keys.is_empty());
        let none = serde_json::Map::new();
        let parameters = self.object("rope_parameters", "rope_parameters.")?;
        let parameters = parameters.unwrap_or(Config { path: self.path, prefix: "rope_parameters.", keys: &none });
        let positions = self.by_type(&parameters, old.as_ref(), &bases, max)?;
        // These families write the length of the scaled model.
        Ok(Positions {
            max: max.max(if yarn(&positions.full) { extended(&positions.full, max) } else { 0 }),
            ..positions
        })
    }

    /// Reads one entry per layer type. `over` extends the entry of full layers, and overrides it.
    fn by_type(
        &self,
        parameters: &Config<'_>,
        over: Option<&Config<'_>>,
        bases: &Bases,
        max: usize,
    ) -> Result<Positions> {
        for (key, value) in parameters.keys.iter().filter(|(_, value)| !value.is_null()) {
            if !LAYER_TYPES.contains(&key.as_str()) {
                let name = format!("{}{key}", parameters.prefix);
                let expected = format!("only {}", LAYER_TYPES.join(" and "));
                return Err(ModelError::bad_value(self.path, name, expected, value.to_string()));
            }
        }
        let full = parameters.object("full_attention", "rope_parameters.full_attention.")?;
        let sliding = parameters.object("sliding_attention", "rope_parameters.sliding_attention.")?;
        let mut joined = full.as_ref().map(|full| full.keys.clone()).unwrap_or_default();
        if let Some(over) = over {
            joined.extend(over.keys.clone());
        }
        let prefix = if over.is_some() { "rope_scaling." } else { "rope_parameters.full_attention." };
        let full = Config { path: self.path, prefix, keys: &joined };
        let theta = full.optional_float("rope_theta")?.unwrap_or(bases.full);
        let full = rope(theta, self.scaling(&full, max)?);
        let (theta, scaling) = match &sliding {
            None => (bases.sliding, RopeScaling::None),
            Some(sliding) => {
                let theta = sliding.optional_float("rope_theta")?.unwrap_or(bases.sliding);
                (theta, self.scaling(sliding, max)?)
            }
        };
        let sliding = Some(rope(theta, scaling)).filter(|sliding| *sliding != full);
        Ok(Positions { full, sliding, max })
    }

    /// The same position encoding for all layers.
    fn one(&self, entry: &Config<'_>, theta: f64, max: usize) -> Result<Positions> {
        let full = rope(theta, self.scaling(entry, max)?);
        Ok(Positions { max: extended(&full, max), full, sliding: None })
    }

    /// The rescaling that an entry asks for. Every key of the entry must belong to its type.
    fn scaling(&self, entry: &Config<'_>, max: usize) -> Result<RopeScaling> {
        let name = |key: &str| -> Result<Option<String>> { entry.get(key).map(|_| entry.text(key)).transpose() };
        let (new, old) = (name("rope_type")?, name("type")?);
        if let (Some(new), Some(old)) = (&new, &old)
            && new != old
        {
            let expected = format!("`{new}`, as rope_type beside it");
            return Err(ModelError::bad_value(self.path, format!("{}type", entry.prefix), expected, old.clone()));
        }
        let kind = new.or(old).unwrap_or_else(|| "default".to_owned());
        let Some((_, keys)) = TYPES.iter().find(|(name, _)| *name == kind) else {
            let known = TYPES.map(|(name, _)| name).join(", ");
            let way_out = "; without rope_scaling the model runs unscaled, up to the length it was trained with";
            return Err(self.unsupported("rope_type", kind, &format!("{known}{way_out}")));
        };
        let known = |key: &str| keys.contains(&key) || COMMON.contains(&key) || WITHOUT_EFFECT.contains(&key);
        if let Some((key, value)) = entry.keys.iter().find(|(key, value)| !known(key) && !value.is_null()) {
            let has = if keys.is_empty() { "nothing more".to_owned() } else { keys.join(", ") };
            let expected = format!("no such key: rope_type `{kind}` has rope_theta, {has}; remove it or name its type");
            return Err(ModelError::bad_value(
                self.path,
                format!("{}{key}", entry.prefix),
                expected,
                value.to_string(),
            ));
        }
        entry.whole_heads_rotate()?;
        let original = || match self.get("original_max_position_embeddings") {
            // At the top level this key has priority, as in transformers.
            Some(_) => self.size("original_max_position_embeddings"),
            None => entry.size_or("original_max_position_embeddings", max),
        };
        Ok(match kind.as_str() {
            "linear" => RopeScaling::Linear { factor: entry.float("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: entry.float("factor")?,
                low_freq_factor: entry.float("low_freq_factor")?,
                high_freq_factor: entry.float("high_freq_factor")?,
                original_max_positions: original()?,
            },
            "yarn" => entry.yarn(original()?, max)?,
            _ => RopeScaling::None,
        })
    }

    fn yarn(&self, original_max_positions: usize, max: usize) -> Result<RopeScaling> {
        // If the factor is null, it is the ratio of the two lengths.
        let given = self.get("factor").is_some() || !self.keys.contains_key("factor");
        let factor = if given { self.float("factor")? } else { max as f64 / original_max_positions as f64 };
        let some = |key: &str| Ok::<_, ModelError>(self.optional_float(key)?.filter(|&number| number != 0.0));
        let attention_factor =
            match (self.optional_float("attention_factor")?, some("mscale")?, some("mscale_all_dim")?) {
                (Some(given), _, _) => given,
                (None, Some(some), Some(all)) => {
                    RopeScaling::yarn_attention(factor, some) / RopeScaling::yarn_attention(factor, all)
                }
                _ => RopeScaling::yarn_attention(factor, 1.0),
            };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions,
            beta_fast: some("beta_fast")?.unwrap_or(32.0),
            beta_slow: some("beta_slow")?.unwrap_or(1.0),
            truncate: self.get("truncate").is_none() || self.flag("truncate")?,
            attention_factor,
        })
    }

    /// Refuses heads of which only a part is rotated.
    fn whole_heads_rotate(&self) -> Result<()> {
        match self.optional_float("partial_rotary_factor")? {
            Some(part) if part != 1.0 => {
                let key = format!("{}partial_rotary_factor", self.prefix);
                let expected = "1: heads that are rotated as a whole; models with others are not supported";
                Err(ModelError::bad_value(self.path, key, expected, part.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Refuses keys about positions that nothing in this crate reads.
    fn only_known_positions(&self, more: &[&str]) -> Result<()> {
        self.whole_heads_rotate()?;
        for (key, value) in self.keys.iter().filter(|(_, value)| !value.is_null()) {
            let mut words = key.split('_');
            let about = words.any(|word| ABOUT_POSITIONS.iter().any(|part| word.starts_with(part)))
                || key.contains("position_embedding_type");
            let local = key == "rope_local_base_freq" && !more.contains(&key.as_str());
            let known = TOP.contains(&key.as_str()) && !local;
            let neutral = NEUTRAL.contains(&(key.as_str(), value.to_string().as_str()));
            if about && !known && !neutral {
                let expected = "no such key: nothing here reads it, and leaving it out could change positions; remove \
                                it if it has no effect";
                return Err(ModelError::bad_value(self.path, key, expected, value.to_string()));
            }
        }
        Ok(())
    }

    /// A number. `None` if the key is missing.
    pub(super) fn optional_float(&self, key: &str) -> Result<Option<f64>> {
        self.get(key).map(|_| self.float(key)).transpose()
    }
}

/// The number of positions of a model with `max` positions, after its scaling.
fn extended(position: &Position, max: usize) -> usize {
    match position {
        Position::Rope { scaling, .. } => scaling.positions(max),
        Position::Alibi => max,
    }
}

fn yarn(position: &Position) -> bool {
    matches!(position, Position::Rope { scaling: RopeScaling::Yarn { .. }, .. })
}

fn rope(theta: f64, scaling: RopeScaling) -> Position {
    Position::Rope { theta, scaling }
}
