//! How many bits each latent channel gets.

/// The number of equal tiers of channels in a published schedule.
pub(super) const TIERS: usize = 8;
/// The largest number of bits of a channel.
const MOST: u8 = 8;

/// A rule that turns variances into bits.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Schedule {
    /// The bits of eight equal tiers. The strongest channels come first.
    Tiers([u8; TIERS]),
    /// Reverse water-filling: this many bits per channel on average. Each bit goes where it reduces the squared error
    /// most.
    Water(f64),
}

impl Schedule {
    /// The schedule for a mean number of bits. It is the published one, or is given as text, such as `8/4/2/1/1/0/0/0`
    /// or `water`.
    pub(super) fn read(mean: f64, text: Option<&str>) -> Result<Self, String> {
        let tiers = match text {
            Some("water") => return Ok(Self::Water(mean)),
            Some(text) => {
                let tiers: Vec<u8> =
                    text.split('/').map(|b| b.parse().ok().filter(|&b| b <= MOST)).collect::<Option<_>>().ok_or_else(
                        || format!("schedule: `{text}` is not eight numbers of bits up to {MOST}, as 4/2/2/2/0/0/0/0"),
                    )?;
                tiers
                    .try_into()
                    .map_err(|tiers: Vec<u8>| format!("schedule: {TIERS} tiers are needed, found {}", tiers.len()))?
            }
            None if mean == 2.0 => [8, 4, 2, 1, 1, 0, 0, 0],
            None if mean == 1.25 => [4, 2, 2, 2, 0, 0, 0, 0],
            None => return Err(format!("no schedule is known for {mean} bits: give one, or `schedule=water`")),
        };
        let given = f64::from(tiers.iter().map(|&b| u32::from(b)).sum::<u32>()) / TIERS as f64;
        if (given - mean).abs() > 1e-9 {
            return Err(format!("schedule: its mean is {given} bits, not {mean}"));
        }
        if tiers.windows(2).any(|w| w[0] < w[1]) {
            return Err("schedule: a tier has more bits than the one before it, whose channels are stronger".to_owned());
        }
        Ok(Self::Tiers(tiers))
    }

    /// The bits of each channel, for variances in falling order. A weaker channel never has more bits than a stronger
    /// one.
    pub(super) fn bits(&self, variances: &[f64]) -> Vec<u8> {
        let n = variances.len();
        match self {
            Self::Tiers(tiers) => (0..n).map(|i| tiers[i * TIERS / n]).collect(),
            Self::Water(mean) => {
                // With b bits, a Gaussian channel keeps the fraction 4^-b of its variance as error. Each bit goes to
                // the channel with the largest remaining error.
                let mut bits = vec![0u8; n];
                let left = |i: usize, bits: &[u8]| variances[i].max(0.0) * 0.25f64.powi(i32::from(bits[i]));
                for _ in 0..(mean * n as f64 + 1e-9) as usize {
                    let open = (0..n).filter(|&i| bits[i] < MOST);
                    let Some(best) = open.reduce(|a, b| if left(b, &bits) > left(a, &bits) { b } else { a }) else {
                        break;
                    };
                    bits[best] += 1;
                }
                bits
            }
        }
    }

    /// An upper bound on the fraction of channels that get bits.
    pub(super) fn kept(&self) -> f64 {
        match self {
            Self::Tiers(tiers) => tiers.iter().filter(|&&b| b > 0).count() as f64 / TIERS as f64,
            Self::Water(mean) => mean.min(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn schedules_meet_their_budget() {
        let variances: Vec<f64> = (0..64).map(|i| 100.0 * 0.8f64.powi(i)).collect();
        for (mean, text) in
            [(2.0, None), (1.25, None), (1.25, Some("4/4/1/1/0/0/0/0")), (2.0, Some("water")), (0.7, Some("water"))]
        {
            let bits = Schedule::read(mean, text).unwrap().bits(&variances);
            let total: u32 = bits.iter().map(|&b| u32::from(b)).sum();
            assert_eq!(total, (mean * 64.0) as u32, "{mean} {text:?}");
            assert!(bits.windows(2).all(|w| w[0] >= w[1]), "{bits:?}");
        }
    }

    #[test]
    fn water_levels_the_error_and_beats_tiers() {
        let variances: Vec<f64> = (0..64).map(|i| 100.0 * 0.8f64.powi(i)).collect();
        let error = |schedule: &Schedule| -> f64 {
            variances.iter().zip(schedule.bits(&variances)).map(|(v, b)| v * 0.25f64.powi(b.into())).sum()
        };
        let water = Schedule::Water(2.0);
        let left: Vec<f64> = variances
            .iter()
            .zip(water.bits(&variances))
            .filter(|(_, b)| *b > 0)
            .map(|(v, b)| v * 0.25f64.powi(b.into()))
            .collect();
        let (least, most) = left.iter().fold((f64::MAX, 0.0f64), |(a, b), &x| (a.min(x), b.max(x)));
        assert!(most <= 4.0 * least + 1e-9, "channels differ by more than one bit: {least} {most}");
        assert!(error(&water) < error(&Schedule::read(2.0, None).unwrap()));
        assert_eq!(
            Schedule::Water(2.0).bits(&[0.0; 8]),
            [8, 8, 0, 0, 0, 0, 0, 0],
            "without variance the order decides"
        );
    }

    #[test]
    fn schedules_that_cannot_be_are_refused() {
        for (mean, text, reason) in [
            (3.0, None, "no schedule is known"),
            (2.0, Some("8/4"), "8 tiers"),
            (2.0, Some("9/4/2/1/0/0/0/0"), "up to 8"),
            (2.0, Some("8/8/0/0/0/0/0/8"), "its mean is 3"),
            (2.0, Some("4/8/2/1/1/0/0/0"), "stronger"),
        ] {
            let error = Schedule::read(mean, text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }
}
