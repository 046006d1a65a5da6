//! generate: continues a prompt with a compressed cache, and prints the ledger of that cache.

use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use kvcsr_cache::schemes::csr_plus::rest::PromptFile;
use kvcsr_cache::{Geometry, LayerCache, Scheme, SchemeContext, registry};
use kvcsr_codec::{DictionarySet, Footprint, measured_bits};
use kvcsr_model::load::text::utf8;
use kvcsr_model::{Arch, Choice, CompressedPrompt, Decoder, Finish, Limits, Message, Sampler, TextStream, Tokenizer};

use super::kept_prompt;
use crate::cli::GenerateArgs;
use crate::machine::peak_memory;
use crate::models::Opened;
use crate::paths::Paths;
use crate::stage::{Artefact, Output, makers};
use crate::stages::inputs::PREFILL_CHUNK;
use crate::stages::provenance::{Owner, covers};
use crate::stages::{all, artefacts};

/// Streams the continuation to standard output, then prints the ledger.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let model = args.model.open()?;
    let tokenizer = model.tokenizer()?;
    let kept = args.load_cache.as_deref().map(PromptFile::open).transpose()?;
    let (from, text) = prompt(args)?;
    let mut prompt = if args.chat {
        let turn = Message { role: "user", content: &text };
        let template = model.chat_template()?.context("the model has no chat template: leave out --chat")?;
        tokenizer.encode(&template.render(&[turn], true)?, false)?
    } else {
        // Text that follows a kept prompt gets no token for the beginning of a text.
        tokenizer.encode(&text, kept.is_none())?
    };
    if let Some(file) = &kept {
        prompt.splice(..0, file.ids().iter().copied());
    }
    fits(&model.arch()?, &tokenizer, &prompt, args.max_new).context(from)?;
    if let Some(told) = model.unapplied() {
        eprintln!("warning: {told}");
    }
    let decoder = model.decoder(&args.model.device, &args.model.dtype)?;
    let attention = args.model.attention.parse().map_err(|reason: String| anyhow!(reason))?;
    let cx = context(args, &model, decoder.geometry())?.with_attention(attention, decoder.device());
    let scheme = registry::build(&args.scheme, &cx)?;
    let started = Instant::now();
    let (logits, mut caches) = match &kept {
        Some(file) => kept_prompt::continued(file, &prompt, (&model, &args.profile), &decoder, scheme.as_ref(), &cx)?,
        None => match &args.save_cache {
            Some(path) => {
                let prefilled = decoder.prefill(&prompt, PREFILL_CHUNK)?;
                let told = kept_prompt::save(path, args.cache_bits, &prompt, &prefilled, (&model, &args.profile), &cx)?;
                eprintln!("{told}");
                let caches = prefilled.fork(scheme.as_ref(), decoder.rotary())?;
                (prefilled.last_logits, caches)
            }
            None => {
                let CompressedPrompt { caches, last_logits } =
                    decoder.prefill_compressed(&prompt, PREFILL_CHUNK, scheme.as_ref())?;
                (last_logits, caches)
            }
        },
    };
    let prefill = started.elapsed();

    let limits = Limits { max_new_tokens: args.max_new, min_new_tokens: 0, stop: tokenizer.stop_tokens() };
    let mut sampler = Sampler::new(args.seed, Some(args.temperature), args.top_p);
    let choice = if args.temperature > 0.0 { Choice::Sampled(&mut sampler) } else { Choice::Greedy };
    let mut stream = TextStream::new(&tokenizer, &args.stop);
    let mut out = std::io::stdout();
    let mut failed = Ok(());
    let started = Instant::now();
    let generated = decoder.generate(&logits, &mut caches, choice, limits, |id| {
        let shown = stream.push(id).map_err(anyhow::Error::from).and_then(|text| {
            out.write_all(text.as_bytes())?;
            Ok(out.flush()?)
        });
        match shown {
            Ok(()) if !stream.stopped() => ControlFlow::Continue(()),
            shown => {
                failed = shown;
                ControlFlow::Break(())
            }
        }
    })?;
    failed?;
    let decode = started.elapsed();
    writeln!(out, "{}\n", stream.finish()?)?;
    writeln!(
        out,
        "{} prompt tokens{} in {:.2} s, {} generated in {:.2} s; ended by {}",
        prompt.len(),
        kept.as_ref().map_or_else(String::new, |file| format!(" ({} of them restored)", file.header().tokens)),
        prefill.as_secs_f64(),
        generated.ids.len(),
        decode.as_secs_f64(),
        match generated.finish {
            Finish::Stop(id) => format!("token {id}"),
            Finish::Length => "--max-new".to_owned(),
            Finish::Context => "the end of the model's context".to_owned(),
            Finish::Caller => "--stop".to_owned(),
        }
    )?;
    for line in ledger(scheme.as_ref(), &caches, &decoder) {
        writeln!(out, "{line}")?;
    }
    if let Some(bytes) = peak_memory() {
        writeln!(out, "  program           {bytes} bytes at most, with the weights")?;
    }
    Ok(())
}

