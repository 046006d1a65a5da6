//! footprint: computes the size of a cache for any published shape, by formula, without weights.
//!
//! CSR's formula is the one that the cache itself uses; a test compares it with the allocated bytes. A layer with a sliding
//! window counts with the tokens that it holds. Bits per channel are relative to the channels that an uncompressed cache would
//! hold.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use kvcsr_cache::{CsrOptions, CsrShape, Geometry, KindShape, Reach, coded::TILE};
use kvcsr_codec::{Footprint, measured_bits};
use kvcsr_report::figures::FootprintLength;
use kvcsr_report::{FootprintRow, save};
use serde::Deserialize;

use crate::cli::FootprintArgs;
use crate::config::Config;
use crate::paths::Paths;

const SHAPES: &str = include_str!("../../../data/shapes.toml");

/// The longest sequence for which a break-even length is searched.
const LONGEST: usize = 131_072;

/// The schemes that break-even lengths are relative to.
const PEERS: [&str; 3] = ["dense-f16", "fp8", "kivi-2"];

/// KIVI's published setting: groups of 32, a window of 128 (Liu et al., ICML 2024).
const KIVI_GROUP: usize = 32;
const KIVI_WINDOW: usize = 128;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Shapes {
    shape: Vec<Shape>,
}

/// A row of data/shapes.toml.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Shape {
    id: String,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    atoms: usize,
    /// The layers with a sliding window, if the shape has any.
    sliding: Option<Sliding>,
    #[serde(rename = "source")]
    _source: String,
}

/// Layers with a sliding window, as a shape lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sliding {
    /// How many layers.
    layers: usize,
    /// Number of tokens that a token sees in these layers, itself included.
    window: usize,
}

impl Shape {
    /// The two kinds of layers: how many there are, and how far back their tokens see.
    fn kinds(&self) -> [(usize, Reach); 2] {
        let Sliding { layers, window } = self.sliding.unwrap_or(Sliding { layers: 0, window: 1 });
        [(self.layers - layers, Reach::Full), (layers, Reach::Sliding(window))]
    }

    /// Number of channels that uncompressed caches of `batch` sequences of `tokens` tokens hold.
    fn channels(&self, tokens: usize, batch: usize) -> usize {
        let held: usize = self.kinds().iter().map(|(layers, reach)| layers * reach.held(tokens)).sum();
        2 * batch * self.kv_heads * self.head_dim * held
    }

