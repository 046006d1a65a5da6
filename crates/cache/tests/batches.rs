//! Batches of texts of different lengths under CSR: every text is stored as it would be alone.
#![allow(clippy::unwrap_used)]

mod common;

use candle_core::Tensor;
use common::{context, dictionaries, largest_difference, rotary, tensor};
use kvcsr_cache::{AttendCx, Geometry, LayerCache, Padding, Pattern, PrefillSnapshot, Reach, registry};

const SCHEMES: [&str; 11] = [
    "csr-4",
    "csr-4+restore",
    "csr-8+online(sampled=4,guard=6)",
    "csr-8+online(sampled=3,guard=5,sampler=worst,prefill=restored)",
    "csr-4+window(sinks=2,recent=9)",
    "csr-4+window(sinks=3,recent=5)+restore",
    "csr-8+int4+refit",
    "csr-8+stop(error=0.2)",
    "csr-4+budget",
    "csr-8+rope+online(sampled=4,guard=6)+window(sinks=2,recent=9)",
    "csr-8+online(sampled=2,guard=9,sampler=strided,prefill=restored)+int6+window(sinks=1,recent=3)+stop(error=0.1)",
];

/// Whether the tokens of the first call are the prompt. Then pieces differ from the whole.
fn first_call_is_the_prompt(name: &str) -> bool {
    name.contains("prefill=restored")
}

fn inputs(batch: usize, heads: (usize, usize), tokens: usize, d: usize) -> (Tensor, Tensor, Tensor) {
    (
        tensor(1, (batch, heads.0, tokens, d)),
        tensor(2, (batch, heads.1, tokens, d)),
        tensor(3, (batch, heads.1, tokens, d)),
    )
}

/// Keys that are coded after position embedding have other codes at other positions, and padding changes their
/// positions.
fn coded_by_position(name: &str) -> bool {
    name.contains("+rope")
}

/// The tokens `from..to` of the rows `row.0..row.0 + row.1` of a batch.
fn part(x: &Tensor, row: (usize, usize), from: usize, to: usize) -> Tensor {
    x.narrow(0, row.0, row.1).unwrap().narrow(2, from, to - from).unwrap()
}

#[test]
fn left_padded_rows_attend_as_they_do_alone() {
    let (heads, d, tokens, padding) = ((6, 2), 64, 40, [11, 0, 39]);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let rotary = rotary(d);
    for name in SCHEMES.into_iter().filter(|name| !coded_by_position(name)) {
        for reach in [Reach::Full, Reach::Sliding(9)] {
            let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
            let x = inputs(3, heads, tokens, d);
            let attend = |cache: &mut dyn LayerCache, row: (usize, usize), from: usize, to: usize, start, padding| {
                let pattern = Pattern { reach, padding, ..Pattern::default() };
                let cx = AttendCx { start, rotary: &rotary, scale: 0.125, pattern };
                cache.attend(&part(&x.0, row, from, to), &part(&x.1, row, from, to), &part(&x.2, row, from, to), &cx)
            };
            let mut cache = scheme.empty(0).unwrap();
            let pieces = match first_call_is_the_prompt(name) {
                true => &[(0, 40)][..],
                false => &[(0, 3), (3, 38), (38, 39), (39, 40)],
            };
            let together: Vec<Tensor> = pieces
                .iter()
                .map(|&(from, to)| attend(cache.as_mut(), (0, 3), from, to, from, Padding::Left(&padding)).unwrap())
                .collect();
            let together = Tensor::cat(&together, 2).unwrap();
            assert!(together.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|x| x.is_finite()), "{name}");
            for (row, from) in padding.into_iter().enumerate() {
                let mut alone = scheme.empty(0).unwrap();
                let alone = attend(alone.as_mut(), (row, 1), from, tokens, 0, Padding::None).unwrap();
                let padded = together.narrow(0, row, 1).unwrap().narrow(2, from, tokens - from).unwrap();
                let off = largest_difference(&padded, &alone);
                assert!(off < 1e-5, "{name} {reach:?}, row {row}: {off}");
            }
            let held = cache.footprint();
            let error = attend(cache.as_mut(), (0, 3), 39, 40, 40, Padding::Left(&[11, 1, 39])).unwrap_err();
            assert!(error.to_string().contains("begun with padding [11, 0, 39], found [11, 1, 39]"), "{error}");
            assert_eq!((cache.len(), cache.footprint()), (40, held), "{name}");
        }
    }
}

