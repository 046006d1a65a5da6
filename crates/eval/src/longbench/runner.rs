//! Runs one record through the model: a prompt, one uncompressed prefill, and the answer of every scheme.
//!
//! The snapshot of the prefill is forked into the schemes. The forks decode in groups. The schemes of a group decode at the same
//! time, one per core, and give the same answers as one after another. A group holds at most twice the bytes of the prefill,
//! except if a single scheme is larger. At most one fork of the next group exists while a group decodes. Memory is therefore
//! limited for any number of schemes. All schemes start from the same prompt state and the same first logits, so the first
//! generated token is the same for all.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::Tensor;
use kvcsr_cache::{LayerCache, PrefillSnapshot, Scheme};
use kvcsr_codec::measured_bits;
use kvcsr_model::{ChatTemplate, Choice, Decoder, Finish, Generated, Limits, StopTokens, Tokenizer};
use rayon::prelude::*;

use crate::error::{EvalError, Result, TokensError};
use crate::longbench::config::Config;
use crate::longbench::metrics::MetricOptions;
use crate::longbench::predictions::{PredictionRow, label};
use crate::longbench::prompt::{Chat, Prompt, Tokens, prepare};
use crate::longbench::record::{Record, Work};
use crate::longbench::score::sample_score;
use crate::longbench::tasks::Task;

/// The options that `pred.py` takes from its command line and code.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Prompts with more tokens than this lose their middle.
    pub max_prompt_tokens: usize,
    /// How prompts are wrapped, for the tasks that use a wrap.
    pub chat: Chat,
    /// Tokens per forward call of the prefill.
    pub prefill_chunk: usize,
    /// Options of the scores.
    pub metric: MetricOptions,
}

/// A model and the settings of LongBench, ready for records.
pub struct Runner<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    config: &'a Config,
    options: RunOptions,
    template: Option<ChatTemplate>,
}

impl Tokens for Tokenizer {
    fn encode(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        Ok(Tokenizer::encode(self, text, true)?)
    }

    fn encode_as_is(&self, text: &str) -> Result<Vec<u32>, TokensError> {
        Ok(Tokenizer::encode(self, text, false)?)
    }

    fn decode(&self, ids: &[u32]) -> Result<String, TokensError> {
        Ok(Tokenizer::decode(self, ids, true)?)
    }
}

/// Maximum number of tokens that a chat wrap and a BOS add to a prompt.
const WRAP_TOKENS: usize = 256;

/// How well prompts and answers fit the model's positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// Number of positions of the model.
    pub positions: usize,
    /// Number of prompts checked.
    pub prompts: usize,
    /// Number of prompts that leave fewer positions than their answer may take.
    pub short: usize,
    /// Number of tokens of the longest prompt.
    pub longest: usize,
    /// Maximum number of tokens of an answer, over the tasks.
    pub answer: usize,
}

/// One scheme's caches for a prompt.
struct Fork<'s> {
    scheme: &'s dyn Scheme,
    /// One per layer.
    caches: Vec<Box<dyn LayerCache>>,
    bytes: usize,
    bits: f64,
    encode_ms: f64,
}

/// Schemes that decode at the same time.
#[derive(Default)]
struct Group<'s> {
    forks: Vec<Fork<'s>>,
    bytes: usize,
}

/// Maximum number of schemes in a group.
const GROUP: usize = 8;
/// A group may hold this many times the bytes of the uncompressed prefill.
const GROUP_BYTES: usize = 2;

impl Group<'_> {
    /// Whether the group has no room for another fork of `bytes` bytes.
    fn is_full(&self, bytes: usize, snapshot: usize) -> bool {
        let held = self.forks.len();
        held == GROUP || held > 0 && self.bytes + bytes > GROUP_BYTES * snapshot
    }
}

fn snapshot_bytes(snapshot: &PrefillSnapshot) -> usize {
    let bytes = |t: &Tensor| t.elem_count() * t.dtype().size_in_bytes();
    snapshot.keys.iter().chain(&snapshot.values).map(bytes).sum()
}

impl<'a> Runner<'a> {
    /// A runner for `decoder`.
    #[must_use]
    pub fn new(decoder: &'a Decoder, tokenizer: &'a Tokenizer, config: &'a Config, options: RunOptions) -> Self {
        Self { decoder, tokenizer, config, options, template: None }
    }

    /// Sets the checkpoint's own template, for [`Chat::Checkpoint`].
    #[must_use]
    pub fn with_template(self, template: Option<ChatTemplate>) -> Self {
        Self { template, ..self }
    }

    /// The prompt of `record`.
    ///
    /// # Errors
    /// [`EvalError::Config`] for a task without a template. Also the errors of [`prepare`].
    pub fn prompt(&self, task: &Task, record: &Record) -> Result<Prompt> {
        let template = self.config.template(&task.name)?;
        let chat = self.options.chat.wrap(self.template.as_ref())?;
        prepare(task, template, record, self.tokenizer, self.options.max_prompt_tokens, chat)
    }