    fn geometry(&self) -> Geometry {
        Geometry { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    fn csr(&self) -> CsrShape {
        let kind = |chunks| KindShape { atoms: self.atoms, chunks };
        CsrShape { geometry: self.geometry(), keys: kind(1), values: kind(2) }
    }
}

/// A scheme whose size a formula gives.
enum Formula {
    /// This many bits per channel and nothing else.
    Plain(usize),
    /// KIVI with this many bits.
    Kivi(usize),
    Csr(CsrOptions),
}

impl Formula {
    fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "dense-f16" => Self::Plain(16),
            "fp8" => Self::Plain(8),
            "kivi-2" => Self::Kivi(2),
            "kivi-4" => Self::Kivi(4),
            _ if !name.starts_with("csr-") => bail!(
                "scheme `{name}` has no formula here: dense-f16, fp8, kivi-2, kivi-4 and csr-S with its parts have"
            ),
            _ => {
                let options = CsrOptions::parse(name).map_err(|e| anyhow::anyhow!("scheme `{name}`: {e}"))?;
                let (_, values) = options.levels();
                if values < 2 || !values.is_multiple_of(2) {
                    bail!("scheme `{name}`: a value's two chunks share its level, an even number is expected");
                }
                Self::Csr(options)
            }
        })
    }

    fn footprint(&self, shape: &Shape, tokens: usize, batch: usize) -> Footprint {
        let of = |(layers, reach): (usize, Reach)| -> Footprint {
            std::iter::repeat_n(self.layer(shape, tokens, batch, reach), layers).sum()
        };
        shape.kinds().into_iter().map(of).sum()
    }

    /// The footprint of one layer.
    fn layer(&self, shape: &Shape, tokens: usize, batch: usize, reach: Reach) -> Footprint {
        let (streams, d) = (batch * shape.kv_heads, shape.head_dim);
        match self {
            Self::Plain(bits) => {
                Footprint { dense: 2 * streams * reach.held(tokens) * d * bits / 8, ..Footprint::default() }
            }
            Self::Kivi(bits) => {
                // Keys are quantised a whole window at a time, values one by one as they leave the last window. Tokens
                // that no later token sees are dropped a tile at a time.
                let dropped = reach.first_seen(tokens) / TILE * TILE;
                let held = |coded: usize| coded.saturating_sub(dropped);
                let (keys, values) = (held(tokens - tokens % KIVI_WINDOW), held(tokens.saturating_sub(KIVI_WINDOW)));
                let tokens = tokens - dropped;
                Footprint {
                    packed: streams * (keys + values) * d * bits / 8,
                    // Scale and minimum in f16: for keys per channel and 32 tokens, for values per token and 32 channels.
                    scales: streams * (keys * d / KIVI_GROUP + values * (d / KIVI_GROUP)) * 4,
                    window: streams * (2 * tokens - keys - values) * d * 2,
                    ..Footprint::default()
                }
            }
            Self::Csr(options) => shape.csr().layer(options, tokens, batch, reach),
        }
    }

    /// Bytes of the dictionaries in f16, which all sequences share.
    fn dictionaries(&self, shape: &Shape) -> usize {
        match self {
            Self::Csr(_) => shape.csr().dictionary_bytes(),
            _ => 0,
        }
    }

    fn nominal(&self, shape: &Shape) -> f64 {
        match self {
            Self::Plain(bits) | Self::Kivi(bits) => *bits as f64,
            Self::Csr(options) => shape.csr().nominal_bits(options),
        }
    }

    fn bytes(&self, shape: &Shape, tokens: usize, batch: usize, dictionaries: bool) -> usize {
        let shared = if dictionaries { self.dictionaries(shape) } else { 0 };
        self.footprint(shape, tokens, batch).total() + shared
    }

    /// The length from which on this scheme is always smaller than `peer`, up to [`LONGEST`]; none if it is not smaller there.
    fn smaller_from(&self, peer: &Self, shape: &Shape, batch: usize, dictionaries: bool) -> Option<usize> {
        let larger = |&tokens: &usize| {
            self.bytes(shape, tokens, batch, dictionaries) >= peer.bytes(shape, tokens, batch, dictionaries)
        };
        match (1..=LONGEST).rev().find(larger) {
            Some(LONGEST) => None,
            last => Some(last.map_or(1, |tokens| tokens + 1)),
        }
    }
}

/// Prints the tables and writes the figure with its data.
pub fn run(args: &FootprintArgs) -> Result<()> {
    let shapes = chosen(args)?;
    let names: Vec<&str> = args.schemes.split_whitespace().collect();
    let schemes = names.iter().map(|name| Ok((*name, Formula::parse(name)?))).collect::<Result<Vec<_>>>()?;
    if schemes.is_empty() || args.batch == 0 {
        bail!("--schemes and --batch: at least one scheme and one sequence are expected");
    }
    let lengths = lengths(&args.tokens)?;
    let mut rows = Vec::new();
    for shape in &shapes {
        print!("{}", tables(shape, &schemes, &lengths, args.batch)?);
        for (name, scheme) in &schemes {
            rows.extend(lengths.iter().map(|&tokens| row(shape, name, scheme, tokens, args.batch)));
        }
    }
    std::fs::create_dir_all(&args.out).with_context(|| args.out.display().to_string())?;
    let saved = save::figure::<FootprintLength>(&args.out, &rows)?;
    println!("figure {} (and .png), data {}", saved.svg.display(), saved.csv.display());
    Ok(())
}