/// A batch that is taken over from an exact prefill: each text is stored, and decoded further, as it would be alone.
#[test]
fn a_padded_prefill_goes_on_as_each_text_alone() {
    let (heads, d, prompt, padding) = ((6, 2), 64, 60, [25, 0, 58]);
    let geometry = Geometry { layers: 1, kv_heads: heads.1, head_dim: d };
    let rotary = rotary(d);
    for name in SCHEMES {
        let scheme = registry::build(name, &context(geometry, dictionaries(geometry, 96))).unwrap();
        let x = inputs(3, heads, prompt + 3, d);
        // Padding is not read, even if it contains NaN.
        let keys: Vec<f32> = part(&x.1, (0, 3), 0, prompt).flatten_all().unwrap().to_vec1().unwrap();
        let hidden = |i: usize| i / d % prompt < padding[i / (heads.1 * prompt * d)];
        let keys = keys.into_iter().enumerate().map(|(i, x)| if hidden(i) { f32::NAN } else { x }).collect();
        let snapshot = PrefillSnapshot {
            keys: vec![Tensor::from_vec(keys, (3, heads.1, prompt, d), x.1.device()).unwrap()],
            values: vec![part(&x.2, (0, 3), 0, prompt)],
            queries: Vec::new(),
            last_logits: x.0.clone(),
        };
        let cx = |start, padding| AttendCx {
            start,
            rotary: &rotary,
            scale: 0.125,
            pattern: Pattern { padding, ..Pattern::default() },
        };
        if !coded_by_position(name) {
            let mut caches = snapshot.fork_padded(scheme.as_ref(), &rotary, Padding::Left(&padding)).unwrap();
            let mut alone: Vec<_> = padding
                .iter()
                .enumerate()
                .map(|(row, &from)| {
                    let own = |x: &Tensor| part(x, (row, 1), from, prompt);
                    scheme.after_prefill(0, &own(&x.1), &own(&x.2), &rotary).unwrap()
                })
                .collect();
            for at in prompt..prompt + 3 {
                let [q, k, v] = [&x.0, &x.1, &x.2].map(|x| part(x, (0, 3), at, at + 1));
                let together = caches[0].attend(&q, &k, &v, &cx(at, Padding::Left(&padding))).unwrap();
                for (row, cache) in alone.iter_mut().enumerate() {
                    let [q, k, v] = [&x.0, &x.1, &x.2].map(|x| part(x, (row, 1), at, at + 1));
                    let one = cache.attend(&q, &k, &v, &cx(at - padding[row], Padding::None)).unwrap();
                    let off = largest_difference(&one, &together.narrow(0, row, 1).unwrap());
                    assert!(off < 1e-5, "{name}, row {row}, token {at}: {off}");
                }
            }
            let atoms = |cache: &dyn LayerCache| cache.footprint().online_atoms + cache.footprint().guard;
            assert_eq!(atoms(caches[0].as_ref()), alone.iter().map(|c| atoms(c.as_ref())).sum::<usize>(), "{name}");
        }
        let error = snapshot.fork(scheme.as_ref(), &rotary).err().unwrap();
        assert_eq!(error.to_string(), "layer 0, keys: token 0 has a NaN or infinite element", "{name}");
        let error = snapshot.fork_padded(scheme.as_ref(), &rotary, Padding::Left(&[24, 0, 58])).err().unwrap();
        assert_eq!(error.to_string(), "layer 0, keys: token 24 has a NaN or infinite element", "{name}");
    }
}
