//! Tests the runner on a small random model: one row per scheme, truncation, limits, and errors that name the record.

#![allow(clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{Device, Tensor};
use kvcsr_cache::{AttendCx, CacheError, LayerCache, Rotary, Scheme, SchemeContext, registry};
use kvcsr_codec::{BitsPerChannel, Footprint};
use kvcsr_eval::longbench::config::Config;
use kvcsr_eval::longbench::metrics::{CodeSim, MetricOptions, Recursion};
use kvcsr_eval::longbench::predictions::{PredictionRow, Predictions};
use kvcsr_eval::longbench::prompt::Chat;
use kvcsr_eval::longbench::record::Record;
use kvcsr_eval::longbench::runner::{RunOptions, Runner};
use kvcsr_eval::longbench::tasks::{Language, TaskTable};
use kvcsr_fixtures::{tiny_arch, uniform_weights};
use kvcsr_model::{Arch, Choice, Decoder, Limits, StopTokens, TensorMap, Tokenizer};

const VOCAB: usize = 32;
const OPTIONS: RunOptions = RunOptions {
    max_prompt_tokens: 16,
    chat: Chat::None,
    prefill_chunk: 5,
    metric: MetricOptions { code_sim: CodeSim::Difflib, recursion: Recursion::AsPython },
};

struct Fixture {
    decoder: Decoder,
    tokenizer: Tokenizer,
    config: Config,
}

fn fixture() -> Fixture {
    fixture_of(arch())
}

fn arch() -> Arch {
    Arch { hidden: 16, layers: 2, head_dim: 4, intermediate: 32, vocab: VOCAB, ..tiny_arch() }
}

fn fixture_of(arch: Arch) -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("dataset2prompt.json", r#"{"qasper": "{context} {input}"}"#);
    write("dataset2maxlen.json", r#"{"qasper": 6}"#);
    write("model2maxlen.json", "{}");
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        ('a'..='z').zip(0..).map(|(letter, id)| (letter.to_string(), id.into())).collect();
    for (token, id) in [(" ", 26), ("\n", 27), (".", 28), ("0", 29), ("1", 30), ("</s>", 31)] {
        vocab.insert(token.to_owned(), id.into());
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "added_tokens": [{"id": 31, "content": "</s>", "special": true, "single_word": false, "lstrip": false,
                          "rstrip": false, "normalized": false}],
        "model": {"type": "BPE", "vocab": vocab, "merges": []}
    });
    write("tokenizer.json", &tokenizer.to_string());
    write("tokenizer_config.json", r#"{"eos_token": "</s>"}"#);
    Fixture {
        decoder: Decoder::new(arch.clone(), &TensorMap(uniform_weights(&arch, 1.0)), &Device::Cpu).unwrap(),
        tokenizer: Tokenizer::from_hf_folder(folder.path()).unwrap(),
        config: Config::load(folder.path()).unwrap(),
    }
}

fn record(context: &str) -> Record {
    Record {
        input: "why".to_owned(),
        context: context.to_owned(),
        answers: vec!["x".to_owned()],
        length: 3,
        dataset: "qasper".to_owned(),
        language: Language::En,
        all_classes: None,
        id: "r-0".to_owned(),
    }
}

fn schemes(decoder: &Decoder) -> Vec<Box<dyn Scheme>> {
    let context = SchemeContext::new(decoder.geometry());
    ["dense", "dense-f16"].iter().map(|name| registry::build(name, &context).unwrap()).collect()
}

#[test]
fn every_scheme_answers_the_same_prompt() {
    let Fixture { decoder, tokenizer, config } = fixture();
    let runner = Runner::new(&decoder, &tokenizer, &config, OPTIONS);
    let task = TaskTable::embedded().get("qasper").unwrap();
    let schemes = schemes(&decoder);
    let schemes: Vec<&dyn Scheme> = schemes.iter().map(AsRef::as_ref).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut predictions = Predictions::open(folder.path()).unwrap();
    let record = record("the quick brown fox jumps over");
    runner.run(task, &record, &schemes, &mut |row| predictions.append(row).map(drop)).unwrap();

    let rows = predictions.rows();
    assert_eq!(rows.iter().map(|row| row.label()).collect::<Vec<_>>(), ["dense", "dense-f16"]);
    for row in rows {
        // "the quick brown fox jumps over why" has 34 letters. 8 are kept at each end.
        assert_eq!((row.tokens_before, row.tokens), (34, 16));
        assert!(row.generated <= 6 && row.pred.chars().count() <= row.generated, "{row:?}");
        assert_eq!((row.task.as_str(), row.id.as_str(), row.length), ("qasper", "r-0", 3));
    }
    assert!(rows[0].measured_bits >= 32.0, "every allocated byte counts: {}", rows[0].measured_bits);
    assert_eq!(rows[1].measured_bits, rows[0].measured_bits / 2.0);
    let ids = runner.prompt(task, &record).unwrap().ids;
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), "the quicover why");
    let snapshot = decoder.prefill(&ids, 16).unwrap();
    let logits = snapshot.last_logits.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
    let best = (0..VOCAB).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32;
    assert!(
        rows[0].pred.starts_with(&tokenizer.decode(&[best], true).unwrap()),
        "the first token comes from the prefill"
    );
}

