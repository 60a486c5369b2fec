//! Several objectives at once: who is dominated by nobody, and how much of the space they dominate together. All losses
//! are minimised.

/// Whether `a` is nowhere worse than `b`, and somewhere better.
pub fn dominates(a: &[f64], b: &[f64]) -> bool {
    a.iter().zip(b).all(|(a, b)| a <= b) && a.iter().zip(b).any(|(a, b)| a < b)
}

/// The points that none dominates, by index. Of equal points all are in it.
pub fn front<P: AsRef<[f64]>>(points: &[P]) -> Vec<usize> {
    let ranks = ranks(points);
    (0..points.len()).filter(|i| ranks[*i] == 0).collect()
}

/// How many fronts have to be taken away before a point is in the front.
pub fn ranks<P: AsRef<[f64]>>(points: &[P]) -> Vec<usize> {
    let at = |i: usize| points[i].as_ref();
    let lexical = |a: &usize, b: &usize| {
        at(*a).iter().zip(at(*b)).map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne()).unwrap_or(a.cmp(b))
    };
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(lexical);
    // In this order nobody is dominated by a later one, so every point finds its front among those there are. A front
    // that dominates it is followed by none that does not: binary search.
    let mut fronts: Vec<Vec<usize>> = vec![];
    let mut ranks = vec![0; points.len()];
    for index in order {
        let beaten = |front: &Vec<usize>| front.iter().rev().any(|other| dominates(at(*other), at(index)));
        let rank = fronts.partition_point(beaten);
        if rank == fronts.len() {
            fronts.push(vec![]);
        }
        fronts[rank].push(index);
        ranks[index] = rank;
    }
    ranks
}

/// The volume that the points dominate below a reference point.
pub fn hypervolume<P: AsRef<[f64]>>(points: &[P], reference: &[f64]) -> f64 {
    let inside = |p: &&[f64]| p.iter().zip(reference).all(|(p, r)| p < r);
    let inside: Vec<&[f64]> = points.iter().map(AsRef::as_ref).filter(inside).collect();
    volume(&non_dominated(inside), reference)
}

fn non_dominated(points: Vec<&[f64]>) -> Vec<&[f64]> {
    let mut kept: Vec<&[f64]> = front(&points).into_iter().map(|i| points[i]).collect();
    kept.sort_by(|a, b| {
        a.iter().zip(*b).map(|(a, b)| a.total_cmp(b)).find(|o| o.is_ne()).unwrap_or(0.cmp(&0))
    });
    kept.dedup();
    kept
}

/// Of points in lexical order that do not dominate one another: a sweep in two dimensions, and by slices above (what the
/// first adds alone, and the rest).
fn volume(points: &[&[f64]], reference: &[f64]) -> f64 {
    match (points, reference) {
        ([], _) => 0.0,
        ([one], _) => one.iter().zip(reference).map(|(p, r)| r - p).product(),
        (_, [r]) => points.iter().map(|p| r - p[0]).fold(0.0, f64::max),
        (_, [r0, r1]) => {
            let mut ceiling = *r1;
            let mut sum = 0.0;
            for p in points {
                sum += (r0 - p[0]) * (ceiling - p[1]);
                ceiling = p[1];
            }
            sum
        }
        _ => (0..points.len()).map(|i| exclusive(points[i], &points[i + 1..], reference)).sum(),
    }
}

/// What a point dominates that none of the others does.
fn exclusive(point: &[f64], others: &[&[f64]], reference: &[f64]) -> f64 {
    let own: f64 = point.iter().zip(reference).map(|(p, r)| r - p).product();
    let limited: Vec<Vec<f64>> =
        others.iter().map(|o| o.iter().zip(point).map(|(o, p)| o.max(*p)).collect()).collect();
    own - volume(&non_dominated(limited.iter().map(Vec::as_slice).collect()), reference)
}

/// A reference point a little worse than all the points.
pub fn reference<P: AsRef<[f64]>>(points: &[P]) -> Vec<f64> {
    let objectives = points.first().map_or(0, |p| p.as_ref().len());
    let worst = |k: usize| {
        let finite = points.iter().map(|p| p.as_ref()[k]).filter(|v| v.is_finite());
        let worst = finite.fold(f64::NEG_INFINITY, f64::max);
        if worst == 0.0 || worst == f64::NEG_INFINITY { 1e-12 } else { (1.1 * worst).max(0.9 * worst) }
    };
    (0..objectives).map(worst).collect()
}

/// The `count` best points by index: whole fronts, and of the last one those that together dominate most, chosen one by
/// one.
pub fn best<P: AsRef<[f64]>>(points: &[P], count: usize) -> Vec<usize> {
    let ranks = ranks(points);
    let mut chosen: Vec<usize> = vec![];
    for rank in 0.. {
        let front: Vec<usize> = (0..points.len()).filter(|i| ranks[*i] == rank).collect();
        if front.is_empty() || chosen.len() == count {
            break;
        }
        if chosen.len() + front.len() <= count {
            chosen.extend(front);
            continue;
        }
        let values: Vec<&[f64]> = front.iter().map(|i| points[*i].as_ref()).collect();
        let reference = reference(&values);
        chosen.extend(spread(&values, count - chosen.len(), &reference).into_iter().map(|i| front[i]));
    }
    chosen
}

/// The greedy choice of points that dominate most together.
fn spread(points: &[&[f64]], count: usize, reference: &[f64]) -> Vec<usize> {
    let mut chosen: Vec<usize> = vec![];
    while chosen.len() < count {
        let taken: Vec<&[f64]> = chosen.iter().map(|i| points[*i]).collect();
        let gain = |i: usize| {
            let inside = points[i].iter().zip(reference).all(|(p, r)| p < r);
            if inside { exclusive(points[i], &taken, reference) } else { -1.0 }
        };
        let rest = (0..points.len()).filter(|i| !chosen.contains(i));
        let next = rest.map(|i| (gain(i), i)).reduce(|a, b| if b.0 > a.0 { b } else { a });
        match next {
            Some((_, i)) => chosen.push(i),
            None => break,
        }
    }
    chosen
}
