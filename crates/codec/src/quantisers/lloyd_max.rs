//! Scalar quantisers with the least mean squared error for normally distributed numbers (Lloyd 1957, Max 1960).

use std::sync::OnceLock;

/// The largest number of bits of a [`LloydMax`] quantiser.
pub const WIDEST: usize = 8;
/// Up to this number of bits the iteration starts from evenly spaced levels. Above, it starts from the levels of the
/// quantiser with one bit less.
const FROM_EVEN: usize = 5;

/// Half-width of the grid on which the normal density is summed, and cells per unit. The error of a centroid is below
/// 1e-6.
const REACH: f64 = 9.0;
const CELLS: usize = 4096;

/// The levels in rising order and the thresholds between them, for N(0, 1).
#[derive(Debug, Clone, PartialEq)]
pub struct LloydMax {
    /// `2^bits` levels.
    pub levels: Vec<f32>,
    /// `2^bits - 1` thresholds, halfway between levels.
    pub thresholds: Vec<f32>,
    /// Mean squared error on N(0, 1).
    pub distortion: f64,
}

/// The quantiser with `bits` bits, 1 to [`WIDEST`].
///
/// # Panics
/// If `bits` is not in this range.
#[must_use]
pub fn lloyd_max(bits: usize) -> &'static LloydMax {
    static TABLES: [OnceLock<LloydMax>; WIDEST] = [const { OnceLock::new() }; WIDEST];
    TABLES[bits - 1].get_or_init(|| solve(bits))
}

/// Density and first moment of N(0, 1). Both are summed from the left end of the grid to the right end of each cell.
struct Sums {
    mass: Vec<f64>,
    moment: Vec<f64>,
}

impl Sums {
    fn new() -> Self {
        let n = (2.0 * REACH) as usize * CELLS;
        let (mut mass, mut moment) = (vec![0.0], vec![0.0]);
        for cell in 0..n {
            let x = -REACH + (cell as f64 + 0.5) / CELLS as f64;
            let density = (-0.5 * x * x).exp();
            mass.push(mass[cell] + density);
            moment.push(moment[cell] + x * density);
        }
        Self { mass, moment }
    }

    /// Both sums from the left end of the grid to `x`.
    fn at(&self, x: f64) -> (f64, f64) {
        let place = ((x + REACH) * CELLS as f64).clamp(0.0, (self.mass.len() - 1) as f64);
        let (cell, part) = (place as usize, place.fract());
        let next = (cell + 1).min(self.mass.len() - 1);
        let between = |sums: &[f64]| sums[cell] + part * (sums[next] - sums[cell]);
        (between(&self.mass), between(&self.moment))
    }
}

/// Lloyd's iteration: each level is the mean of its cell, and each threshold is halfway between two levels.
fn solve(bits: usize) -> LloydMax {
    let (n, sums) = (1usize << bits, Sums::new());
    let mut levels: Vec<f64> = if bits <= FROM_EVEN {
        (0..n).map(|i| 4.0 * (i as f64 + 0.5) / n as f64 - 2.0).collect()
    } else {
        // Each level is replaced by two, a quarter of the gap below and above it.
        let narrower: Vec<f64> = lloyd_max(bits - 1).levels.iter().map(|&level| f64::from(level)).collect();
        let gap = |i: usize| narrower[(i + 1).min(n / 2 - 1)] - narrower[(i + 1).min(n / 2 - 1) - 1];
        (0..n).map(|i| narrower[i / 2] + gap(i / 2) * if i % 2 == 0 { -0.25 } else { 0.25 }).collect()
    };
    let halfway = |levels: &[f64]| levels.windows(2).map(|pair| 0.5 * (pair[0] + pair[1])).collect::<Vec<f64>>();
    let second = loop {
        let thresholds = halfway(&levels);
        let (mut moved, mut second) = (0f64, 0.0);
        let (mut mass, mut moment) = (0.0, 0.0);
        for (i, level) in levels.iter_mut().enumerate() {
            let (mass_to, moment_to) = thresholds.get(i).map_or_else(|| sums.at(REACH), |&t| sums.at(t));
            let mean = (moment_to - moment) / (mass_to - mass);
            second += (mass_to - mass) * mean * mean;
            (mass, moment) = (mass_to, moment_to);
            moved = moved.max((mean - *level).abs());
            *level = mean;
        }
        // With many bits the levels converge slowly, but their error converges much earlier.
        if moved < if bits <= FROM_EVEN { 1e-10 } else { 1e-6 } {
            break second;
        }
    };
    let thresholds = halfway(&levels);
    let single = |x: Vec<f64>| x.into_iter().map(|x| x as f32).collect();
    // A level is the mean of its cell, so errors and levels are uncorrelated. Their mean squares add up to 1.
    let distortion = 1.0 - second / sums.mass[sums.mass.len() - 1];
    LloydMax { thresholds: single(thresholds), levels: single(levels), distortion }
}

impl LloydMax {
    /// The code of `x`: the number of thresholds below it.
    #[inline]
    #[must_use]
    pub fn code(&self, x: f32) -> u8 {
        self.thresholds.iter().map(|&threshold| u8::from(x > threshold)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_those_of_the_literature() {
        let levels: [&[f64]; 4] = [
            &[0.797885],
            &[0.452780, 1.510418],
            &[0.245094, 0.756005, 1.343909, 2.151946],
            &[0.128395, 0.388048, 0.656759, 0.942340, 1.256231, 1.618046, 2.069017, 2.732590],
        ];
        let thresholds: [&[f64]; 4] = [
            &[],
            &[0.981599],
            &[0.500550, 1.049957, 1.747927],
            &[0.258222, 0.522404, 0.799550, 1.099286, 1.437139, 1.843532, 2.400803],
        ];
        for (bits, (levels, thresholds)) in (1..).zip(levels.into_iter().zip(thresholds)) {
            let table = lloyd_max(bits);
            let half = 1 << (bits - 1);
            assert_eq!((table.levels.len(), table.thresholds.len()), (2 * half, 2 * half - 1));
            let near = |a: f32, b: f64| (f64::from(a) - b).abs() < 3e-6;
            for (i, &level) in levels.iter().enumerate() {
                assert!(near(table.levels[half + i], level), "{bits} bits: {:?}", table.levels);
                assert!(near(table.levels[half - 1 - i], -level), "{bits} bits: {:?}", table.levels);
            }
            assert!(near(table.thresholds[half - 1], 0.0));
            for (i, &threshold) in thresholds.iter().enumerate() {
                assert!(near(table.thresholds[half + i], threshold), "{bits} bits: {:?}", table.thresholds);
            }
        }
    }

    #[test]
    fn squared_errors_are_those_of_the_literature() {
        for (bits, expected) in (1..).zip([0.363380, 0.117482, 0.034548, 0.009501, 0.002505, 0.000645, 0.000164]) {
            let table = lloyd_max(bits);
            let (mut error, mut mass) = (0f64, 0f64);
            for i in 0..160_000 {
                let x = -8.0 + (f64::from(i) + 0.5) / 10_000.0;
                let density = (-0.5 * x * x).exp();
                let level = f64::from(table.levels[usize::from(table.code(x as f32))]);
                error += density * (x - level) * (x - level);
                mass += density;
            }
            assert!((error / mass - expected).abs() < 2e-6, "{bits} bits: {}", error / mass);
            assert!((table.distortion - expected).abs() < 2e-6, "{bits} bits: {}", table.distortion);
        }
    }
}
