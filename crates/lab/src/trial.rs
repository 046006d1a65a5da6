//! A scheme on a prompt.

use std::path::Path;

use candle_core::{Device, Tensor};
use kvcsr_cache::schemes::csr_plus;
use kvcsr_cache::{LayerCache, Scheme, SchemeContext, Shadow, registry};
use kvcsr_codec::{CodebookSet, DictionarySet, Footprint};
use kvcsr_eval::longbench::predictions::label;
use kvcsr_model::Logits;
use kvcsr_report::notebook::{Html, Markdown, Shown, file_of, kmeans, neuraldict};

use crate::error::Result;
use crate::{Model, Prompt};

/// The results of one scheme on one prompt.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The name of the scheme. It includes its dictionaries if they are not the usual ones.
    pub scheme: String,
    /// Bits per channel as the method's paper counts them.
    pub nominal_bits: f64,
    /// Bits per channel, counting every byte allocated for the context.
    pub measured_bits: f64,
    /// Those bytes, by part.
    pub footprint: Footprint,
    /// Bytes of dictionaries and tables, shared by all prompts.
    pub shared_bytes: usize,
    /// Mean KL from the uncompressed model's next-token distribution over the tokens after the context, in nats per
    /// token.
    pub kl: f64,
    /// The fraction of these tokens for which both models prefer the same next token, 0 to 1.
    pub top1: f64,
    /// Perplexity of the tokens after the context.
    pub perplexity: f64,
    /// For each layer, the relative squared error of the attention output over the tokens after the context. The inputs
    /// are those of the uncompressed model.
    pub layer_errors: Vec<f64>,
    /// Time to compress the context, in milliseconds.
    pub encode_ms: f64,
}

impl Trial {
    /// The mean of [`Trial::layer_errors`] over the layers.
    pub fn attention_error(&self) -> f64 {
        self.layer_errors.iter().sum::<f64>() / self.layer_errors.len().max(1) as f64
    }

    /// Lets `scheme` take over the prompt's prefill, and scores it on the tokens after the context. The scheme may be
    /// registered or your own.
    ///
    /// # Errors
    /// If the scheme fails, or if the context is so short that the scheme compressed nothing.
    pub fn of(model: &Model, prompt: &Prompt, scheme: &dyn Scheme) -> Result<Self> {
        let score = prompt.reference.score(&model.decoder, scheme)?;
        Ok(Self {
            scheme: label(scheme.name(), scheme.dictionaries()),
            nominal_bits: scheme.nominal_bits().0,
            measured_bits: score.measured_bits().0,
            footprint: score.footprint,
            shared_bytes: scheme.shared_bytes(),
            kl: score.kl(),
            top1: score.top1(),
            perplexity: score.perplexity(),
            layer_errors: layer_errors(model, prompt, scheme)?,
            encode_ms: score.encode_ms,
        })
    }
}

/// Runs the tokens after the context again through the exact caches. The scheme's caches get the same inputs and are
/// measured.
fn layer_errors(model: &Model, prompt: &Prompt, scheme: &dyn Scheme) -> Result<Vec<f64>> {
    let (snapshot, rotary) = (prompt.reference.snapshot(), model.decoder.rotary());
    let dense = registry::build("dense", &SchemeContext::new(model.decoder.geometry()))?;
    let shown = snapshot.fork(dense.as_ref(), rotary)?;
    let watched = snapshot.fork(scheme, rotary)?;
    let mut both: Vec<Watched> =
        shown.into_iter().zip(watched).map(|(shown, watched)| Watched::new(shown, watched)).collect();
    let ids = Tensor::new(prompt.reference.continuation(), &Device::Cpu)?.unsqueeze(0)?;
    let mut caches: Vec<&mut dyn LayerCache> = both.iter_mut().map(|cache| cache as &mut dyn LayerCache).collect();
    model.decoder.forward_borrowed(&ids, &mut caches, Logits::None)?;
    Ok(both.iter().map(Shadow::relative_error).collect())
}

type Watched = Shadow<Box<dyn LayerCache>, Box<dyn LayerCache>>;

/// Schemes to compare. It dereferences to a slice, and a notebook variable can have this type.
pub struct Schemes(pub Vec<Box<dyn Scheme>>);