#[test]
fn without_schemes_nothing_is_run() {
    let Fixture { decoder, tokenizer, config } = fixture();
    let runner = Runner::new(&decoder, &tokenizer, &config, OPTIONS);
    let trec = TaskTable::embedded().get("trec").unwrap();
    runner.run(trec, &record("a"), &[], &mut |_| unreachable!()).unwrap();
}

#[test]
fn errors_name_task_and_record() {
    let Fixture { decoder, tokenizer, config } = fixture();
    let task = TaskTable::embedded().get("qasper").unwrap();
    let schemes = schemes(&decoder);
    let schemes: Vec<&dyn Scheme> = schemes.iter().map(AsRef::as_ref).collect();
    let options = RunOptions { max_prompt_tokens: 100, ..OPTIONS };
    let runner = Runner::new(&decoder, &tokenizer, &config, options);
    let long = record(&"a".repeat(70));
    let error = runner.run(task, &long, &schemes, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.starts_with("qasper, record r-0: ") && error.contains("at most 64 positions"), "{error}");
    let trec = TaskTable::embedded().get("trec").unwrap();
    let error = runner.run(trec, &record("a"), &schemes, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("dataset2prompt.json"), "{error}");
}

fn answers(runner: &Runner<'_>, record: &Record, schemes: &[&dyn Scheme]) -> Vec<PredictionRow> {
    let mut rows = Vec::new();
    let mut keep = |row| {
        rows.push(row);
        Ok(())
    };
    runner.run(TaskTable::embedded().get("qasper").unwrap(), record, schemes, &mut keep).unwrap();
    rows
}

#[test]
fn an_answer_does_not_depend_on_the_schemes_beside_it() {
    let Fixture { decoder, tokenizer, config } = fixture();
    let options = RunOptions { max_prompt_tokens: 60, ..OPTIONS };
    let runner = Runner::new(&decoder, &tokenizer, &config, options);
    let schemes = schemes(&decoder);
    let schemes: Vec<&dyn Scheme> = schemes.iter().map(AsRef::as_ref).collect();
    for context in ["the quick brown fox", "jumps over the lazy dog", "abc", "zz top of the pops"] {
        let record = record(context);
        let together = answers(&runner, &record, &schemes);
        for (scheme, row) in schemes.iter().zip(&together) {
            let alone = answers(&runner, &record, &[*scheme]).remove(0);
            assert_eq!((&alone.pred, alone.generated), (&row.pred, row.generated), "{context} {}", row.scheme);
        }
        // The prediction is the same as that of a separate generation.
        let ids = runner.prompt(TaskTable::embedded().get("qasper").unwrap(), &record).unwrap().ids;
        let snapshot = decoder.prefill(&ids, 16).unwrap();
        let mut caches = snapshot.fork(schemes[0], decoder.rotary()).unwrap();
        let limits = Limits { max_new_tokens: 6, min_new_tokens: 0, stop: &StopTokens::new([31]) };
        let go_on = |_| ControlFlow::Continue(());
        let generated = decoder.generate(&snapshot.last_logits, &mut caches, Choice::Greedy, limits, go_on).unwrap();
        assert_eq!(together[0].pred, tokenizer.decode(&generated.ids, true).unwrap());
    }
}

