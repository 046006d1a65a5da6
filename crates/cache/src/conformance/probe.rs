//! One scheme under test. Each check is a function of the shapes.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::inputs::{Inputs, MAX_POSITIONS, finite, largest_difference, noise, tensor};
use super::{Promises, Setting, Violation};
use crate::coded::TILE;
use crate::{AttendCx, CacheError, LayerCache, Padding, Pattern, PrefillSnapshot, Reach, Rotary, Scheme};

/// Why a check failed: the scheme returned an error where it must not, or its result was wrong.
enum Failure {
    Cache(CacheError),
    Broken(String),
}

impl<E: Into<CacheError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Cache(error.into())
    }
}

fn broken<T>(reason: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Broken(reason.into()))
}

fn ensure(holds: bool, reason: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { broken(reason()) }
}

/// Tokens that a layer with a sliding window may hold in addition to the tokens in its window: coded tokens that wait
/// to be dropped together, the method's own buffer, and memory reserved in advance.
const ROOM: usize = 4 * TILE;

/// One scheme at one setting.
pub struct Probe<'s> {
    scheme: &'s dyn Scheme,
    promises: Promises,
    setting: Setting,
    reach: Reach,
    rotary: Rotary,
    device: Device,
}

impl<'s> Probe<'s> {
    /// A probe for a scheme that was built for the geometry of the setting.
    ///
    /// # Errors
    /// If the rotary tables cannot be made.
    pub fn new(scheme: &'s dyn Scheme, promises: Promises, setting: Setting) -> Result<Self, CacheError> {
        let device = Device::Cpu;
        let rotary = Rotary::new(setting.head_dim, 10_000.0, MAX_POSITIONS, &device)?;
        Ok(Self { scheme, promises, setting, reach: Reach::Full, rotary, device })
    }

    /// The same probe with queries, keys and values on a device, as from a model on that device.
    ///
    /// # Errors
    /// If the rotary tables cannot be made there.
    pub fn on(self, device: &Device) -> Result<Self, CacheError> {
        let rotary = Rotary::new(self.setting.head_dim, 10_000.0, MAX_POSITIONS, device)?.with_reach(self.reach);
        Ok(Self { rotary, device: device.clone(), ..self })
    }

    fn inputs(&self, tokens: usize) -> Result<Inputs, CacheError> {
        Inputs::random(self.setting, tokens)?.on(&self.device)
    }

    /// The same probe for a layer whose tokens see only as far back as `reach`.
    pub fn with_reach(self, reach: Reach) -> Self {
        Self { reach, rotary: self.rotary.with_reach(reach), ..self }
    }

    /// The shapes at which the probe runs.
    pub fn setting(&self) -> Setting {
        self.setting
    }

    fn judged(&self, result: Result<(), Failure>) -> Result<(), Violation> {
        let reason = match result {
            Ok(()) => return Ok(()),
            Err(Failure::Cache(error)) => format!("an error where none may be: {error}"),
            Err(Failure::Broken(reason)) => reason,
        };
        Err(Violation { scheme: self.scheme.name().to_owned(), setting: self.setting, reason })
    }

    fn feed(&self, cache: &mut dyn LayerCache, x: &Inputs, range: Range<usize>) -> Result<Tensor, CacheError> {
        x.feed(cache, &self.rotary, Pattern { reach: self.reach, ..Pattern::default() }, range)
    }

    /// Feeds the tokens between the cuts, one call for each pair of cuts.
    fn feed_cuts(&self, cache: &mut dyn LayerCache, x: &Inputs, cuts: &[usize]) -> Result<Tensor, CacheError> {
        let parts = cuts.windows(2).map(|w| self.feed(cache, x, w[0]..w[1])).collect::<Result<Vec<_>, _>>()?;
        Ok(Tensor::cat(&parts, 2)?)
    }

    fn near(&self, a: &Tensor, b: &Tensor, most: f32, what: &str) -> Result<(), Failure> {
        let off = largest_difference(a, b)?;
        ensure(off <= most, || format!("{what} differ by {off}, where {most} is allowed"))
    }

