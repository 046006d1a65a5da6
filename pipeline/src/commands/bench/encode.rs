//! Sparse coding of vectors, compared with PyTorch, SPAMS, scikit-learn and faiss.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use kvcsr_cache::conformance::noise;
use kvcsr_codec::{Atoms, Dictionary, Encoder, OnlineAtoms, OrthogonalCodes};
use kvcsr_neuraldict::yardstick::TorchPursuit;
use kvcsr_records::BenchRow;
use serde::Serialize;

use super::coders::Coders;
use super::contest::{Contender, Turn, Work, rows, timed};
use super::{Bench, roofs::Roofs};

/// Number of atoms that make up a test vector, with falling coefficients.
const TRUE_ATOMS: usize = 12;
/// Amplitude of the noise that is added to it.
const NOISE: f32 = 0.05;

/// The size of one measurement.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Size {
    /// Channels.
    pub width: usize,
    /// Atoms, `N`.
    pub atoms: usize,
    /// Atoms of a code, `s`.
    pub sparsity: usize,
    /// Vectors.
    pub rows: usize,
}

/// Each size, and whether the Python peers take part: they need minutes.
const SIZES: [(Size, bool); 9] = [
    (size(64, 1024, 8), true),
    (size(128, 8192, 8), true),
    (size(128, 1024, 8), false),
    (size(128, 2048, 8), false),
    (size(128, 4096, 8), false),
    (size(128, 16384, 8), false),
    (size(64, 1024, 2), false),
    (size(64, 1024, 4), false),
    (size(64, 1024, 16), false),
];
const QUICK: [(Size, bool); 1] = [(Size { width: 16, atoms: 64, sparsity: 4, rows: 256 }, true)];

const fn size(width: usize, atoms: usize, sparsity: usize) -> Size {
    Size { width, atoms, sparsity, rows: 8192 }
}

impl Size {
    fn shape(&self) -> String {
        format!("d = {}, N = {}, s = {}", self.width, self.atoms, self.sparsity)
    }

    /// Vectors `(rows, width)`: a few atoms with falling coefficients, and noise.
    fn vectors(&self, dictionary: &Dictionary) -> Vec<f32> {
        let (picks, mut rows) = (noise(3, self.rows * TRUE_ATOMS), noise(4, self.rows * self.width));
        rows.iter_mut().for_each(|x| *x *= NOISE);
        for (row, picks) in rows.chunks_exact_mut(self.width).zip(picks.chunks_exact(TRUE_ATOMS)) {
            for (place, pick) in picks.iter().enumerate() {
                let atom = dictionary.atom(((pick.abs() * self.atoms as f32) as usize).min(self.atoms - 1));
                let coefficient = pick.signum() / (1.0 + place as f32);
                row.iter_mut().zip(atom).for_each(|(x, a)| *x += coefficient * a);
            }
        }
        rows
    }
}

/// Measures all sizes.
pub fn run(bench: &Bench<'_>, roofs: &Roofs) -> Result<Vec<BenchRow>> {
    let mut found = Vec::new();
    for (size, with_python) in if bench.quick { &QUICK[..] } else { &SIZES[..] } {
        let python = bench.python.filter(|_| *with_python);
        found.extend(one(bench, roofs, *size, python)?);
    }
    Ok(found)
}