impl std::ops::Deref for Schemes {
    type Target = [Box<dyn Scheme>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// The registered schemes called `names`, with the files trained in `run`.
///
/// # Errors
/// If a name is unknown, or if a scheme needs something that was not trained.
pub fn schemes(run: &Path, model: &Model, names: &[&str]) -> Result<Schemes> {
    let cx = context(run, model)?;
    Ok(Schemes(names.iter().map(|name| Ok(registry::build(name, &cx)?)).collect::<Result<_>>()?))
}

/// The data from which the schemes of a run are built: its dictionaries and its k-means centroids and, if they were made, its
/// dictionaries for keys after position embedding and the tables of `csr+`.
///
/// # Errors
/// If the files are missing or damaged.
pub fn context(run: &Path, model: &Model) -> Result<SchemeContext> {
    let mut cx = SchemeContext::new(model.decoder.geometry())
        .with_dictionaries(registry::DEFAULT_DICTIONARIES, neuraldict(run)?)
        .with_dictionaries("kmeans", kmeans(run)?);
    if let Some(set) = rope_dictionaries(run)? {
        cx = cx.with_dictionaries(registry::ROPE_DICTIONARIES, set);
    }
    let tables = file_of(run, "train-plus/csr-plus.safetensors");
    if tables.is_file() {
        cx = cx.with_codebooks(csr_plus::TABLES, CodebookSet::load(tables)?);
    }
    Ok(cx)
}

/// The dictionaries for keys after position embedding. `None` if `just train-rope` has not been run.
///
/// # Errors
/// If the file is damaged.
pub fn rope_dictionaries(run: &Path) -> Result<Option<DictionarySet>> {
    let path = file_of(run, "train-rope/dictionaries.safetensors");
    Ok(if path.is_file() { Some(DictionarySet::load(path)?) } else { None })
}

/// Trials of several schemes on one prompt, shown as a table.
#[derive(Debug, Clone)]
pub struct Trials(pub Vec<Trial>);

/// Runs [`Trial::of`] for each scheme, in order.
///
/// # Errors
/// The errors of [`Trial::of`].
pub fn trials(model: &Model, prompt: &Prompt, schemes: &[Box<dyn Scheme>]) -> Result<Trials> {
    Ok(Trials(schemes.iter().map(|scheme| Trial::of(model, prompt, scheme.as_ref())).collect::<Result<_>>()?))
}

impl Trials {
    /// The trial of the scheme called `scheme`.
    pub fn named(&self, scheme: &str) -> Option<&Trial> {
        self.0.iter().find(|trial| trial.scheme == scheme)
    }
}

/// What the model writes after the prompt's context under each scheme, at most `tokens` tokens, as a table.
///
/// # Errors
/// The errors of [`Model::generate`].
pub fn continuations(model: &Model, prompt: &Prompt, schemes: &[Box<dyn Scheme>], tokens: usize) -> Result<Html> {
    let cell = |text: &str| text.replace('|', "\\|").replace('\n', " ");
    let mut text = format!("| scheme | what follows |\n|---|---|\n| *the text itself* | {} |\n", cell(&prompt.follows));
    for scheme in schemes {
        let written = model.generate(prompt, scheme.as_ref(), tokens)?;
        text += &format!("| {} | {} |\n", label(scheme.name(), scheme.dictionaries()), cell(&written));
    }
    Ok(Markdown::of(&text).shown())
}

impl Shown for Trials {
    fn html(&self) -> String {
        let mut text = String::from(
            "| scheme | nominal bits | measured bits | bytes | attention error | KL (nats) | top-1 (%) | perplexity | compress (ms) |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for t in &self.0 {
            text += &format!(
                "| {} | {:.2} | {:.2} | {} | {:.4} | {:.4} | {:.1} | {:.2} | {:.0} |\n",
                t.scheme,
                t.nominal_bits,
                t.measured_bits,
                t.footprint.total(),
                t.attention_error(),
                t.kl,
                100.0 * t.top1,
                t.perplexity,
                t.encode_ms
            );
        }
        Markdown::of(&text).html()
    }
}

impl Shown for Trial {
    fn html(&self) -> String {
        Trials(vec![self.clone()]).html()
    }
}