    /// Checks that tokens fed in pieces attend as in one call. The pieces end at `cuts`, which run from 0 to the number
    /// of tokens. Also checks that [`LayerCache::clear`] forgets everything.
    ///
    /// # Errors
    /// If they do not.
    pub fn pieces(&self, cuts: &[usize]) -> Result<(), Violation> {
        self.judged(self.pieces_of(cuts))
    }

    fn pieces_of(&self, cuts: &[usize]) -> Result<(), Failure> {
        if self.promises.first_call_is_the_prompt {
            return Ok(());
        }
        let Setting { batch, heads, head_dim, .. } = self.setting;
        let tokens = cuts.last().copied().unwrap_or(0);
        let x = self.inputs(tokens)?;
        let mut cache = self.scheme.empty(0)?;
        let whole = self.feed(cache.as_mut(), &x, 0..tokens)?;
        ensure(whole.dims() == [batch, heads, tokens, head_dim], || {
            format!("attend returned {:?} instead of {:?}", whole.dims(), [batch, heads, tokens, head_dim])
        })?;
        ensure(cache.len() == tokens, || format!("len() is {} after {tokens} tokens", cache.len()))?;
        ensure(finite(&whole)?, || "attend returned a number that is not finite".into())?;
        cache.clear();
        ensure(cache.is_empty(), || format!("len() is {} after clear()", cache.len()))?;
        let pieces = self.feed_cuts(cache.as_mut(), &x, cuts)?;
        self.near(&whole, &pieces, self.promises.rounding, "tokens in one call and in pieces")
    }

    /// Checks that, after a prefill of `prompt` tokens was taken over, the tokens that follow attend in pieces as in
    /// one call. `cuts` count from the end of the prompt. Each list begins at 0 and ends at the same number of tokens.
    ///
    /// # Errors
    /// If they do not.
    pub fn pieces_after_prefill(&self, prompt: usize, cuts: &[&[usize]]) -> Result<(), Violation> {
        self.judged(self.pieces_after(prompt, cuts))
    }

    fn pieces_after(&self, prompt: usize, cuts: &[&[usize]]) -> Result<(), Failure> {
        let tokens = cuts.iter().filter_map(|cuts| cuts.last()).max().copied().unwrap_or(0);
        let x = self.inputs(prompt + tokens)?;
        let Inputs { k, v, .. } = x.tokens(0..prompt)?;
        let run = |cuts: &[usize]| {
            let mut cache = self.scheme.after_prefill(0, &k, &v, &self.rotary)?;
            let cuts: Vec<usize> = cuts.iter().map(|cut| prompt + cut).collect();
            self.feed_cuts(cache.as_mut(), &x, &cuts)
        };
        let whole = run(&[0, tokens])?;
        for cuts in cuts {
            self.near(&whole, &run(cuts)?, self.promises.prefill_rounding, "after a prefill, one call and pieces")?;
        }
        Ok(())
    }

    /// Checks that a prefill is taken over: its tokens are counted and take bytes, and the tokens decoded after it get
    /// finite outputs. If the scheme promises it, these outputs must equal those after decoding the same tokens one by
    /// one.
    ///
    /// # Errors
    /// If one of these is not so.
    pub fn takes_over(&self, prompt: usize) -> Result<(), Violation> {
        self.judged(self.takes(prompt))
    }

