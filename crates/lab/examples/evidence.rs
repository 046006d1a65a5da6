//! Schemes on long documents, measured in a way that deleting tokens does not pass: far-context recovery, together with
//! mean KL and bits.
//!
//! `cargo run --release -p kvcsr-lab --example evidence -- 2048 1 evict kivi-2 q4_0` scores schemes that need no
//! training. They are scored after contexts of about 2048 tokens, on one document of each domain. The documents must
//! have been downloaded (`data/sources.toml`).

use std::collections::BTreeMap;
use std::error::Error;

use kvcsr_cache::{SchemeContext, registry};
use kvcsr_eval::heldout::far::{self, HIDDEN};
use kvcsr_eval::heldout::unit::PIECE;
use kvcsr_eval::heldout::{Cut, Prepared, Reference, UnitScore, Window};
use kvcsr_lab::documents::{Side, collections};
use kvcsr_lab::{Model, places};

/// Tokens per call of the prefill.
const CHUNK: usize = 512;
/// The share of the KL with the rest hidden that far tokens hold, on the documents for the threshold.
const SHARE: f64 = 0.9;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let context: usize = args.next().unwrap_or_else(|| "2048".to_owned()).parse()?;
    let count: usize = args.next().unwrap_or_else(|| "1".to_owned()).parse()?;
    let mut names: Vec<String> = args.collect();
    if names.is_empty() {
        names = ["dense-f16", "evict(recent=512)", "kivi-2", "q4_0"].map(str::to_owned).to_vec();
    }
    let model = Model::embedded()?;
    let cx = SchemeContext::new(model.decoder.geometry());
    let (dense, hidden) = (registry::build("dense", &cx)?, registry::build(HIDDEN, &cx)?);
    let schemes = names.iter().map(|name| registry::build(name, &cx)).collect::<Result<Vec<_>, _>>()?;

    let cut = Cut { context, skip: far::RECENT, scored: 512, windows: 1, seed: 7 };
    let threshold = {
        let mut kl = Vec::new();
        for window in windows(&model, Side::Threshold, 1, cut)? {
            let reference = Reference::new(&model.decoder, &window.text, CHUNK, dense.as_ref())?;
            kl.extend(reference.measure(&model.decoder, hidden.as_ref(), PIECE)?.kl().split_off(window.skip));
        }
        far::threshold(&kl, SHARE)
    };
    println!("far: KL above {threshold:.4} nats with all but {HIDDEN} hidden\n");

    let mut totals: BTreeMap<usize, Vec<UnitScore>> = BTreeMap::new();
    for window in windows(&model, Side::Scored, count, cut)? {
        let prepared = Prepared::new(&model.decoder, window, CHUNK, dense.as_ref(), hidden.as_ref(), threshold)?;
        for (at, scheme) in schemes.iter().enumerate() {
            totals.entry(at).or_default().push(prepared.score(&model.decoder, scheme.as_ref(), 0)?);
        }
        let (window, share) = (prepared.window(), totals[&0].last().map_or(f64::NAN, |unit| unit.far.share()));
        println!("{}: {} tokens of context, {:.1} % far", window.document, window.text.context, 100.0 * share);
    }
    println!("\n| scheme | recovery | far KL | mean KL | 99.9 % | bits |\n|---|--:|--:|--:|--:|--:|");
    for (at, units) in totals {
        let mut far = far::FarScore::default();
        units.iter().for_each(|unit| far += unit.far);
        let mean = |of: &dyn Fn(&UnitScore) -> f64| units.iter().map(of).sum::<f64>() / units.len() as f64;
        println!(
            "| {} | {:.3} | {:.4} | {:.4} | {:.2} | {:.2} |",
            names[at],
            far.recovery(),
            far.kl(),
            mean(&UnitScore::mean_kl),
            mean(&UnitScore::tail_kl),
            mean(&|unit| unit.measured_bits(model.decoder.geometry()).0),
        );
    }
    Ok(())
}

/// The windows of the first `count` documents of each domain.
fn windows(model: &Model, side: Side, count: usize, cut: Cut) -> Result<Vec<Window>, Box<dyn Error>> {
    let (here, cache) = (std::env::current_dir()?, places::cache_dir()?);
    let mut taken = BTreeMap::<String, usize>::new();
    let mut windows = Vec::new();
    for collection in collections(&here)?.iter().filter(|collection| collection.side == side) {
        for document in collection.documents(&cache)? {
            let taken = taken.entry(document.domain).or_default();
            if *taken < count {
                *taken += 1;
                let ids = model.tokenizer.encode(&document.text, false)?;
                windows.extend(cut.windows(&document.name, &ids));
            }
        }
    }
    Ok(windows)
}
