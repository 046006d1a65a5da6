//! Quantiles of the normal distribution and of Student's t.

/// The quantile of the standard normal distribution, by Acklam's rational approximation. Its relative error is below
/// 1.2e-9.
pub(super) fn normal_quantile(share: f64) -> f64 {
    const A: [f64; 6] = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    const B: [f64; 5] = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
    ];
    const C: [f64; 6] = [
        -7.784_894_002_430_293e-3,
        -3.223_964_580_411_365e-1,
        -2.400_758_277_161_838,
        -2.549_732_539_343_734,
        4.374_664_141_464_968,
        2.938_163_982_698_783,
    ];
    const D: [f64; 4] =
        [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416];
    let polynomial = |coefficients: &[f64], x: f64| coefficients.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        polynomial(&C, q) / (polynomial(&D, q) * q + 1.0)
    };
    if share < 0.024_25 {
        tail(share)
    } else if share > 1.0 - 0.024_25 {
        -tail(1.0 - share)
    } else {
        let q = share - 0.5;
        let r = q * q;
        polynomial(&A, r) * q / (polynomial(&B, r) * r + 1.0)
    }
}

/// The quantile of Student's t with `freedom` degrees of freedom, which may be any positive number. The distribution
/// function is integrated by Simpson's rule, and inverted by bisection.
pub(super) fn t_quantile(share: f64, freedom: f64) -> f64 {
    let target = (share - 0.5).abs();
    // With t = sqrt(freedom) tan(angle), the density becomes cos^(freedom - 1) on a bounded interval.
    let density = |angle: f64| angle.cos().powf(freedom - 1.0);
    let area = |to: f64| {
        const STEPS: usize = 2000;
        let step = to / STEPS as f64;
        let weight = |i: usize| if i == 0 || i == STEPS { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
        (0..=STEPS).map(|i| weight(i) * density(i as f64 * step)).sum::<f64>() * step / 3.0
    };
    let half = area(std::f64::consts::FRAC_PI_2 - 1e-12);
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2 - 1e-12);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if area(middle) / half * 0.5 < target { low = middle } else { high = middle }
    }
    (freedom.sqrt() * low.tan()).copysign(share - 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (share, expected) in
            [(0.5, 0.0), (0.8, 0.841_621), (0.975, 1.959_964), (0.999, 3.090_232), (0.01, -2.326_348)]
        {
            assert!((normal_quantile(share) - expected).abs() < 1e-5, "{share}");
        }
        for (freedom, expected) in [(1.0, 12.7062), (3.0, 3.1824), (9.0, 2.2622), (30.0, 2.0423), (1000.0, 1.9623)] {
            let found = t_quantile(0.975, freedom);
            assert!((found - expected).abs() < 2e-3, "{freedom}: {found}");
            assert!((t_quantile(0.025, freedom) + found).abs() < 1e-9);
        }
        assert!((t_quantile(0.8, 9.0) - 0.8834).abs() < 1e-3);
    }
}