    fn takes(&self, prompt: usize) -> Result<(), Failure> {
        let x = self.inputs(prompt + 2)?;
        let Inputs { k, v, .. } = x.tokens(0..prompt)?;
        let mut taken = self.scheme.after_prefill(0, &k, &v, &self.rotary)?;
        ensure(taken.len() == prompt, || format!("len() is {} after a prefill of {prompt} tokens", taken.len()))?;
        ensure(taken.footprint().total() > 0, || format!("footprint() is 0 bytes for {prompt} tokens"))?;
        let mut fed = None;
        if self.promises.prefill_as_decoded {
            let mut cache = self.scheme.empty(0)?;
            self.feed(cache.as_mut(), &x, 0..prompt)?;
            fed = Some(cache);
        }
        for at in prompt..prompt + 2 {
            let out = self.feed(taken.as_mut(), &x, at..at + 1)?;
            ensure(finite(&out)?, || "attend returned a number that is not finite after a prefill".into())?;
            if let Some(fed) = &mut fed {
                let other = self.feed(fed.as_mut(), &x, at..at + 1)?;
                self.near(&out, &other, self.promises.rounding, "a prefill taken over and the same tokens decoded")?;
            }
        }
        ensure(taken.len() == prompt + 2, || format!("len() is {}, not {}", taken.len(), prompt + 2))
    }

    /// Checks that two forks of one prefill do not affect each other. The scheme must be built for two layers.
    ///
    /// # Errors
    /// If they do.
    pub fn forks(&self, prompt: usize) -> Result<(), Violation> {
        self.judged(self.forked(prompt))
    }

    fn forked(&self, prompt: usize) -> Result<(), Failure> {
        let x = self.inputs(prompt + 3)?;
        let Inputs { k, v, .. } = x.tokens(0..prompt)?;
        let last_logits = Tensor::zeros((1, 4), DType::F32, &Device::Cpu)?;
        let snapshot =
            PrefillSnapshot { keys: vec![k.clone(), v.clone()], values: vec![v, k], queries: Vec::new(), last_logits };
        let fork = || snapshot.fork(self.scheme, &self.rotary);
        let (mut idle, mut busy, mut alone) = (fork()?, fork()?, fork()?);
        ensure(idle.len() == 2, || format!("{} caches for 2 layers", idle.len()))?;
        self.feed_cuts(busy[0].as_mut(), &x, &[prompt, prompt + 1, prompt + 3])?;
        let lengths = [idle[0].len(), busy[0].len(), busy[1].len()];
        ensure(lengths == [prompt, prompt + 3, prompt], || format!("a fork changed another: lengths {lengths:?}"))?;
        let beside = self.feed(idle[0].as_mut(), &x, prompt..prompt + 1)?;
        let alone = self.feed(alone[0].as_mut(), &x, prompt..prompt + 1)?;
        self.near(&alone, &beside, 0.0, "a fork alone and one beside another that was used")
    }

    /// Checks that the rows of a batch, padded at the front by `padding` tokens, attend as they do alone, in calls cut
    /// at `cuts`.
    ///
    /// # Errors
    /// If they do not.
    ///
    /// # Panics
    /// If `padding` has fewer entries than the setting has rows.
    pub fn padded(&self, padding: &[usize], cuts: &[usize], reach: Reach) -> Result<(), Violation> {
        self.judged(self.uneven(padding, cuts, reach))
    }

    fn uneven(&self, padding: &[usize], cuts: &[usize], reach: Reach) -> Result<(), Failure> {
        let Some(most) = self.promises.padded_rounding.filter(|_| !self.promises.first_call_is_the_prompt) else {
            return Ok(());
        };
        let tokens = cuts.last().copied().unwrap_or(0);
        let x = self.inputs(tokens)?;
        let pattern = |padding| Pattern { reach, padding, ..Pattern::default() };
        let mut cache = self.scheme.empty(0)?;
        let feed = |w: &[usize]| x.feed(cache.as_mut(), &self.rotary, pattern(Padding::Left(padding)), w[0]..w[1]);
        let pieces = cuts.windows(2).map(feed).collect::<Result<Vec<_>, _>>()?;
        let together = Tensor::cat(&pieces, 2)?;
        ensure(finite(&together)?, || "attend returned a number that is not finite for padded rows".into())?;
        for (row, &from) in padding.iter().enumerate() {
            let own = x.rows(row..row + 1)?.tokens(from..tokens)?;
            let mut cache = self.scheme.empty(0)?;
            let alone = own.feed(cache.as_mut(), &self.rotary, pattern(Padding::None), 0..tokens - from)?;
            let padded = together.narrow(0, row, 1)?.narrow(2, from, tokens - from)?;
            self.near(&padded, &alone, most, &format!("row {row}, padded by {from}, and the same row alone"))?;
        }
        Ok(())
    }