fn one(bench: &Bench<'_>, roofs: &Roofs, size: Size, python: Option<&Path>) -> Result<Vec<BenchRow>> {
    let Size { width, atoms, sparsity, rows: n } = size;
    let dictionary = Arc::new(Dictionary::normalised(width, noise(1, atoms * width))?);
    let vectors = size.vectors(&dictionary);
    let encoder = Encoder::new(dictionary.clone());
    let torch = TorchPursuit::new(dictionary.atoms(), &vectors, width, sparsity)?;
    let coders = python.map(|python| Coders::start(python, size, dictionary.atoms(), &vectors)).transpose()?;
    let mut contenders: Vec<Contender<'_>> = Vec::new();
    for (name, orthogonal) in [("matching pursuit", false), ("orthogonal matching pursuit", true)] {
        let (encoder, vectors) = (&encoder, &vectors[..]);
        contenders.push(Contender {
            // A 2-byte index and an f16 coefficient for each atom.
            bytes: Some((4 * sparsity) as f64),
            limit: Some(roofs.one_product(width, atoms)),
            ..Contender::ours(name, move || ours(encoder, vectors, sparsity, orthogonal))
        });
        let torch = &torch;
        contenders.push(Contender::peer(format!("PyTorch {name}"), move || {
            let (seconds, error) = torch.measure(n, orthogonal)?;
            Ok(Turn { units: n as f64, seconds, error: Some(error) })
        }));
    }
    if let Some(coders) = &coders {
        for &name in coders.peers() {
            contenders
                .push(Contender { bytes: coders.bytes(name), ..Contender::peer(name, move || coders.turn(name)) });
        }
    }
    rows(
        &Work { name: "encode", shape: size.shape(), unit: "vectors", machine: bench.machine },
        contenders,
        bench.rounds,
    )
}

/// One turn of ours.
fn ours(encoder: &Encoder, vectors: &[f32], sparsity: usize, orthogonal: bool) -> Result<Turn> {
    let dictionary = encoder.dictionary();
    let n = vectors.len() / dictionary.width();
    let (mut indices, mut coefficients) = (vec![0u16; n * sparsity], vec![0f32; n * sparsity]);
    let (mut lengths, mut residuals) = (vec![0u8; n], vec![0f32; n]);
    let online = OnlineAtoms::new(dictionary.width());
    let atoms = Atoms::new(dictionary, &online)?;
    let turn = timed(n as f64, || {
        if orthogonal {
            let codes = OrthogonalCodes {
                indices: &mut indices,
                coefficients: &mut coefficients,
                lengths: &mut lengths,
                residuals: &mut residuals,
            };
            encoder.encode_orthogonal(atoms, vectors, sparsity, 0.0, codes)?;
        } else {
            encoder.encode(vectors, sparsity, &mut indices, &mut coefficients)?;
        }
        Ok(())
    })?;
    let (mut error, mut energy, mut restored) = (0.0, 0.0, vec![0f32; dictionary.width()]);
    let codes = indices.chunks_exact(sparsity).zip(coefficients.chunks_exact(sparsity));
    for (row, (indices, coefficients)) in vectors.chunks_exact(dictionary.width()).zip(codes) {
        restored.fill(0.0);
        atoms.restore(indices, coefficients, &mut restored);
        energy += row.iter().map(|x| f64::from(x * x)).sum::<f64>();
        error += row.iter().zip(&restored).map(|(x, y)| f64::from((x - y) * (x - y))).sum::<f64>();
    }
    Ok(Turn { error: Some(error / energy), ..turn })
}

/// Measures encoding on all threads. The peer is the same encoder on one thread.
pub fn threads(bench: &Bench<'_>) -> Result<Vec<BenchRow>> {
    let sizes = if bench.quick { &QUICK[..] } else { &SIZES[..2] };
    let one = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
    let mut found = Vec::new();
    for &(size, _) in sizes {
        let dictionary = Arc::new(Dictionary::normalised(size.width, noise(1, size.atoms * size.width))?);
        let vectors = size.vectors(&dictionary);
        let encoder = Encoder::new(dictionary);
        let own = |encoder: &Encoder| ours(encoder, &vectors, size.sparsity, false);
        let contenders = vec![
            Contender::ours(format!("{} threads", bench.machine.threads), || own(&encoder)),
            Contender::peer("1 thread", || one.install(|| own(&encoder))),
        ];
        let shape = format!("matching pursuit, {}", size.shape());
        found.extend(rows(
            &Work { name: "threads", shape, unit: "vectors", machine: bench.machine },
            contenders,
            bench.rounds,
        )?);
    }
    Ok(found)
}