fn row(shape: &Shape, name: &str, scheme: &Formula, tokens: usize, batch: usize) -> FootprintRow {
    let footprint = scheme.footprint(shape, tokens, batch);
    let bits = measured_bits(footprint.total(), shape.channels(tokens, batch));
    FootprintRow {
        tokens,
        batch,
        nominal_bits: scheme.nominal(shape),
        measured_bits: bits.0,
        dictionaries: scheme.dictionaries(shape),
        ..FootprintRow::of(&shape.id, name, &footprint)
    }
}

/// Two tables: bits at a few lengths with break-even lengths, then bytes by part at the longest length.
fn tables(shape: &Shape, schemes: &[(&str, Formula)], lengths: &[usize], batch: usize) -> Result<String> {
    let mut text = String::new();
    let Shape { id, layers, kv_heads, head_dim, atoms, .. } = shape;
    let peers = PEERS.iter().map(|name| Formula::parse(name)).collect::<Result<Vec<_>>>()?;
    let width = schemes.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max(8);
    let shown = few(lengths);
    let windows = shape.sliding.map_or_else(String::new, |Sliding { layers, window }| {
        format!(" ({layers} of them with a window of {window} tokens)")
    });
    writeln!(
        text,
        "{id}: {layers} layers{windows}, {kv_heads} key-value heads of {head_dim}, {atoms} atoms per dictionary, batch {batch}\n"
    )?;
    write!(text, "{:<width$} {:>7}  measured bits per channel at", "scheme", "nominal")?;
    let columns = 9 * shown.len();
    writeln!(text, "{:>1$}", "smaller than (from tokens)   with dictionaries", (columns + 49usize).saturating_sub(28))?;
    write!(text, "{:<width$} {:>7} ", "", "bits")?;
    shown.iter().try_for_each(|tokens| write!(text, "{tokens:>9}"))?;
    for _ in 0..2 {
        write!(text, "  ")?;
        PEERS.iter().try_for_each(|name| write!(text, " {:>8}", name.trim_start_matches("dense-")))?;
    }
    writeln!(text)?;
    for (name, scheme) in schemes {
        write!(text, "{name:<width$} {:>7.2} ", scheme.nominal(shape))?;
        for &tokens in &shown {
            write!(text, "{:>9.2}", row(shape, name, scheme, tokens, batch).measured_bits)?;
        }
        for dictionaries in [false, true] {
            write!(text, "  ")?;
            for (peer, peer_name) in peers.iter().zip(PEERS) {
                let from = match *name == peer_name {
                    true => "-".to_owned(),
                    false => scheme
                        .smaller_from(peer, shape, batch, dictionaries)
                        .map_or_else(|| "never".to_owned(), |tokens| tokens.to_string()),
                };
                write!(text, " {from:>8}")?;
            }
        }
        writeln!(text)?;
    }
    let last = lengths.last().copied().unwrap_or(1);
    writeln!(text, "\nmegabytes by part at {last} tokens (dictionaries in f16, shared by all sequences)\n")?;
    let all: Vec<(&str, Footprint, usize)> = schemes
        .iter()
        .map(|(name, scheme)| (*name, scheme.footprint(shape, last, batch), scheme.dictionaries(shape)))
        .collect();
    let used = |part: &str| all.iter().any(|(_, f, _)| f.parts().any(|(p, bytes)| p == part && bytes > 0));
    let parts: Vec<&str> = Footprint::default().parts().map(|(part, _)| part).filter(|part| used(part)).collect();
    write!(text, "{:<width$} {:>10}", "scheme", "total")?;
    parts.iter().try_for_each(|part| write!(text, " {part:>12}"))?;
    writeln!(text, " {:>12}", "dictionaries")?;
    for (name, footprint, dictionaries) in &all {
        write!(text, "{name:<width$} {:>10.2}", footprint.total() as f64 / 1e6)?;
        for (_, bytes) in footprint.parts().filter(|(part, _)| parts.contains(part)) {
            write!(text, " {:>12.2}", bytes as f64 / 1e6)?;
        }
        writeln!(text, " {:>12.2}", *dictionaries as f64 / 1e6)?;
    }
    writeln!(text)?;
    Ok(text)
}