/// Uncompressed caches that count the bytes of the caches in existence.
struct Counted {
    dense: Box<dyn Scheme>,
    alive: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct CountedCache {
    cache: Box<dyn LayerCache>,
    bytes: usize,
    alive: Arc<AtomicUsize>,
}

impl Scheme for Counted {
    fn name(&self) -> &str {
        self.dense.name()
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        self.dense.empty(layer)
    }

    fn after_prefill(
        &self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
        rotary: &Rotary,
    ) -> Result<Box<dyn LayerCache>, CacheError> {
        let cache = self.dense.after_prefill(layer, k, v, rotary)?;
        let bytes = cache.footprint().total();
        let alive = self.alive.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.most.fetch_max(alive, Ordering::SeqCst);
        Ok(Box::new(CountedCache { cache, bytes, alive: self.alive.clone() }))
    }

    fn nominal_bits(&self) -> BitsPerChannel {
        self.dense.nominal_bits()
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}

impl LayerCache for CountedCache {
    fn attend(&mut self, q: &Tensor, k: &Tensor, v: &Tensor, cx: &AttendCx<'_>) -> Result<Tensor, CacheError> {
        self.cache.attend(q, k, v, cx)
    }

    fn absorb(&mut self, k: &Tensor, v: &Tensor, rotary: &Rotary) -> Result<(), CacheError> {
        self.cache.absorb(k, v, rotary)
    }

    fn len(&self) -> usize {
        self.cache.len()
    }

    fn footprint(&self) -> Footprint {
        self.cache.footprint()
    }

    fn clear(&mut self) {
        self.cache.clear();
    }
}

impl Drop for CountedCache {
    fn drop(&mut self) {
        self.alive.fetch_sub(self.bytes, Ordering::SeqCst);
    }
}

#[test]
fn ten_schemes_on_thirty_thousand_tokens_do_not_hold_ten_caches() {
    const TOKENS: usize = 30_000;
    let small = Arch { hidden: 4, layers: 1, heads: 1, kv_heads: 1, intermediate: 4, max_positions: 30_100, ..arch() };
    let Fixture { decoder, tokenizer, config } = fixture_of(small);
    let options = RunOptions { max_prompt_tokens: TOKENS, prefill_chunk: 512, ..OPTIONS };
    let runner = Runner::new(&decoder, &tokenizer, &config, options);
    let (alive, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted: Vec<Counted> = (0..10)
        .map(|_| {
            let dense = registry::build("dense", &SchemeContext::new(decoder.geometry())).unwrap();
            Counted { dense, alive: alive.clone(), most: most.clone() }
        })
        .collect();
    let schemes: Vec<&dyn Scheme> = counted.iter().map(|scheme| scheme as &dyn Scheme).collect();
    let rows = answers(&runner, &record(&"abcde".repeat(TOKENS / 5)), &schemes);
    assert_eq!((rows.len(), rows[0].tokens), (10, TOKENS));
    let one = TOKENS * 2 * 4 * 4;
    let most = most.load(Ordering::SeqCst);
    assert!(most >= one, "{most} bytes were counted, one cache has {one}");
    assert!(most <= 3 * one + one / 10, "{most} bytes at once, one cache has {one}");
    assert_eq!(alive.load(Ordering::SeqCst), 0);
}
