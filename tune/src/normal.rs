//! The normal distribution: its function, its inverse, and their logarithms where they are too small for a double.

use std::f64::consts::{FRAC_1_SQRT_2, PI, SQRT_2};

/// ln sqrt(2 pi).
pub(crate) const LN_SQRT_2PI: f64 = 0.918_938_533_204_672_8;

/// The probability below `z`.
pub(crate) fn cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z * FRAC_1_SQRT_2)
}

/// The density at `z`.
pub(crate) fn pdf(z: f64) -> f64 {
    (-0.5 * z * z - LN_SQRT_2PI).exp()
}

/// The logarithm of [`cdf`], good far into the left tail.
pub(crate) fn log_cdf(z: f64) -> f64 {
    if z > -10.0 { cdf(z).ln() } else { -0.5 * z * z - LN_SQRT_2PI - (-z).ln() + mills(z).ln() }
}

/// `cdf(z) / pdf(z)`, good far into the left tail.
pub(crate) fn cdf_over_pdf(z: f64) -> f64 {
    if z > -10.0 { cdf(z) / pdf(z) } else { mills(z) / -z }
}

/// `|z| cdf(z) / pdf(z)` for z <= -10, by its continued fraction.
fn mills(z: f64) -> f64 {
    let x = -z;
    let mut tail = x;
    for k in (1..=40).rev() {
        tail = x + f64::from(k) / tail;
    }
    x / tail
}

/// The probability between `a` and `b`, without cancellation in the right tail.
pub(crate) fn between(a: f64, b: f64) -> f64 {
    if a > 0.0 { cdf(-a) - cdf(-b) } else { cdf(b) - cdf(a) }
}

/// The inverse of [`cdf`] on (0, 1): Acklam's rational approximation, made exact by one step of Halley's method.
pub(crate) fn quantile(p: f64) -> f64 {
    if p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    if p >= 1.0 {
        return f64::INFINITY;
    }
    const A: [f64; 6] = [
        -3.969683028665376e1,
        2.209460984245205e2,
        -2.759285104469687e2,
        1.38357751867269e2,
        -3.066479806614716e1,
        2.506628277459239,
    ];
    const B: [f64; 5] = [
        -5.447609879822406e1,
        1.615858368580409e2,
        -1.556989798598866e2,
        6.680131188771972e1,
        -1.328068155288572e1,
    ];
    const C: [f64; 6] = [
        -7.784894002430293e-3,
        -3.223964580411365e-1,
        -2.400758277161838,
        -2.549732539343734,
        4.374664141464968,
        2.938163982698783,
    ];
    const D: [f64; 4] = [7.784695709041462e-3, 3.224671290700398e-1, 2.445134137142996, 3.754408661907416];
    let poly = |c: &[f64], x: f64| c.iter().fold(0.0, |sum, c| sum * x + c);
    let tail = |p: f64| {
        let q = (-2.0 * p.ln()).sqrt();
        poly(&C, q) / (poly(&D, q) * q + 1.0)
    };
    let x = if p < 0.02425 {
        tail(p)
    } else if p > 1.0 - 0.02425 {
        -tail(1.0 - p)
    } else {
        let q = p - 0.5;
        let r = q * q;
        poly(&A, r) * q / (poly(&B, r) * r + 1.0)
    };
    let e = 0.5 * libm::erfc(-x / SQRT_2) - p;
    let u = e * (2.0 * PI).sqrt() * (x * x / 2.0).exp();
    x - u / (1.0 + x * u / 2.0)
}

/// e^x for x <= 0, to a few units in the last place; zero is as good as 1e-304. It is the same on every
/// machine, and a compiler can do several at once.
#[inline(always)]
pub(crate) fn exp(x: f64) -> f64 {
    // 2^52 + 2^51: adding it leaves a number's integer part in the low bits.
    const MAGIC: f64 = 6_755_399_441_055_744.0;
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let x = if x > -700.0 { x } else { -700.0 };
    let shifted = x * std::f64::consts::LOG2_E + MAGIC;
    let k = shifted - MAGIC;
    let r = (x - k * LN2_HIGH) - k * LN2_LOW;
    // Taylor's series to the 12th power: |r| <= 0.35.
    let mut p = 1.0 / 479_001_600.0;
    for c in [
        1.0 / 39_916_800.0,
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    p * f64::from_bits((shifted.to_bits() << 52).wrapping_add(0x3ff0_0000_0000_0000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exp() {
        for i in 0..70_000 {
            let x = -f64::from(i) * 0.01;
            assert!((exp(x) / x.exp() - 1.0).abs() < 1e-14, "{x}");
        }
    }

    /// Figures of mpmath, to 15 digits.
    #[test]
    fn agrees_with_known_figures() {
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        near(cdf(-3.0), 1.349_898_031_630_095e-3);
        near(quantile(0.975), 1.959_963_984_540_054);
        near(quantile(1e-9), -5.997_807_015_007_686);
        near(log_cdf(-40.0), -804.608_442_013_754);
        near(log_cdf(-5.0), -15.064_998_393_988_726);
        near(cdf_over_pdf(-10.0), 9.902_859_647_173_19e-2);
        let seam = cdf_over_pdf(-10.0 + 1e-12) / cdf_over_pdf(-10.0 - 1e-12);
        assert!((seam - 1.0).abs() < 1e-11, "{seam}");
    }
}
