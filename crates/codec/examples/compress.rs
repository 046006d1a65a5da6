//! Compresses vectors with a dictionary, and computes attention on the codes without decoding the vectors.
//!
//! ```sh
//! cargo run --release --package kvcsr-codec --example compress
//! ```

use std::error::Error;
use std::sync::Arc;

use kvcsr_codec::{
    Dictionary, Encoder, SparseCodes, add_atom_sums, add_weighted_codes, atom_products, measured_bits, nominal_bits,
    reconstruction_error, score_codes,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Channels of a vector, atoms of the dictionary, and atoms used for each vector.
const WIDTH: usize = 64;
const ATOMS: usize = 512;
const SPARSITY: usize = 8;
const TOKENS: usize = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    // These vectors are sparse: each is a sum of 4 of the 512 directions and some noise.
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut number = move || rng.random_range(-1.0f32..1.0);
    let dictionary = Arc::new(Dictionary::normalised(WIDTH, (0..ATOMS * WIDTH).map(|_| number()).collect())?);
    let mut keys = vec![0.0; TOKENS * WIDTH];
    for (token, key) in keys.chunks_exact_mut(WIDTH).enumerate() {
        for part in 0..4 {
            let (atom, weight) = (dictionary.atom((token * 31 + part * 97) % ATOMS), 1.0 + number());
            key.iter_mut().zip(atom).for_each(|(x, a)| *x += weight * a);
        }
        key.iter_mut().for_each(|x| *x += 0.02 * number());
    }

    // Encode: every vector becomes SPARSITY pairs of atom and coefficient.
    let encoder = Encoder::new(dictionary.clone());
    let mut codes = SparseCodes::new(SPARSITY);
    codes.encode_append(&encoder, &keys)?;
    let error = reconstruction_error(&encoder, &keys, SPARSITY)?;
    let (nominal, measured) =
        (nominal_bits(SPARSITY, 1, WIDTH), measured_bits(codes.footprint().total(), TOKENS * WIDTH));
    println!("{TOKENS} vectors of {WIDTH} channels, {SPARSITY} of {ATOMS} atoms each");
    println!(
        "error {:.4} of the energy, {:.2} bits a channel nominal, {:.2} measured",
        error.relative, nominal.0, measured.0
    );

    // Attend: compute one product of the query with each atom. The score of a key is then a sum over its codes.
    let query: Vec<f32> = (0..WIDTH).map(|_| number()).collect();
    let coefficients: Vec<f32> = codes.coefficients().iter().map(|c| c.to_f32()).collect();
    let atoms = dictionary.as_ref().into();
    let (mut products, mut scores) = (Vec::new(), vec![0.0; TOKENS]);
    atom_products(atoms, 1, &query, &mut products);
    score_codes(&products, 1, 1, codes.indices(), &coefficients, &mut scores);

    // The softmax of the scores, and the weighted sum of the values. Here the values are the keys.
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut weights: Vec<f32> = scores.iter().map(|score| (score - largest).exp()).collect();
    let total: f32 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= total);
    let (mut sums, mut out) = (vec![0.0; ATOMS], vec![0.0; WIDTH]);
    add_weighted_codes(&mut sums, 1, 1, codes.indices(), &coefficients, &weights);
    add_atom_sums(atoms, 1, 1, &sums, &mut out);

    // Compute the same result by decoding every vector first.
    let mut restored = vec![0.0; TOKENS * WIDTH];
    codes.decode_into(&dictionary, 0..TOKENS, &mut restored)?;
    let mut expected = vec![0.0; WIDTH];
    for (key, weight) in restored.chunks_exact(WIDTH).zip(&weights) {
        expected.iter_mut().zip(key).for_each(|(sum, x)| *sum += weight * x);
    }
    let difference = out.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("attention on codes and on restored vectors differ by at most {difference:.1e}");
    if error.relative > 0.05 || difference > 1e-4 {
        return Err("sparse vectors should be coded well, and both ways should agree".into());
    }
    Ok(())
}

#[test]
fn it_runs() {
    main().expect("the example runs");
}
