//! Inner products of 8-bit numbers, compared with a floor during the computation. With AVX512-VNNI the CPU adds up 64
//! products in one instruction; in f32 it multiplies 16 numbers per instruction.

/// Atoms per group: their sums take four registers.
pub(crate) const GROUP: usize = 64;
/// Rows that are multiplied with a group at a time. With [`GROUP`], 24 of the 32 registers hold sums.
pub(crate) const TILE_ROWS: usize = 6;
/// Numbers that one lane adds up at a time.
pub(crate) const QUAD: usize = 4;
/// Added to the numbers of a row, because the instruction takes unsigned numbers there.
pub(crate) const OFFSET: i32 = 128;

/// The atoms of a group in 8 bits.
#[derive(Clone, Copy)]
pub(crate) struct Group<'a> {
    /// `(width / QUAD, GROUP, QUAD)`.
    pub(crate) atoms: &'a [i8],
    /// `-OFFSET` times the sum of each atom's numbers. This removes the effect of the rows' offset.
    pub(crate) corrections: &'a [i32; GROUP],
    /// The value of one unit of each atom's numbers.
    pub(crate) scales: &'a [f32; GROUP],
}

/// Magnitudes of the inner products of a tile of rows with a group of atoms.
pub(crate) type Estimates = [[f32; GROUP]; TILE_ROWS];

/// The implementation to use. Both give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// The reference that the fast implementation is tested against. It is slower than a product in f32.
    #[cfg_attr(not(test), expect(dead_code, reason = "only tests want it"))]
    Portable,
    #[cfg(target_arch = "x86_64")]
    Vnni(vnni::Vnni),
}

impl Bytes {
    /// The fast implementation, if this CPU supports it.
    pub(crate) fn detect() -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if let Some(vnni) = vnni::Vnni::detect() {
            return Some(Self::Vnni(vnni));
        }
        None
    }

    /// Writes `|<row, atom>|`, in the units of the row, to `estimates`. Bit `a` of a row's mask is set if the estimate of
    /// atom `a` is at least the floor of the row. The numbers of rows have [`OFFSET`] added; rows have `(width)` numbers each.
    ///
    /// # Panics
    /// If a row and the group have different widths.
    pub(crate) fn multiply(
        self,
        rows: [&[u8]; TILE_ROWS],
        group: Group<'_>,
        floors: &[f32; TILE_ROWS],
        estimates: &mut Estimates,
    ) -> [u64; TILE_ROWS] {
        assert!(rows.iter().all(|row| row.len() * GROUP == group.atoms.len() && row.len().is_multiple_of(QUAD)));
        match self {
            Self::Portable => portable(rows, group, floors, estimates),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(vnni) => vnni.multiply(rows, group, floors, estimates),
        }
    }
}

fn portable(
    rows: [&[u8]; TILE_ROWS],
    group: Group<'_>,
    floors: &[f32; TILE_ROWS],
    estimates: &mut Estimates,
) -> [u64; TILE_ROWS] {
    std::array::from_fn(|r| {
        let mut mask = 0;
        for (a, estimate) in estimates[r].iter_mut().enumerate() {
            let mut sum = group.corrections[a];
            for (row, atoms) in rows[r].chunks_exact(QUAD).zip(group.atoms.chunks_exact(GROUP * QUAD)) {
                for (&x, &y) in row.iter().zip(&atoms[a * QUAD..(a + 1) * QUAD]) {
                    sum += i32::from(x) * i32::from(y);
                }
            }
            *estimate = (sum as f32 * group.scales[a]).abs();
            mask |= u64::from(*estimate >= floors[r]) << a;
        }
        mask
    })
}

#[cfg(target_arch = "x86_64")]
mod vnni {
    use std::arch::is_x86_feature_detected;
    use std::arch::x86_64::*;

    use super::super::limit::{Width, allows};
    use super::{Estimates, GROUP, Group, QUAD, TILE_ROWS};

    /// Proof that this CPU adds up products of 8-bit numbers.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Vnni(());

    impl Vnni {
        pub(super) fn detect() -> Option<Self> {
            let there = is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni");
            (there && allows(Width::Avx512)).then_some(Self(()))
        }

        /// Does the same as [`super::Bytes::multiply`]. The caller has made its checks.
        pub(super) fn multiply(
            self,
            rows: [&[u8]; TILE_ROWS],
            group: Group<'_>,
            floors: &[f32; TILE_ROWS],
            estimates: &mut Estimates,
        ) -> [u64; TILE_ROWS] {
            // SAFETY: a value of Vnni exists only if the CPU has the instructions.
            unsafe { multiply(rows, group, floors, estimates) }
        }
    }