    /// Checks that a cache of `tokens` tokens is unchanged after an error. The errors are: NaN keys (if they are
    /// refused), a wrong position, a rotary table that is too short, a wrong number of heads and, if it is refused,
    /// padding that changes.
    ///
    /// # Errors
    /// If the cache changed, or if an error is not the one that names the problem.
    pub fn errors(&self, tokens: usize) -> Result<(), Violation> {
        self.judged(self.after_errors(tokens))
    }

    fn after_errors(&self, tokens: usize) -> Result<(), Failure> {
        let Setting { batch, kv_heads, head_dim, .. } = self.setting;
        let x = self.inputs(tokens + 1)?;
        let build = || -> Result<Box<dyn LayerCache>, CacheError> {
            let mut cache = self.scheme.empty(0)?;
            self.feed(cache.as_mut(), &x, 0..tokens)?;
            Ok(cache)
        };
        let mut cache = build()?;
        let bytes = cache.footprint();
        let Inputs { q, k, v } = x.tokens(tokens..tokens + 1)?;
        let short = Rotary::new(head_dim, 1e4, tokens, &self.device)?;
        let nan = (&k * f64::NAN)?;
        let other_heads = tensor(4, (batch, kv_heads + 1, 1, head_dim))?.to_device(&self.device)?;
        let shifted = vec![3; batch];
        let cx = |start, rotary, padding| {
            let pattern = Pattern { reach: self.reach, padding, ..Pattern::default() };
            AttendCx { start, rotary, scale: 0.125, pattern }
        };
        let plain = cx(tokens, &self.rotary, Padding::None);
        let refused = |what: &str, result: Result<Tensor, CacheError>, right: fn(&CacheError) -> bool| match result {
            Ok(_) => broken(format!("{what} was taken without an error")),
            Err(error) if !right(&error) => broken(format!("{what} gave another error: {error}")),
            Err(_) => Ok(()),
        };
        if self.promises.refuses_not_finite {
            let error = cache.attend(&q, &nan, &v, &plain);
            ensure(matches!(error, Err(CacheError::NotFinite { token, .. }) if token == tokens), || {
                format!("a NaN key at token {tokens} must give CacheError::NotFinite of that token, found {error:?}")
            })?;
        }
        let position = cache.attend(&q, &k, &v, &cx(7, &self.rotary, Padding::None));
        refused("a position that does not continue what is held", position, |e| {
            matches!(e, CacheError::Position { .. })
        })?;
        let beyond = cache.attend(&q, &k, &v, &cx(tokens, &short, Padding::None));
        refused("a token beyond the rotary table", beyond, |e| matches!(e, CacheError::ContextLength { .. }))?;
        let more = cache.attend(&q, &other_heads, &other_heads, &plain);
        refused("another number of key heads than held", more, |_| true)?;
        if kv_heads > 1 {
            let odd = cache.attend(&other_heads, &k, &v, &plain);
            refused("a number of query heads that the key heads do not divide", odd, |_| true)?;
        }
        if self.promises.refuses_changed_padding {
            let changed = cache.attend(&q, &k, &v, &cx(tokens, &self.rotary, Padding::Left(&shifted)));
            refused("padding that changed", changed, |e| matches!(e, CacheError::Padding { .. }))?;
        }
        ensure(cache.len() == tokens, || format!("len() is {} after errors, {tokens} before", cache.len()))?;
        ensure(cache.footprint() == bytes, || {
            format!("footprint() is {:?} after errors, {bytes:?} before", cache.footprint())
        })?;
        let next = tokens..tokens + 1;
        let (after, fresh) = (self.feed(cache.as_mut(), &x, next.clone())?, self.feed(build()?.as_mut(), &x, next)?);
        self.near(&after, &fresh, 0.0, "after errors, and in a cache that saw none,")
    }

