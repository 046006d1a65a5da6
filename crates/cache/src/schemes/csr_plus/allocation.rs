//! Bits per coordinate: all coordinates of all layers are paid from one common budget.

use kvcsr_codec::{WIDEST, lloyd_max};

/// The bits of each coordinate of each layer, `bits` per channel on average over the layers.
///
/// `deviations` are the standard deviations of a layer's coordinates in the metric, in falling order. `overhead` is the
/// number of bits that a token of the layer takes in addition to its coordinates. A coordinate of variance `v` costs
/// `v d(b)`, where `d(b)` is the squared error of the quantiser with `b` bits. This function is convex. So the best
/// allocation always buys the bit that lowers the error most. Rows take whole bytes: half a byte per layer is reserved
/// for rounding up.
///
/// # Errors
/// A sentence, if there are no layers or if the bits do not even cover the overhead.
pub fn spend(deviations: &[Vec<f64>], overhead: &[usize], bits: f64) -> Result<Vec<Vec<u8>>, String> {
    let channels: usize = deviations.iter().map(Vec::len).sum();
    let fixed: usize = overhead.iter().map(|bits| bits + 4).sum();
    let total = (bits * channels as f64).max(0.0) as usize;
    let Some(purse) = total.checked_sub(fixed).filter(|_| channels > 0) else {
        return Err(format!(
            "{bits:.3} bits per channel are left for codes: atoms and gains alone take {:.3}",
            fixed as f64 / channels.max(1) as f64
        ));
    };
    let mut offers = Vec::with_capacity(channels * WIDEST);
    for (layer, deviations) in deviations.iter().enumerate() {
        for (at, deviation) in deviations.iter().enumerate() {
            let mut left = 1.0;
            for bits in 1..=WIDEST {
                let after = lloyd_max(bits).distortion;
                offers.push((deviation * deviation * (left - after), layer, at));
                left = after;
            }
        }
    }
    let purse = purse.min(offers.len());
    // The order decides between two equal offers: the first one is taken.
    offers.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut spent: Vec<Vec<u8>> = deviations.iter().map(|deviations| vec![0; deviations.len()]).collect();
    for &(_, layer, at) in offers[..purse].iter().filter(|(fall, ..)| *fall > 0.0) {
        spent[layer][at] += 1;
    }
    // Deviations fall, so bits fall too, except for ties. Rows are read as runs of coordinates with equal bits.
    spent.iter_mut().for_each(|bits| bits.sort_by(|a, b| b.cmp(a)));
    Ok(spent)
}

/// The loss of coordinates with these `deviations` and `bits`: the sum of their squared errors in the metric.
pub fn loss(deviations: &[f64], bits: &[u8]) -> f64 {
    let distortion = |bits: u8| if bits == 0 { 1.0 } else { lloyd_max(bits.into()).distortion };
    deviations.iter().zip(bits).map(|(deviation, &bits)| deviation * deviation * distortion(bits)).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn bits_go_where_they_lower_the_error_most() {
        let deviations = vec![vec![4.0, 1.0, 0.1, 0.0], vec![1.0, 1.0, 1.0, 0.01]];
        let spent = spend(&deviations, &[0, 0], 2.0).unwrap();
        assert_eq!(spent.iter().flatten().map(|&b| usize::from(b)).sum::<usize>(), 16 - 8);
        assert!(spent[0][0] >= spent[0][1] + 2, "two bits more for four times the deviation: {spent:?}");
        assert_eq!((spent[0][3], spent[1][3]), (0, 0));
        // An exhaustive check: no move of one bit lowers the sum.
        let cost = |bits: &[Vec<u8>]| -> f64 { bits.iter().zip(&deviations).map(|(bits, d)| loss(d, bits)).sum() };
        assert!((loss(&[2.0, 3.0], &[0, 1]) - (4.0 + 9.0 * lloyd_max(1).distortion)).abs() < 1e-12);
        let best = cost(&spent);
        for (from, to) in (0..8).flat_map(|a| (0..8).map(move |b| (a, b))) {
            let mut other = spent.clone();
            if spent[from / 4][from % 4] > 0 && spent[to / 4][to % 4] < 8 {
                other[from / 4][from % 4] -= 1;
                other[to / 4][to % 4] += 1;
                assert!(cost(&other) >= best - 1e-12, "{from} to {to}");
            }
        }
    }

    #[test]
    fn more_than_all_is_all_and_less_than_the_overhead_is_refused() {
        assert_eq!(spend(&[vec![1.0; 4]], &[0], 100.0).unwrap(), [[8u8; 4]]);
        assert_eq!(spend(&[vec![0.0; 4]], &[0], 4.0).unwrap(), [[0u8; 4]]);
        assert!(spend(&[vec![1.0; 4]], &[40], 4.0).unwrap_err().contains("alone take 11.000"));
        assert!(spend(&[], &[], 4.0).is_err());
    }
}