/// Where the text to continue comes from, in words, and the text.
fn prompt(args: &GenerateArgs) -> Result<(String, String)> {
    match (&args.prompt, &args.prompt_file) {
        (Some(dash), _) if dash == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("--prompt -: standard input")?;
            let text = utf8(bytes).map_err(|e| anyhow!("--prompt -: standard input is no text: {e}"))?;
            Ok(("--prompt -".to_owned(), text))
        }
        (Some(text), _) => Ok(("--prompt".to_owned(), text.clone())),
        (None, Some(path)) => {
            let from = format!("--prompt-file {}", path.display());
            let bytes = std::fs::read(path).with_context(|| from.clone())?;
            let text = utf8(bytes).map_err(|e| anyhow!("{from}: {e}"))?;
            Ok((from, text))
        }
        (None, None) if args.load_cache.is_some() => Ok(("--load-cache".to_owned(), String::new())),
        (None, None) => bail!("give --prompt TEXT, --prompt - or --prompt-file FILE"),
    }
}

/// Refuses a prompt that the model cannot hold, before anything is computed. Warns if it leaves too few positions for new tokens.
fn fits(arch: &Arch, tokenizer: &Tokenizer, prompt: &[u32], max_new: usize) -> Result<()> {
    if let Some((at, id)) = prompt.iter().enumerate().find(|(_, id)| **id as usize >= arch.vocab) {
        bail!(
            "token `{}` at index {at} has the id {id}, but the model's vocabulary has {} ids: the tokenizer's files do not \
             belong to these weights",
            tokenizer.token(*id).unwrap_or_default(),
            arch.vocab
        );
    }
    arch.check_prompt(prompt)?;
    // The last token needs no position: nothing follows it.
    if prompt.len() + max_new > arch.max_positions + 1 {
        eprintln!(
            "warning: {} prompt tokens and --max-new {max_new} are more than the model's {} positions: the text may end \
             early",
            prompt.len(),
            arch.max_positions
        );
    }
    Ok(())
}

/// The context that the scheme is built from, with the artefacts that exist. A scheme that needs more is an error when it is
/// built. A profile's dictionaries must belong to this model; for a file named on the command line, a mismatch is only a warning.
fn context(args: &GenerateArgs, model: &Opened, geometry: Geometry) -> Result<SchemeContext> {
    let mut names = vec![args.scheme.clone()];
    if args.save_cache.is_some() || args.load_cache.is_some() {
        names.push(kept_prompt::SCHEME.to_owned());
    }
    let names = &names[..];
    let context = SchemeContext::new(geometry);
    let makers = makers(all::ALL, names)?;
    let (paths, false) = (Paths::find(&args.profile).ok(), makers.is_empty()) else { return Ok(context) };
    let owner = paths.as_ref().map(|paths| Owner::opened(model, paths, geometry)).transpose()?;
    // Whether the output is a dictionary set of ours, which a file on the command line can replace.
    let trained = |output: &Output| matches!(output.artefact, Artefact::Dictionaries(_));
    match &args.dictionaries {
        Some(path) if makers.iter().any(|stage| stage.declaration().makes.iter().any(trained)) => {
            let set = DictionarySet::load(path)?;
            covers(&set, geometry, path)?;
            if let Some(problem) = owner.and_then(|owner| owner.others(&set)) {
                eprintln!("warning: {}: {problem}", path.display());
            }
            Ok(context.with_dictionaries(registry::DEFAULT_DICTIONARIES, set))
        }
        _ => match (paths, owner) {
            (Some(paths), Some(owner)) => {
                let (folder, plans) = (|stage: &str| paths.run.join(stage), paths.plans(&args.profile));
                artefacts::load(all::ALL, names, folder, &plans, &owner).with_context(|| {
                    format!("profile `{}` (others: --profile NAME, --dictionaries FILE)", args.profile)
                })
            }
            _ => Ok(context),
        },
    }
}

/// The bytes that the caches really take, and the nominal bits, which the paper counts.
fn ledger(scheme: &dyn Scheme, caches: &[Box<dyn LayerCache>], decoder: &Decoder) -> Vec<String> {
    let tokens = caches.first().map_or(0, |cache| cache.len());
    let footprint: Footprint = caches.iter().map(|cache| cache.footprint()).sum();
    let channels = decoder.channels(tokens);
    let (bits, half) = (measured_bits(footprint.total(), channels), 2 * channels);
    let mut lines = vec![
        format!("scheme {}: {tokens} tokens, {} layers", scheme.name(), caches.len()),
        format!("  bits per channel  {:.2} nominal, {:.2} measured (f16: 16)", scheme.nominal_bits().0, bits.0),
        format!(
            "  cache             {} bytes, {:.1} % of the {half} that f16 takes",
            footprint.total(),
            100.0 * footprint.total() as f64 / half.max(1) as f64
        ),
    ];
    let parts = footprint.parts().filter(|(_, bytes)| *bytes > 0);
    lines.extend(parts.map(|(part, bytes)| format!("    {part:<15} {bytes}")));
    lines.push(format!("  shared            {} bytes of dictionaries and tables", scheme.shared_bytes()));
    lines
}