    /// Registers for the sums of a group.
    const REGISTERS: usize = GROUP / 16;

    /// # Safety
    /// The CPU must have AVX-512F and AVX512-VNNI.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn multiply(
        rows: [&[u8]; TILE_ROWS],
        group: Group<'_>,
        floors: &[f32; TILE_ROWS],
        estimates: &mut Estimates,
    ) -> [u64; TILE_ROWS] {
        let Group { atoms, corrections, scales } = group;
        let quads = atoms.len() / (GROUP * QUAD);
        let corrections: [__m512i; REGISTERS] = std::array::from_fn(|at| {
            // SAFETY: a group has GROUP corrections.
            unsafe { _mm512_loadu_si512(corrections.as_ptr().add(16 * at).cast()) }
        });
        let mut sums = [corrections; TILE_ROWS];
        for quad in 0..quads {
            let atoms: [__m512i; REGISTERS] = std::array::from_fn(|at| {
                // SAFETY: a group has GROUP times QUAD numbers for every quad.
                unsafe { _mm512_loadu_si512(atoms.as_ptr().add(quad * GROUP * QUAD + 64 * at).cast()) }
            });
            for (sums, row) in sums.iter_mut().zip(&rows) {
                // SAFETY: a row has as many quads as the group, as `Bytes::multiply` checks.
                let row = _mm512_set1_epi32(unsafe { row.as_ptr().cast::<i32>().add(quad).read_unaligned() });
                for (sum, &atoms) in sums.iter_mut().zip(&atoms) {
                    *sum = _mm512_dpbusd_epi32(*sum, row, atoms);
                }
            }
        }
        let mut masks = [0; TILE_ROWS];
        for (((mask, sums), &floor), estimates) in masks.iter_mut().zip(&sums).zip(floors).zip(estimates) {
            for (at, &sum) in sums.iter().enumerate() {
                // SAFETY: a group has GROUP scales, and a row has GROUP estimates.
                unsafe {
                    let scale = _mm512_loadu_ps(scales.as_ptr().add(16 * at));
                    let estimate = _mm512_abs_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
                    _mm512_storeu_ps(estimates.as_mut_ptr().add(16 * at), estimate);
                    let above = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(estimate, _mm512_set1_ps(floor));
                    *mask |= u64::from(above) << (16 * at);
                }
            }
        }
        masks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_quick_one_equals_its_twin() {
        let Some(quick) = Bytes::detect() else { return };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for width in [4, 8, 64, 132, 1024] {
            let atoms: Vec<i8> = (0..width * GROUP).map(|_| rng.random_range(-127..=127)).collect();
            let corrections = std::array::from_fn(|_| rng.random_range(-100_000..100_000));
            let scales = std::array::from_fn(|_| rng.random::<f32>());
            let group = Group { atoms: &atoms, corrections: &corrections, scales: &scales };
            let rows: Vec<u8> = (0..width * TILE_ROWS).map(|_| rng.random_range(1..=255)).collect();
            let rows = std::array::from_fn(|r| &rows[r * width..(r + 1) * width]);
            let mut floors = std::array::from_fn(|_| 100_000.0 * rng.random::<f32>());
            floors[3] = f32::INFINITY;
            let (mut found, mut twin) = ([[0.0; GROUP]; TILE_ROWS], [[0.0; GROUP]; TILE_ROWS]);
            let masks = quick.multiply(rows, group, &floors, &mut found);
            assert_eq!(masks, Bytes::Portable.multiply(rows, group, &floors, &mut twin));
            assert_eq!(found, twin);
            assert_eq!(masks[3], 0);
        }
    }

    #[test]
    fn the_offset_is_undone() {
        // One atom, (1, -2, 3, 0) in its own units, and one row, (5, 6, -7, 0).
        let mut atoms = [0i8; GROUP * QUAD];
        atoms[..4].copy_from_slice(&[1, -2, 3, 0]);
        let (mut corrections, mut scales) = ([0; GROUP], [0.0; GROUP]);
        (corrections[0], scales[0]) = (-OFFSET * 2, 0.5);
        let row = [5, 6, -7, 0].map(|x| (x + OFFSET) as u8);
        let group = Group { atoms: &atoms, corrections: &corrections, scales: &scales };
        let mut estimates = [[9.0; GROUP]; TILE_ROWS];
        let masks = Bytes::Portable.multiply([&row; TILE_ROWS], group, &[14.0; TILE_ROWS], &mut estimates);
        assert_eq!((estimates[0][0], masks[0]), (14.0, 1));
    }
}
