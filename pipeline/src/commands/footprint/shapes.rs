//! The shapes of models: those of data/shapes.toml, as the command line changes them.

use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{CsrShape, Geometry, KindShape, Reach};
use serde::Deserialize;

use crate::cli::FootprintArgs;
use crate::config::Config;
use crate::paths::Paths;

const SHAPES: &str = include_str!("../../../../data/shapes.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shapes {
    shape: Vec<Shape>,
}

/// A row of data/shapes.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    pub id: String,
    pub layers: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub atoms: usize,
    /// The layers with a sliding window, if the shape has any.
    pub sliding: Option<Sliding>,
    #[serde(rename = "source")]
    pub _source: String,
}

/// Layers with a sliding window, as a shape lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sliding {
    /// How many layers.
    pub layers: usize,
    /// Number of tokens that a token sees in these layers, itself included.
    pub window: usize,
}

impl Shape {
    /// The two kinds of layers: how many there are, and how far back their tokens see.
    pub fn kinds(&self) -> [(usize, Reach); 2] {
        let Sliding { layers, window } = self.sliding.unwrap_or(Sliding { layers: 0, window: 1 });
        [(self.layers - layers, Reach::Full), (layers, Reach::Sliding(window))]
    }

    /// Number of channels that uncompressed caches of `batch` sequences of `tokens` tokens hold.
    pub fn channels(&self, tokens: usize, batch: usize) -> usize {
        let held: usize = self.kinds().iter().map(|(layers, reach)| layers * reach.held(tokens)).sum();
        2 * batch * self.kv_heads * self.head_dim * held
    }

    pub fn geometry(&self) -> Geometry {
        Geometry { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    pub fn csr(&self) -> CsrShape {
        let kind = |chunks| KindShape { atoms: self.atoms, chunks };
        CsrShape { geometry: self.geometry(), keys: kind(1), values: kind(2) }
    }
}

/// The shapes named, or the two of the paper's Figure 4.
pub fn chosen(args: &FootprintArgs) -> Result<Vec<Shape>> {
    let known: Shapes = toml::from_str(SHAPES).context("data/shapes.toml")?;
    let find = |id: &str| -> Result<Shape> {
        known.shape.iter().find(|shape| shape.id == id).cloned().with_context(|| {
            let ids: Vec<&str> = known.shape.iter().map(|shape| shape.id.as_str()).collect();
            format!("no shape `{id}` in data/shapes.toml; there are {}", ids.join(", "))
        })
    };
    let mut names = args.shape.clone();
    if names.is_empty() && args.profile.is_none() {
        names = vec!["llama2-7b-chat".into(), "llama3-8b-instruct".into()];
    }
    let mut shapes = names.iter().map(|id| find(id)).collect::<Result<Vec<_>>>()?;
    if let Some(profile) = &args.profile {
        shapes.push(of_profile(profile, &find)?);
    }
    if let Some(atoms) = args.atoms {
        if !(1..=65_536).contains(&atoms) {
            bail!("--atoms {atoms}: a dictionary holds 1 to 65536 atoms");
        }
        shapes.iter_mut().for_each(|shape| shape.atoms = atoms);
    }
    for shape in &mut shapes {
        if let Some(window) = args.window {
            let layers = args.window_layers.unwrap_or(shape.layers);
            shape.sliding = Some(Sliding { layers, window });
        }
        match shape.sliding {
            Some(Sliding { layers, window }) if !(1..=shape.layers).contains(&layers) || window == 0 => bail!(
                "shape `{}`: {layers} layers with a window of {window} tokens; it has {} layers, and a window holds at \
                 least 1 token",
                shape.id,
                shape.layers
            ),
            _ => {}
        }
    }
    Ok(shapes)
}

/// The shape of a profile's model with the profile's number of atoms. A name that is no profile is taken as the id of a shape.
fn of_profile(profile: &str, find: &impl Fn(&str) -> Result<Shape>) -> Result<Shape> {
    let profiles = Paths::find(profile).map(|paths| paths.root.join("pipeline/profiles"));
    match profiles {
        Ok(folder) if Path::new(&folder).join(format!("{profile}.toml")).is_file() => {
            let config = Config::load(&folder, profile, &[])?;
            let mut shape = find(&config.model).with_context(|| format!("profile `{profile}`"))?;
            shape.atoms = config.train.trainer.atoms;
            Ok(shape)
        }
        _ => find(profile),
    }
}

/// A shape for tests.
#[cfg(test)]
pub fn llama2() -> Shape {
    let shapes: Shapes = toml::from_str(SHAPES).expect("the committed shapes");
    shapes.shape.into_iter().find(|s| s.id == "llama2-7b-chat").expect("a committed shape")
}
