//! One record through the model: a prompt, one exact prefill, and every scheme's answer to it.
//!
//! The prefill's snapshot is forked into the schemes, and the forks decode in groups, each dropped before the next is made; those
//! of a group decode at the same time, one to a core, with the answers they would give one after another. A group never holds
//! more than twice the bytes of the prefill, but for a scheme that is larger alone: memory is bounded, however many schemes
//! there are. All schemes start from the same prompt state and the same first logits, so the first generated token is common
//! to all.

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

/// Most tokens that a chat wrap and a BOS add to a prompt.
const WRAP_TOKENS: usize = 256;

/// How prompts and answers fit the model's positions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Room {
    /// The model's positions.
    pub positions: usize,
    /// Prompts looked at.
    pub prompts: usize,
    /// Those that leave fewer positions than their answer may take.
    pub short: usize,
    /// Tokens of the longest prompt.
    pub longest: usize,
    /// Tokens that an answer may take, at most over the tasks.
    pub answer: usize,
}

/// One scheme's caches of a prompt.
struct Fork<'s> {
    scheme: &'s dyn Scheme,
    /// One per layer.
    caches: Vec<Box<dyn LayerCache>>,
    bytes: usize,
    bits: f64,
    encode_ms: f64,
}

/// Schemes that decode together.
#[derive(Default)]
struct Group<'s> {
    forks: Vec<Fork<'s>>,
    bytes: usize,
}

/// Most schemes of a group.
const GROUP: usize = 8;
/// A group may hold this many times the bytes of the exact prefill, which it is made from.
const GROUP_BYTES: usize = 2;

impl Group<'_> {
    /// Whether another fork of `bytes` has no place in it.
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
    /// A runner of `decoder`.
    #[must_use]
    pub fn new(decoder: &'a Decoder, tokenizer: &'a Tokenizer, config: &'a Config, options: RunOptions) -> Self {
        Self { decoder, tokenizer, config, options, template: None }
    }

    /// With the checkpoint's own template, for [`Chat::Checkpoint`].
    #[must_use]
    pub fn with_template(self, template: Option<ChatTemplate>) -> Self {
        Self { template, ..self }
    }

    /// The prompt of `record`.
    ///
    /// # Errors
    /// [`EvalError::Config`] for a task without a template, and as [`prepare`].
    pub fn prompt(&self, task: &Task, record: &Record) -> Result<Prompt> {
        let template = self.config.template(&task.name)?;
        let chat = self.options.chat.wrap(self.template.as_ref())?;
        prepare(task, template, record, self.tokenizer, self.options.max_prompt_tokens, chat)
    }

    /// Whether the prompts of `work` and their answers fit the model's positions, before anything is run. `None` where the
    /// limits alone say that they do.
    ///
    /// # Errors
    /// [`EvalError::PromptTooLong`] for a prompt that the model cannot hold; as [`Runner::prompt`].
    pub fn room(&self, work: &[Work<'_>]) -> Result<Option<Room>> {
        let positions = self.decoder.arch().max_positions;
        let mut room = Room { positions, ..Room::default() };
        let mut checked = false;
        for Work { task, records } in work {
            let answer = self.config.max_new_tokens(&task.name)?;
            // The last token of an answer needs no position: nothing follows it.
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

    /// Prefills the prompt of `record` once and lets every scheme answer it. Each row is handed to `sink` as it is made.
    /// Without schemes nothing is run.
    ///
    /// # Errors
    /// [`EvalError::Sample`], which names task and record, around whatever failed, `sink` included.
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

    /// `scheme`'s caches of a finished prefill.
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

    /// What the schemes of a group make of a prefilled prompt.
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
        // Reading the weights for one token occupies one core: schemes decode beside each other, each as it would alone.
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
            // transformers returns the stop token with the text: the newline stays in the prediction, the end-of-text token
            // is skipped as every special token is.
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

    /// The model's end tokens, and the last token of a newline for the task that stops there.
    fn stop_tokens(&self, task: &Task) -> Result<StopTokens> {
        let newline = if task.newline_stops { self.tokenizer.encode("\n", false)?.last().copied() } else { None };
        Ok(self.tokenizer.stop_tokens().and(newline))
    }
}