/// At most six of the lengths, with about equal ratios between neighbours. The first and the last are among them.
fn few(lengths: &[usize]) -> Vec<usize> {
    let (Some(&first), Some(&last)) = (lengths.first(), lengths.last()) else { return Vec::new() };
    let mut shown: Vec<usize> = (0..6)
        .map(|i| first as f64 * (last as f64 / first as f64).powf(f64::from(i) / 5.0))
        .filter_map(|wanted| {
            lengths
                .iter()
                .copied()
                .min_by(|a, b| (*a as f64 / wanted).ln().abs().total_cmp(&(*b as f64 / wanted).ln().abs()))
        })
        .collect();
    shown.dedup();
    shown
}

/// `1000..32000` in steps of its start, `100..5000:100` in steps of 100, or a list `1000,2000`.
fn lengths(text: &str) -> Result<Vec<usize>> {
    let number = |text: &str| -> Result<usize> {
        match text.trim().parse() {
            Ok(n) if (1..=1 << 24).contains(&n) => Ok(n),
            _ => bail!("--tokens: `{text}` is not a length of 1 to {}", 1 << 24),
        }
    };
    let lengths: Vec<usize> = match text.split_once("..") {
        None => text.split(',').map(number).collect::<Result<_>>()?,
        Some((first, rest)) => {
            let (last, step) = match rest.split_once(':') {
                Some((last, step)) => (number(last)?, number(step)?),
                None => (number(rest)?, number(first)?),
            };
            (number(first)?..=last).step_by(step).collect()
        }
    };
    if lengths.is_empty() || lengths.len() > 10_000 || !lengths.is_sorted() {
        bail!(
            "--tokens: `{text}` is not a rising list of 1 to 10000 lengths, for example 1000..32000 or 100..5000:100"
        );
    }
    Ok(lengths)
}