    /// Checks that bytes stop growing in a layer with a sliding window. `tokens` tokens, in calls of 37 or as a
    /// prefill, must never take more bytes than the window and `ROOM` tokens take in a layer that sees everything. The
    /// atoms that a sequence takes from its prompt, sampled or by the Guard, are not counted.
    ///
    /// # Errors
    /// If they take more.
    pub fn keeps_its_window(&self, tokens: usize) -> Result<(), Violation> {
        self.judged(self.bounded(tokens))
    }

    fn bounded(&self, tokens: usize) -> Result<(), Failure> {
        let Reach::Sliding(window) = self.reach else { return broken("a probe without a window") };
        let (x, few) = (self.inputs(tokens + 1)?, window + ROOM);
        // The largest number of bytes after any call, and the larger of the numbers after a prefill and after the token
        // behind it.
        let bytes = |reach: Reach, tokens: usize| -> Result<(usize, usize), CacheError> {
            let (pattern, rotary) = (Pattern { reach, ..Pattern::default() }, self.rotary.clone().with_reach(reach));
            let held = |cache: &dyn LayerCache| {
                let all = cache.footprint();
                all.total() - all.online_atoms - all.guard
            };
            let (mut cache, mut most) = (self.scheme.empty(0)?, 0);
            for from in (0..tokens).step_by(37) {
                x.feed(cache.as_mut(), &rotary, pattern, from..(from + 37).min(tokens))?;
                most = held(cache.as_ref()).max(most);
            }
            let Inputs { k, v, .. } = x.tokens(0..tokens)?;
            let mut taken = self.scheme.after_prefill(0, &k, &v, &rotary)?;
            let prompt = held(taken.as_ref());
            x.feed(taken.as_mut(), &rotary, pattern, tokens..tokens + 1)?;
            Ok((most, held(taken.as_ref()).max(prompt)))
        };
        let (fed, taken) = bytes(self.reach, tokens)?;
        let (most_fed, most_taken) = bytes(Reach::Full, few)?;
        ensure(fed <= most_fed, || {
            format!(
                "{fed} bytes for {tokens} tokens of which {window} are seen, {most_fed} for {few} tokens that are all seen"
            )
        })?;
        ensure(taken <= most_taken, || {
            format!(
                "{taken} bytes after a prefill of {tokens} tokens of which {window} are seen, {most_taken} after one of {few} that are all seen"
            )
        })
    }

    /// Checks that vectors of any size, from 0 to 1e9, are stored and attended to after a prefill of `prompt` tokens.
    /// The outputs must be finite.
    ///
    /// # Errors
    /// If they are not.
    pub fn any_size(&self, prompt: usize) -> Result<(), Violation> {
        self.judged(self.sizes(prompt))
    }

    fn sizes(&self, prompt: usize) -> Result<(), Failure> {
        let Setting { batch, kv_heads, head_dim, .. } = self.setting;
        let tokens = prompt + 10;
        let random = self.inputs(tokens)?;
        let mut wild = noise(9, batch * kv_heads * tokens * head_dim);
        for (at, x) in wild.iter_mut().enumerate() {
            *x *= [0.0, 1e-7, 1.0, 6e4, 1e9][at / head_dim % 5];
        }
        let wild = Tensor::from_vec(wild, random.k.shape(), &self.device)?;
        let q = (&random.q * 1e-4)?;
        for vectors in [wild.zeros_like()?, wild] {
            let x = Inputs { q: q.clone(), k: vectors.clone(), v: vectors };
            let Inputs { k, v, .. } = x.tokens(0..prompt)?;
            let mut cache = self.scheme.after_prefill(0, &k, &v, &self.rotary)?;
            let out = self.feed(cache.as_mut(), &x, prompt..tokens)?;
            ensure(finite(&out)?, || {
                "attend returned a number that is not finite for very large, tiny or zero vectors".into()
            })?;
        }
        Ok(())
    }
}
