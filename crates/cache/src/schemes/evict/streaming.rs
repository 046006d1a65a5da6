//! `evict`: attention sinks and the most recent tokens are kept. All tokens between them are deleted (Xiao et al., ICLR
//! 2024).

use kvcsr_codec::BitsPerChannel;

use super::cache::{EvictingCache, Keep};
use crate::entry::{Entry, KeysCoded, Parameter};
use crate::family::{Family, Plan, Read};
use crate::name::SchemeName;
use crate::needs::Needs;
use crate::{CacheError, LayerCache, Scheme};

/// `evict`.
pub const FAMILY: Family = Family { entries: ENTRIES, read };

const ENTRIES: &[Entry] = &[Entry {
    pattern: "evict",
    examples: &["evict", "evict(sinks=4,recent=256)", "evict(sinks=2,recent=9)"],
    summary: "A control: the first and the last tokens in f16, all others deleted (StreamingLLM)",
    citation: "Xiao et al., Efficient Streaming Language Models with Attention Sinks, ICLR 2024",
    keys_coded: KeysCoded::AfterRope,
    parameters: &[
        Parameter { name: "sinks", default: "4", meaning: "first tokens kept in f16" },
        Parameter {
            name: "recent",
            default: "1020",
            meaning: "last tokens kept in f16, the one that attends among them",
        },
    ],
    prefill_as_decoded: true,
}];

fn read(name: &SchemeName<'_>) -> Read {
    if name.head != "evict" {
        return Ok(None);
    }
    name.no_artefacts()?;
    name.arguments.only(&["sinks", "recent"])?;
    let (sinks, recent) = (name.arguments.tokens("sinks", 4)?, name.arguments.tokens("recent", 1020)?);
    if recent == 0 {
        return Err("recent: a token attends to itself, so at least 1 is kept".to_owned());
    }
    if let Some(part) = name.parts.first() {
        return Err(format!("`evict` deletes tokens: `+{}` adds nothing", part.name));
    }
    Ok(Some(Plan::new(Needs::nothing(KeysCoded::AfterRope), move |binding| {
        let head_dim = binding.geometry().head_dim;
        Ok(Box::new(Streaming { name: binding.scheme.to_owned(), keep: Keep::Ends { sinks, recent }, head_dim }))
    })))
}

struct Streaming {
    name: String,
    keep: Keep,
    head_dim: usize,
}

impl Scheme for Streaming {
    fn name(&self) -> &str {
        &self.name
    }

    fn empty(&self, layer: usize) -> Result<Box<dyn LayerCache>, CacheError> {
        Ok(Box::new(EvictingCache::new(layer, self.keep, self.head_dim)))
    }

    /// For a token that is kept. How many tokens are kept depends on the text.
    fn nominal_bits(&self) -> BitsPerChannel {
        BitsPerChannel(16.0)
    }

    fn shared_bytes(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::conformance::{Inputs, Setting, largest_difference};
    use crate::{DenseScheme, Geometry, Pattern, Reach, Rotary, Scheme, SchemeContext, registry};
    use candle_core::{DType, Device};

    const SETTING: Setting = Setting { batch: 1, heads: 4, kv_heads: 2, head_dim: 32 };

    fn scheme(name: &str) -> Box<dyn Scheme> {
        registry::build(name, &SchemeContext::new(Geometry { layers: 1, kv_heads: 2, head_dim: 32 })).unwrap()
    }

    #[test]
    fn without_sinks_it_is_a_sliding_window_and_with_room_for_all_the_exact_cache() {
        let rotary = Rotary::new(32, 1e4, 256, &Device::Cpu).unwrap();
        let x = Inputs::random(SETTING, 150).unwrap();
        for (name, reach) in
            [("evict(sinks=0,recent=20)", Reach::Sliding(20)), ("evict(sinks=4,recent=150)", Reach::Full)]
        {
            let out = |scheme: &dyn Scheme, reach| {
                let mut cache = scheme.empty(0).unwrap();
                x.feed(cache.as_mut(), &rotary, Pattern { reach, ..Pattern::default() }, 0..150).unwrap()
            };
            let found = out(scheme(name).as_ref(), Reach::Full);
            let expected = out(&DenseScheme::new(DType::F16), reach);
            assert!(largest_difference(&found, &expected).unwrap() < 1e-5, "{name}");
        }
    }

    #[test]
    fn deleted_tokens_take_no_bytes() {
        let rotary = Rotary::new(32, 1e4, 1024, &Device::Cpu).unwrap();
        let x = Inputs::random(SETTING, 900).unwrap();
        let scheme = scheme("evict(sinks=4,recent=60)");
        let held = |tokens: usize| {
            let x = x.tokens(0..tokens).unwrap();
            let cache = scheme.after_prefill(0, &x.k, &x.v, &rotary).unwrap();
            assert_eq!(cache.len(), tokens);
            cache.footprint()
        };
        assert_eq!(held(100), held(900));
        // 64 tokens, 2 heads, keys and values, 32 channels of two bytes.
        assert_eq!(held(900).dense, 64 * 2 * 2 * 32 * 2);
        assert!(held(30).dense < held(900).dense);
    }

    #[test]
    fn after_a_prompt_a_layer_with_a_window_holds_no_more_than_that() {
        let rotary = Rotary::new(32, 1e4, 1024, &Device::Cpu).unwrap().with_reach(Reach::Sliding(50));
        let x = Inputs::random(SETTING, 900).unwrap();
        for (name, kept) in [("evict(sinks=4,recent=60)", 49), ("evict(sinks=4,recent=20)", 20)] {
            let cache = scheme(name).after_prefill(0, &x.k, &x.v, &rotary).unwrap();
            assert_eq!(cache.footprint().dense, kept * 2 * 2 * 32 * 2, "{name}");
        }
    }

    #[test]
    fn what_it_cannot_be_is_refused() {
        let cx = SchemeContext::new(Geometry { layers: 1, kv_heads: 2, head_dim: 32 });
        for (name, said) in
            [("evict(recent=0)", "at least 1"), ("evict+window", "adds nothing"), ("evict(most=3)", "most")]
        {
            let error = registry::build(name, &cx).err().unwrap().to_string();
            assert!(error.contains(said), "{name}: {error}");
        }
    }
}
