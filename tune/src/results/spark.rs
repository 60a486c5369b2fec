//! A curve in a line of text.

/// A curve as blocks, from the least value to the greatest, in at most `width` characters: where there are more values,
/// each character is the mean of a stretch. What is not a finite number is a space.
#[must_use]
pub fn sparkline(values: impl IntoIterator<Item = f64>, width: usize) -> String {
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let values: Vec<f64> = values.into_iter().collect();
    let width = width.min(values.len());
    let stretch = |i: usize| {
        let known =
            values[i * values.len() / width..(i + 1) * values.len() / width].iter().filter(|v| v.is_finite());
        let (sum, count) = known.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
        sum / count
    };
    let means: Vec<f64> = (0..width).map(stretch).collect();
    let finite = || means.iter().copied().filter(|mean| mean.is_finite());
    let (low, high) = (finite().fold(f64::INFINITY, f64::min), finite().fold(f64::NEG_INFINITY, f64::max));
    let block = |mean: f64| match mean.is_finite() {
        false => ' ',
        // A flat curve runs along the bottom.
        true if high <= low => BLOCKS[0],
        true => BLOCKS[(((mean - low) / (high - low)) * 7.0).round() as usize],
    };
    means.into_iter().map(block).collect()
}