    /// Checks whether the prompts of `work` and their answers fit the model's positions, without running the model. `None` if the
    /// limits alone show that they fit.
    ///
    /// # Errors
    /// [`EvalError::PromptTooLong`] for a prompt that the model cannot hold. Also the errors of [`Runner::prompt`].
    pub fn room(&self, work: &[Work<'_>]) -> Result<Option<Room>> {
        let positions = self.decoder.arch().max_positions;
        let mut room = Room { positions, ..Room::default() };
        let mut checked = false;
        for Work { task, records } in work {
            let answer = self.config.max_new_tokens(&task.name)?;
            // The last token of an answer needs no position, because nothing follows it.
            let fits = |tokens: usize| tokens + answer <= positions + 1;
            if fits(self.options.max_prompt_tokens.saturating_add(WRAP_TOKENS)) {
                continue;
            }
            checked = true;
            room.answer = room.answer.max(answer);
            for record in records {
                let tokens = self.prompt(task, record)?.ids.len();
                if tokens > positions {
                    let (task, id) = (task.name.clone(), record.id.clone());
                    return Err(EvalError::PromptTooLong { task, id, tokens, positions });
                }
                room.prompts += 1;
                room.short += usize::from(!fits(tokens));
                room.longest = room.longest.max(tokens);
            }
        }
        Ok(checked.then_some(room))
    }

    /// Prefills the prompt of `record` once and lets every scheme answer it. Each row is passed to `sink` when it is made. Without
    /// schemes the model does not run.
    ///
    /// # Errors
    /// [`EvalError::Sample`], which names the task and the record and contains the error. This includes errors of `sink`.
    pub fn run(
        &self,
        task: &Task,
        record: &Record,
        schemes: &[&dyn Scheme],
        sink: &mut dyn FnMut(PredictionRow) -> Result<()>,
    ) -> Result<()> {
        self.run_all(task, record, schemes, sink).map_err(|source| EvalError::Sample {
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
        let mut group = Group::default();
        for &scheme in schemes {
            let fork = self.fork(&snapshot, scheme, prompt.ids.len())?;
            if group.is_full(fork.bytes, snapshot_bytes(&snapshot)) {
                self.answer(task, record, &prompt, &snapshot, std::mem::take(&mut group), sink)?;
            }
            group.bytes += fork.bytes;
            group.forks.push(fork);
        }
        self.answer(task, record, &prompt, &snapshot, group, sink)
    }

    /// Makes the caches of `scheme` from a finished prefill.
    fn fork<'s>(&self, snapshot: &PrefillSnapshot, scheme: &'s dyn Scheme, tokens: usize) -> Result<Fork<'s>> {
        let started = Instant::now();
        let caches = snapshot.fork(scheme, self.decoder.rotary()).map_err(|source| EvalError::Scheme {
            scheme: label(scheme.name(), scheme.dictionaries()),
            source: Box::new(source),
        })?;
        let encode_ms = started.elapsed().as_secs_f64() * 1e3;
        let bytes = caches.iter().map(|cache| cache.footprint().total()).sum();
        let bits = measured_bits(bytes, self.decoder.channels(tokens));
        Ok(Fork { scheme, caches, bytes, bits: bits.0, encode_ms })
    }

    /// Lets the schemes of a group answer a prefilled prompt.
    fn answer(
        &self,
        task: &Task,
        record: &Record,
        prompt: &Prompt,
        snapshot: &PrefillSnapshot,
        group: Group<'_>,
        sink: &mut dyn FnMut(PredictionRow) -> Result<()>,
    ) -> Result<()> {
        let stop = self.stop_tokens(task)?;
        let limits = Limits {
            max_new_tokens: self.config.max_new_tokens(&task.name)?,
            min_new_tokens: usize::from(task.newline_stops),
            stop: &stop,
        };
        // Reading the weights for one token occupies one core. The schemes decode in parallel, each as it would alone.
        let decode = |fork: &mut Fork<'_>| -> Result<(Generated, f64)> {
            let started = Instant::now();
            let proceed = |_| ControlFlow::Continue(());
            let generated =
                self.decoder.generate(&snapshot.last_logits, &mut fork.caches, Choice::Greedy, limits, proceed)?;
            fork.caches.clear();
            Ok((generated, started.elapsed().as_secs_f64() * 1e3))
        };
        let mut forks = group.forks;
        let answers: Vec<(Generated, f64)> = forks.par_iter_mut().map(decode).collect::<Result<_>>()?;
        for (Fork { scheme, bits, encode_ms, .. }, (generated, decode_ms)) in forks.into_iter().zip(answers) {
            // transformers returns the stop token with the text. A newline therefore stays in the prediction. The end-of-text token
            // is skipped, like every special token.
            let mut ids = generated.ids;
            let cut = generated.finish == Finish::Context;
            if let Finish::Stop(token) = generated.finish {
                ids.push(token);
            }
            let pred = self.tokenizer.decode(&ids, true)?;
            let score = sample_score(task, &pred, &record.answers, record.all_classes.as_deref(), self.options.metric)?;
            sink(PredictionRow {
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
                nominal_bits: scheme.nominal_bits().0,
                measured_bits: bits,
                encode_ms,
                decode_ms,
                generated: ids.len(),
                cut,
            })?;
        }
        Ok(())
    }

    /// The model's end tokens. If the task stops at a newline, also the last token of a newline.
    fn stop_tokens(&self, task: &Task) -> Result<StopTokens> {
        let newline = if task.newline_stops { self.tokenizer.encode("\n", false)?.last().copied() } else { None };
        Ok(self.tokenizer.stop_tokens().and(newline))
    }
}
