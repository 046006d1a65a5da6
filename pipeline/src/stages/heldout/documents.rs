//! The long documents: which are read, how they are cut, and in which order they are scored.

use anyhow::{Result, bail};
use kvcsr_eval::heldout::{Cut, Repeat, Window, far};
use kvcsr_lab::documents::Side;
use kvcsr_model::Tokenizer;
use kvcsr_records::heldout::REPEAT;

use crate::config::Config;
use crate::config::sections::heldout::Settings;
use crate::stage::Run;
use crate::{documents, sources};

/// When a passage comes back, this many tokens of its beginning stand before the scored ones.
const CUE: usize = 32;

/// A document and its tokens.
struct Text {
    name: String,
    domain: String,
    side: Side,
    ids: Vec<u32>,
}

/// A document to score. All of its windows count as one unit.
pub struct Unit {
    /// Its domain, or [`REPEAT`].
    pub domain: String,
    /// Its windows, at least one.
    pub windows: Vec<Window>,
    /// Whether decoding is timed on it: true for the first of its domain.
    pub timed: bool,
}

/// How documents are cut for contexts of at most `context` tokens.
pub fn cut(config: &Config, context: usize) -> Cut {
    let Settings { windows, scored, .. } = config.heldout;
    Cut { context, skip: far::RECENT, scored, windows, seed: config.seed }
}

/// The documents of the profile's domains.
pub struct Texts(Vec<Text>);

impl Texts {
    /// Fetches the documents that are missing, and reads all of them.
    pub fn read(run: &Run, tokenizer: &Tokenizer) -> Result<Self> {
        let domains = &run.config.heldout.domains;
        sources::fetch(&documents::sources(&run.paths.root, domains)?, &run.paths)?;
        let mut texts = Vec::new();
        for collection in documents::collections(&run.paths.root, domains)? {
            for document in collection.documents(&run.paths.cache)? {
                let ids = tokenizer.encode(&document.text, false)?;
                texts.push(Text { name: document.name, domain: document.domain, side: collection.side, ids });
            }
        }
        Ok(Self(texts))
    }

    fn of(&self, side: Side) -> impl Iterator<Item = &Text> {
        self.0.iter().filter(move |text| text.side == side)
    }

    /// The windows that the threshold of far tokens is chosen on.
    pub fn threshold_windows(&self, run: &Run, context: usize) -> Vec<Window> {
        let cut = cut(&run.config, context);
        self.of(Side::Threshold).flat_map(|text| cut.windows(&text.name, &text.ids)).collect()
    }

    /// What is scored: at most `documents` of each domain that are long enough, after `heldout.skip` of them, and the passages
    /// that come back. The domains take turns, so that a run that was stopped has scored about equally many of each.
    pub fn units(&self, config: &Config, context: usize, documents: usize) -> Result<Vec<Unit>> {
        let Settings { domains, skip, .. } = &config.heldout;
        let cut = cut(config, context);
        let mut by_domain: Vec<Vec<Unit>> = Vec::new();
        for domain in domains {
            let own = self.of(Side::Scored).filter(|text| text.domain == *domain);
            let windows = own.map(|text| cut.windows(&text.name, &text.ids)).filter(|windows| !windows.is_empty());
            let units = windows.skip(*skip).take(documents).enumerate();
            by_domain
                .push(units.map(|(at, windows)| Unit { domain: domain.clone(), windows, timed: at == 0 }).collect());
        }
        if let Some(at) = by_domain.iter().position(Vec::is_empty) {
            bail!(
                "domain `{}` has no more than heldout.skip = {skip} documents that are long enough for a context of {context} tokens",
                domains[at]
            );
        }
        by_domain.push(self.repeats(context, config));
        let longest = by_domain.iter().map(Vec::len).max().unwrap_or(0);
        let mut queues: Vec<_> = by_domain.into_iter().map(Vec::into_iter).collect();
        Ok((0..longest).flat_map(|_| queues.iter_mut().filter_map(Iterator::next).collect::<Vec<_>>()).collect())
    }

    /// Passages that come back, each after the beginning of a document of another domain.
    fn repeats(&self, context: usize, config: &Config) -> Vec<Unit> {
        let Settings { skip, scored, repeats: count, .. } = config.heldout;
        let passage = scored + CUE + 1;
        let Some(between) = context.checked_sub(passage + CUE).filter(|between| *between > 0) else {
            return Vec::new();
        };
        let repeat = Repeat { passage, between, cue: CUE, seed: config.seed };
        let texts: Vec<&Text> = self.of(Side::Scored).collect();
        // The domains take turns, so that even a few passages come from all of them.
        let mut order: Vec<&Text> = texts.clone();
        let rank = |text: &Text| texts.iter().filter(|t| t.domain == text.domain).position(|t| t.name == text.name);
        order.retain(|text| rank(text).is_some_and(|rank| rank >= skip));
        order.sort_by_key(|text| rank(text));
        // The text in between is of another domain, each time another document. If there is only one domain, it is another
        // document of it.
        let other = |at: usize, text: &Text| {
            let all = || texts.iter().cycle().skip(texts.len() / 2 + at).take(texts.len()).copied();
            let far = all().find(|other| other.domain != text.domain);
            far.or_else(|| all().find(|other| other.name != text.name))
        };
        let windows = order.iter().enumerate().filter_map(|(at, text)| {
            repeat.window(&format!("{REPEAT}/{}", text.name), &text.ids, &other(at, text)?.ids)
        });
        let unit = |window| Unit { domain: REPEAT.to_owned(), windows: vec![window], timed: false };
        windows.take(count).map(unit).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::tests::defaults;

    fn texts(count: usize) -> Texts {
        let text = |(domain, at): (&str, usize)| Text {
            name: format!("{domain}-{at}"),
            domain: domain.to_owned(),
            side: Side::Scored,
            ids: (0..3000).collect(),
        };
        Texts(
            ["paper", "play"].into_iter().flat_map(|domain| (0..count).map(move |at| (domain, at))).map(text).collect(),
        )
    }

    #[test]
    fn documents_on_which_choices_were_made_are_left_out() {
        let mut config = defaults();
        config.heldout.domains = vec!["paper".to_owned(), "play".to_owned()];
        (config.heldout.skip, config.heldout.repeats) = (2, 1);
        let units = texts(4).units(&config, 1024, 1).unwrap();
        let found: Vec<(&str, &str, bool)> =
            units.iter().map(|unit| (&*unit.domain, &*unit.windows[0].document, unit.timed)).collect();
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].1.contains("paper-2") && found[0].2, "{found:?}");
        assert!(found[1].1.contains("play-2") && found[1].2, "{found:?}");
        assert!(found[2].0 == REPEAT && found[2].1.contains("paper-2"), "{found:?}");
        let error = texts(2).units(&config, 1024, 1).err().unwrap().to_string();
        assert!(error.contains("heldout.skip = 2"), "{error}");
    }
}
