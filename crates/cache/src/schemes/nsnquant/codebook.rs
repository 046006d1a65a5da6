//! The one codebook of NSNQuant: learned on normal variates, the same for every model.

use std::sync::OnceLock;

use kvcsr_codec::Nearest;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::schemes::variates::normal;

/// Channels of a coded piece.
pub const PIECE: usize = 8;
/// Centroids, so that a number takes one byte.
const CENTROIDS: usize = 256;
/// Vectors that the codebook is learned on, and rounds of k-means.
const VECTORS: usize = 1 << 16;
const ROUNDS: usize = 24;

/// How pieces of standard normal channels are coded.
#[derive(Debug)]
pub struct Codebook {
    nearest: Nearest,
    /// Whether the codebook is of absolute values, with a bit for each sign.
    signs: bool,
}

impl Codebook {
    /// The codebook of `bits` bits per channel, 1 or 2. It is learned once per process, in the same way every time.
    pub fn of(bits: usize) -> &'static Self {
        static BOOKS: [OnceLock<Codebook>; 2] = [const { OnceLock::new() }; 2];
        let signs = bits == 2;
        BOOKS[usize::from(signs)].get_or_init(|| Self { nearest: learn(signs), signs })
    }

    /// Bytes of the codebook.
    pub fn bytes(&self) -> usize {
        self.nearest.bytes()
    }

    /// Bytes that a piece takes.
    pub fn piece_bytes(&self) -> usize {
        if self.signs { 2 } else { 1 }
    }

    /// Adds the code of `piece` to `codes`.
    pub fn encode(&self, piece: &[f32; PIECE], scores: &mut Vec<f32>, codes: &mut Vec<u8>) {
        if self.signs {
            codes.push(self.nearest.find(&piece.map(f32::abs), scores) as u8);
            codes.push((0..PIECE).fold(0, |signs, i| signs | u8::from(piece[i].is_sign_negative()) << i));
        } else {
            codes.push(self.nearest.find(piece, scores) as u8);
        }
    }

    /// Restores the pieces that `codes` stand for, times `factor`.
    pub fn decode(&self, codes: &[u8], factor: f32, out: &mut [f32]) {
        let centroids = self.nearest.centroids().as_chunks::<PIECE>().0;
        let pieces = out.as_chunks_mut::<PIECE>().0;
        if self.signs {
            for (&[code, signs], piece) in codes.as_chunks::<2>().0.iter().zip(pieces) {
                let centroid = &centroids[usize::from(code)];
                for (i, (x, c)) in piece.iter_mut().zip(centroid).enumerate() {
                    let sign = (u32::from(signs) >> i & 1) << 31;
                    *x = f32::from_bits((c * factor).to_bits() ^ sign);
                }
            }
        } else {
            for (&code, piece) in codes.iter().zip(pieces) {
                *piece = centroids[usize::from(code)].map(|c| c * factor);
            }
        }
    }
}

/// k-means on normal vectors, or on their absolute values.
fn learn(absolute: bool) -> Nearest {
    let mut rng = ChaCha8Rng::seed_from_u64(if absolute { 2 } else { 1 });
    let vectors: Vec<f32> =
        (0..VECTORS * PIECE).map(|_| normal(&mut rng) as f32).map(|x| if absolute { x.abs() } else { x }).collect();
    let book = |centroids: Vec<f32>| Nearest::new(PIECE, centroids).expect("centroids are means of finite vectors");
    let mut nearest = book(vectors[..CENTROIDS * PIECE].to_vec());
    let mut scores = Vec::new();
    for _ in 0..ROUNDS {
        let (mut sums, mut counts) = (vec![0f64; CENTROIDS * PIECE], vec![0usize; CENTROIDS]);
        // On one thread: a thread that waits for others here could be given work that needs this codebook, and wait for itself.
        for x in vectors.chunks_exact(PIECE) {
            let at = nearest.find(x, &mut scores);
            counts[at] += 1;
            sums[at * PIECE..][..PIECE].iter_mut().zip(x).for_each(|(sum, &x)| *sum += f64::from(x));
        }
        // A centroid that lost all its vectors stays where it is.
        let mean = |at: usize| match counts[at / PIECE] {
            0 => nearest.centroids()[at],
            count => (sums[at] / count as f64) as f32,
        };
        nearest = book((0..CENTROIDS * PIECE).map(mean).collect());
    }
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coded::testing::{relative_error, variates};

    #[test]
    fn errors_on_other_variates_lie_between_those_of_scalars_and_of_shannon() {
        let x = variates(7, 1 << 15);
        for (bits, shannon, scalars) in [(1, 0.25, 0.3634), (2, 0.0625, 0.1175)] {
            let book = Codebook::of(bits);
            let (mut codes, mut scores, mut out) = (Vec::new(), Vec::new(), vec![0.0; x.len()]);
            x.as_chunks().0.iter().for_each(|piece| book.encode(piece, &mut scores, &mut codes));
            assert_eq!(codes.len() * 8, x.len() * bits);
            book.decode(&codes, 1.0, &mut out);
            let error = relative_error(&x, &out);
            println!("{bits} bits: {error}");
            assert!(error > shannon && error < 0.95 * scalars, "{bits} bits: {error}");
            let doubled = out.iter().map(|x| 2.0 * x).collect::<Vec<_>>();
            book.decode(&codes, 2.0, &mut out);
            assert_eq!(out, doubled);
        }
    }

    #[test]
    fn signs_are_kept() {
        let piece = [0.1, -0.2, 3.0, -4.0, 0.5, 0.6, -0.7, 0.8];
        let (mut codes, mut out) = (Vec::new(), [0.0; PIECE]);
        Codebook::of(2).encode(&piece, &mut Vec::new(), &mut codes);
        Codebook::of(2).decode(&codes, 1.0, &mut out);
        assert_eq!(out.map(f32::is_sign_negative), piece.map(f32::is_sign_negative));
    }
}
