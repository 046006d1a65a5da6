//! One record through the model: a prompt, one exact prefill, and every scheme's answer to it.
//!
//! The prefill's snapshot is forked into one scheme after another, and each fork is dropped before the next is made: memory
//! holds the snapshot and one cache, however many schemes there are. All schemes start from the same prompt state and the same
//! first logits, so the first generated token is common to all.

use std::ops::ControlFlow;
use std::time::Instant;

use kvcsr_cache::{PrefillSnapshot, Scheme};
use kvcsr_codec::measured_bits;
use kvcsr_model::{Choice, Decoder, Finish, Limits, Tokenizer};

use crate::config::Config;
use crate::error::{LongBenchError, Result, TokensError};
use crate::metrics::MetricOptions;
use crate::predictions::{PredictionRow, label};
use crate::prompt::{Chat, Prompt, Tokens, prepare};
use crate::record::Record;
use crate::score::sample_score;
use crate::tasks::Task;

/// What `pred.py` takes from its command line and code.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Prompts above this many tokens lose their middle.
    pub max_prompt_tokens: usize,
    /// How prompts are wrapped, for the tasks that are.
    pub chat: Chat,
    /// Tokens per forward call of the prefill.
    pub prefill_chunk: usize,
    /// What scores depend on.
    pub metric: MetricOptions,
}

/// A model and LongBench's settings, ready for records.
pub struct Runner<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    config: &'a Config,
    options: RunOptions,
}

impl Tokens for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        Ok(Tokenizer::encode(self, text, true)?)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        Ok(Tokenizer::decode(self, ids, true)?)
    }
}

impl<'a> Runner<'a> {
    /// A runner of `decoder`.
    #[must_use]
    pub fn new(decoder: &'a Decoder, tokenizer: &'a Tokenizer, config: &'a Config, options: RunOptions) -> Self {
        Self { decoder, tokenizer, config, options }
    }

    /// The prompt of `record`.
    ///
    /// # Errors
    /// [`LongBenchError::Config`] for a task without a template, and as [`prepare`].
    pub fn prompt(&self, task: &Task, record: &Record) -> Result<Prompt> {
        let template = self.config.template(&task.name)?;
        let wrap = self.options.chat.wrap();
        let chat = wrap.as_ref().map(|wrap| wrap as &dyn Fn(&str) -> String);
        prepare(task, template, record, self.tokenizer, self.options.max_prompt_tokens, chat)
    }

    /// Prefills the prompt of `record` once and lets every scheme answer it. Each row is handed to `sink` as it is made.
    /// Without schemes nothing is run.
    ///
    /// # Errors
    /// [`LongBenchError::Sample`], which names task and record, around whatever failed, `sink` included.
    pub fn run(
        &self,
        task: &Task,
        record: &Record,
        schemes: &[&dyn Scheme],
        sink: &mut dyn FnMut(PredictionRow) -> Result<()>,
    ) -> Result<()> {
        self.run_all(task, record, schemes, sink).map_err(|source| LongBenchError::Sample {
            task: task.name.clone(),
            id: record.id.clone(),
            source: Box::new(source),
        })
    }

    fn run_all(
        &self,
        task: &Task,
        record: &Record,
        schemes: &[&dyn Scheme],
        sink: &mut dyn FnMut(PredictionRow) -> Result<()>,
    ) -> Result<()> {
        if schemes.is_empty() {
            return Ok(());
        }
        let prompt = self.prompt(task, record)?;
        let snapshot = self.decoder.prefill(&prompt.ids, self.options.prefill_chunk)?;
        for &scheme in schemes {
            sink(self.answer(task, record, &prompt, &snapshot, scheme)?)?;
        }
        Ok(())
    }

    /// What `scheme` makes of a prefilled prompt.
    fn answer(
        &self,
        task: &Task,
        record: &Record,
        prompt: &Prompt,
        snapshot: &PrefillSnapshot,
        scheme: &dyn Scheme,
    ) -> Result<PredictionRow> {
        let started = Instant::now();
        let mut caches = snapshot.fork(scheme, self.decoder.rotary()).map_err(|source| LongBenchError::Scheme {
            scheme: label(scheme.name(), scheme.dictionaries()),
            source: Box::new(source),
        })?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let bytes = caches.iter().map(|cache| cache.footprint().total()).sum();
        let geometry = self.decoder.geometry();
        let bits = measured_bits(bytes, prompt.ids.len(), geometry.kv_heads, geometry.head_dim, geometry.layers);

        let stop = self.stop_tokens(task)?;
        let limits = Limits {
            max_new_tokens: self.config.max_new_tokens(&task.name)?,
            min_new_tokens: usize::from(task.newline_stops),
            stop: &stop,
        };
        let started = Instant::now();
        let proceed = |_| ControlFlow::Continue(());
        let generated = self.decoder.generate(&snapshot.last_logits, &mut caches, Choice::Greedy, limits, proceed)?;
        let decode_ms = started.elapsed().as_secs_f64() * 1e3;

        // transformers returns the stop token with the text: the newline stays in the prediction, the end-of-text token is
        // skipped as every special token is.
        let mut ids = generated.ids;
        if let Finish::Stop(token) = generated.finish {
            ids.push(token);
        }
        let pred = self.tokenizer.decode(&ids, true)?;
        let score = sample_score(task, &pred, &record.answers, record.all_classes.as_deref(), self.options.metric)?;
        Ok(PredictionRow {
            pred,
            answers: record.answers.clone(),
            all_classes: record.all_classes.clone(),
            length: record.length,
            task: task.name.clone(),
            id: record.id.clone(),
            scheme: scheme.name().to_owned(),
            dictionaries: scheme.dictionaries().to_owned(),
            score,
            tokens_before: prompt.full_tokens,
            tokens: prompt.ids.len(),
            measured_bits: bits.0,
            encode_ms,
            decode_ms,
            generated: ids.len(),
        })
    }

    /// The end-of-text token, and the last token of a newline for the task that stops there.
    fn stop_tokens(&self, task: &Task) -> Result<Vec<u32>> {
        let mut stop: Vec<u32> = self.tokenizer.eos().into_iter().collect();
        if task.newline_stops {
            stop.extend(self.tokenizer.encode("\n", false)?.last());
        }
        Ok(stop)
    }
}
