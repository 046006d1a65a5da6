//! Trials on the embedded model, if it has been fetched.
#![allow(clippy::unwrap_used)]

use kvcsr_cache::{SchemeContext, registry};
use kvcsr_codec::Kind;
use kvcsr_lab::{LabError, Model, Shown, continuations, trials};

const TEXT: &str = include_str!("../../../notebooks/a-text.txt");

#[test]
fn exact_rounded_and_untrained_caches_stand_in_their_order() {
    let model = match Model::embedded() {
        Err(LabError::NotFetched(file)) => {
            let why = format!("{} was not fetched (just fetch)", file.display());
            kvcsr_fixtures::skip("exact_rounded_and_untrained_caches_stand_in_their_order", &why);
            return;
        }
        model => model.unwrap(),
    };
    let prompt = model.prompt(TEXT, 24).unwrap();
    assert!(prompt.tokens() > 250 && prompt.pieces.concat().starts_with("A lighthouse"));
    let geometry = model.decoder.geometry();
    let numbers = prompt.vectors(29, Kind::Value).unwrap().len();
    assert_eq!(numbers, prompt.tokens() * geometry.kv_heads * geometry.head_dim);
    assert!(matches!(prompt.vectors(30, Kind::Key), Err(LabError::NoLayer { layer: 30, layers: 30 })));
    assert!(prompt.html().contains("30 × 3 × 64"), "{}", prompt.html());

    let cx = SchemeContext::untrained(geometry, 128);
    let schemes = ["dense", "q8_0", "csr-4", "csr-4+window", "kivi-2"].map(|name| registry::build(name, &cx).unwrap());
    let all = trials(&model, &prompt, &schemes).unwrap();
    let [exact, rounded, untrained, windowed, kivi] = &all.0[..] else { panic!("a trial per scheme") };
    assert_eq!((exact.kl, exact.top1, exact.attention_error()), (0.0, 1.0, 0.0));
    assert!(exact.measured_bits >= 32.0 && (8.5..10.0).contains(&rounded.measured_bits), "{}", rounded.measured_bits);
    assert!(
        rounded.kl > 0.0 && rounded.kl < 0.05 && untrained.kl > 10.0 * rounded.kl,
        "{} {}",
        rounded.kl,
        untrained.kl
    );
    assert_eq!(rounded.layer_errors.len(), 30);
    assert!(rounded.layer_errors.iter().all(|error| (1e-9..1e-2).contains(error)), "{:?}", rounded.layer_errors);
    assert!(untrained.layer_errors.iter().zip(&rounded.layer_errors).all(|(more, less)| more > less));
    assert!(windowed.kl < untrained.kl && kivi.kl > rounded.kl, "{} {}", windowed.kl, kivi.kl);
    assert!(all.named("q8_0").is_some() && all.html().contains("csr-4"));

    let written = continuations(&model, &prompt, &schemes[..2], 6).unwrap().html();
    assert_eq!(written.matches("<tr>").count(), 4, "{written}");
    assert!(matches!(model.prompt("Short.", 24), Err(LabError::TooShort { follows: 24, .. })));
}
