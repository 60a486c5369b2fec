//! Losses with a long tail: a process that is as smooth everywhere fits them badly, and what tells good from better is
//! lost beside what tells bad from worse. The power transform of Yeo and Johnson bends them towards a normal distribution,
//! and never changes their order.

/// The powers among which the likeliest is chosen; 1 changes nothing.
const POWERS: std::ops::RangeInclusive<i32> = -20..=10;

/// The losses, bent. What is not finite stays.
pub(super) fn bent(losses: &[f64]) -> Vec<f64> {
    let finite: Vec<f64> = losses.iter().copied().filter(|l| l.is_finite()).collect();
    let Some((mean, deviation)) = moments(&finite).filter(|_| finite.len() > 2) else {
        return losses.to_vec();
    };
    let standard: Vec<f64> = finite.iter().map(|l| (l - mean) / deviation).collect();
    let slopes: f64 = standard.iter().map(|y| y.abs().ln_1p().copysign(*y)).sum();
    let likelihood = |power: f64| {
        let bent: Vec<f64> = standard.iter().map(|y| bend(*y, power)).collect();
        let (_, deviation) = moments(&bent)?;
        Some((power - 1.0) * slopes - bent.len() as f64 * deviation.ln())
    };
    let powers = POWERS.map(|tenths| f64::from(tenths) / 10.0);
    let best =
        powers.filter_map(|power| Some((likelihood(power)?, power))).max_by(|a, b| a.0.total_cmp(&b.0));
    let Some((_, power)) = best else { return losses.to_vec() };
    losses.iter().map(|l| if l.is_finite() { bend((l - mean) / deviation, power) } else { *l }).collect()
}

/// Mean and deviation, where there is any deviation that a double can say.
fn moments(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    let mean = values.iter().map(|v| v / n).sum::<f64>();
    let largest = values.iter().fold(0.0f64, |top, v| top.max((v - mean).abs()));
    let square = values.iter().map(|v| ((v - mean) / largest).powi(2)).sum::<f64>() / n;
    let deviation = largest * square.sqrt();
    (deviation.is_finite() && deviation > f64::MIN_POSITIVE).then_some((mean, deviation))
}

fn bend(y: f64, power: f64) -> f64 {
    let raised = |y: f64, power: f64| {
        if power.abs() < 1e-9 { y.ln_1p() } else { ((1.0 + y).powf(power) - 1.0) / power }
    };
    if y >= 0.0 { raised(y, power) } else { -raised(-y, 2.0 - power) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_tail_is_bent_and_order_is_kept() {
        let tail: Vec<f64> = (0..40).map(|i| (f64::from(i) * 0.4).exp()).collect();
        let bent = bent(&tail);
        assert!(bent.windows(2).all(|pair| pair[0] < pair[1]), "{bent:?}");
        let share = |v: &[f64]| (v[39] - v[35]) / (v[39] - v[0]);
        assert!(share(&tail) > 0.7 && share(&bent) < 0.35, "{} {}", share(&tail), share(&bent));
    }

    #[test]
    fn what_cannot_be_bent_stays() {
        assert_eq!(bent(&[1.0, 1.0, 1.0, 1.0]), [1.0; 4]);
        let huge = [-1e308, 1e308, 0.0, f64::INFINITY];
        assert!(bent(&huge).iter().all(|x| !x.is_nan()) && bent(&huge)[3] == f64::INFINITY);
    }
}