/// The shapes named, or the two of the paper's Figure 4.
fn chosen(args: &FootprintArgs) -> Result<Vec<Shape>> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn llama2() -> Shape {
        let shapes: Shapes = toml::from_str(SHAPES).unwrap();
        shapes.shape.into_iter().find(|s| s.id == "llama2-7b-chat").unwrap()
    }

    fn bits(name: &str, tokens: usize) -> f64 {
        row(&llama2(), name, &Formula::parse(name).unwrap(), tokens, 1).measured_bits
    }

    #[test]
    fn llama2_at_4096_tokens_matches_hand_computation() {
        let shape = llama2();
        let bytes = |name: &str| Formula::parse(name).unwrap().footprint(&shape, 4096, 1);
        assert_eq!(bytes("dense-f16").total(), 2_147_483_648);
        // 32 layers x 32 heads x 4096 tokens x (4 x 4 key + 2 x 2 x 4 value) bytes: the paper's 1 bit.
        let csr = bytes("csr-4");
        assert_eq!(csr.indices + csr.coefficients, 134_217_728);
        // 32 layers x 12288 atoms x (128 + 64) x 2 bytes.
        let online = bytes("csr-4+online");
        assert_eq!(online.online_atoms + online.guard, 150_994_944);
        assert_eq!(Formula::parse("csr-4").unwrap().dictionaries(&shape), 100_663_296);
        assert!((bits("csr-4", 4096) - 1.0).abs() < 0.01 && (bits("csr-4+online", 4096) - 2.125).abs() < 0.01);
    }

    /// With metadata, 3 and 5 bits; at 4096 tokens and a half full window of keys, 3.30 and 5.26 bits.
    #[test]
    fn kivi_takes_what_is_published() {
        assert!((bits("kivi-2", 1 << 20) - 3.0).abs() < 0.01);
        let half_full = |name: &str| bits(name, 4096 + 64);
        assert!((half_full("kivi-2") - 3.30).abs() < 0.02, "{}", half_full("kivi-2"));
        assert!((half_full("kivi-4") - 5.26).abs() < 0.02, "{}", half_full("kivi-4"));
    }

    /// Compares the formulas with and without layers that have a window.
    #[test]
    fn layers_with_a_window_are_counted_with_what_they_hold() {
        let windowed = |layers| Shape { sliding: Some(Sliding { layers, window: 512 }), ..llama2() };
        for tokens in [100, 512, 4096] {
            for name in ["dense-f16", "fp8", "kivi-2", "csr-4", "csr-4+online+window"] {
                let scheme = Formula::parse(name).unwrap();
                let bytes = |layers| match layers {
                    0 => scheme.footprint(&llama2(), tokens, 2).total(),
                    _ => scheme.footprint(&windowed(layers), tokens, 2).total(),
                };
                // Each layer with a window saves the same number of bytes.
                assert_eq!(bytes(0) - bytes(8), 8 * (bytes(0) - bytes(32)) / 32, "{name} at {tokens}");
                assert_eq!(bytes(8) == bytes(0), tokens <= 512, "{name} at {tokens}");
            }
            for (name, bits) in [("dense-f16", 16.0), ("fp8", 8.0)] {
                let scheme = Formula::parse(name).unwrap();
                assert_eq!(row(&windowed(8), name, &scheme, tokens, 2).measured_bits, bits, "{name} at {tokens}");
            }
        }
    }

    #[test]
    fn the_formula_of_kivi_within_a_window_is_what_its_cache_holds() {
        use kvcsr_cache::{Rotary, SchemeContext, registry};
        let (window, kv_heads, head_dim) = (200, 2, 64);
        let shape = Shape { layers: 1, kv_heads, head_dim, sliding: Some(Sliding { layers: 1, window }), ..llama2() };
        let scheme = registry::build("kivi-2", &SchemeContext::new(shape.geometry())).unwrap();
        let device = candle_core::Device::Cpu;
        let rotary = Rotary::new(head_dim, 1e4, 2048, &device).unwrap().with_reach(Reach::Sliding(window));
        for tokens in [150, 777, 1024] {
            let x = candle_core::Tensor::rand(-1f32, 1.0, (1, kv_heads, tokens, head_dim), &device).unwrap();
            let held = scheme.after_prefill(0, &x, &x, &rotary).unwrap().footprint();
            let formula = Formula::Kivi(2).footprint(&shape, tokens, 1);
            assert_eq!((formula.packed, formula.scales), (held.packed, held.scales), "{tokens}");
            // The cache's buffers have room for a few more tokens.
            let room = held.window - formula.window;
            assert!(room <= 2 * 4 * kv_heads * head_dim * 2, "{tokens}: {held:?}, {formula:?}");
        }
    }

    #[test]
    fn break_even_is_where_the_sizes_cross() {
        let shape = llama2();
        let (csr, f16) = (Formula::parse("csr-4+online").unwrap(), Formula::parse("dense-f16").unwrap());
        for dictionaries in [false, true] {
            let from = csr.smaller_from(&f16, &shape, 1, dictionaries).unwrap();
            let smaller = |n| csr.bytes(&shape, n, 1, dictionaries) < f16.bytes(&shape, n, 1, dictionaries);
            assert!(smaller(from) && !smaller(from - 1), "{from}");
        }
        assert_eq!(Formula::parse("csr-128").unwrap().smaller_from(&f16, &shape, 1, false), None);
    }

    #[test]
    fn lengths_are_read_and_wrong_ones_refused() {
        assert_eq!(lengths("1000..3500").unwrap(), [1000, 2000, 3000]);
        assert_eq!(lengths("100..300:50").unwrap(), [100, 150, 200, 250, 300]);
        assert_eq!(lengths("7,9").unwrap(), [7, 9]);
        for wrong in ["", "0..5", "5..1", "a", "9,7", "1..999999999", "1..20000"] {
            assert!(lengths(wrong).is_err(), "{wrong}");
        }
        let many = lengths("1000..32000").unwrap();
        assert_eq!(few(&many), [1000, 2000, 4000, 8000, 16000, 32000]);
    }
}
