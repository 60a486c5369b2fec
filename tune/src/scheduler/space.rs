//! How population-based training changes configurations of a [`Space`]: numbers by a factor and clamped, grids and
//! categories to the next entry, and branches filled or left out as their choice says.

use serde_json::Value;

use super::draw::Draw;
use super::event::Config;
use super::perturb::Perturb;
use crate::space::{Domain, Point, Space};

impl Space {
    /// The parameter of this path, if the space has it.
    fn domain(&self, path: &str) -> Option<&Domain> {
        self.find(path).map(|index| &self.parameters()[index].domain)
    }
}

impl Perturb for Space {
    fn parameters(&self, config: &Config) -> Vec<String> {
        let paths = Space::parameters(self).iter().map(|parameter| &parameter.path);
        paths.filter(|path| config.contains_key(*path)).cloned().collect()
    }

    fn sample(&self, parameter: &str, quantile: f64) -> Value {
        self.domain(parameter).map_or(Value::Null, |domain| domain.json(domain.raw(quantile)))
    }

    fn place(&self, parameter: &str, value: &Value) -> Option<f64> {
        let domain = self.domain(parameter).filter(|domain| !domain.is_category())?;
        domain.parse(parameter, value).ok().map(|raw| domain.unit(raw))
    }

    fn neighbour(&self, parameter: &str, value: &Value, factor: f64) -> Value {
        let Some(domain) = self.domain(parameter) else { return value.clone() };
        let Ok(raw) = domain.parse(parameter, value) else { return value.clone() };
        let step = if factor < 1.0 { -1.0 } else { 1.0 };
        let moved = match domain {
            Domain::Normal { .. } => raw * factor,
            Domain::Float { low, high, step: None, .. } => (raw * factor).clamp(*low, *high),
            Domain::Float { low, high, step: Some(by), .. } => along(domain, raw, factor, (*low, *high, *by)),
            Domain::Int { low, high, step: by, .. } => {
                along(domain, raw, factor, (*low as f64, *high as f64, *by as f64))
            }
            Domain::Grid(_) | Domain::Category(_) => {
                (raw + step).clamp(0.0, domain.count().map_or(0.0, |count| count as f64 - 1.0))
            }
        };
        domain.json(if domain.contains(moved) { moved } else { raw })
    }

    fn settle(&self, config: Config, draw: &mut Draw) -> Config {
        let mut point = Point::empty(Space::parameters(self).len());
        for (index, parameter) in Space::parameters(self).iter().enumerate() {
            if !self.active(index, &point) {
                continue;
            }
            let given = config.get(&parameter.path);
            let raw = given.and_then(|value| parameter.domain.parse(&parameter.path, value).ok());
            point.set(index, Some(raw.unwrap_or_else(|| parameter.domain.raw(draw.unit()))));
        }
        self.values(&point).map(|(path, value)| (path.to_owned(), value)).collect()
    }
}

/// The value of a lattice that is nearest to `raw * factor`, but at least one step on, within its bounds.
fn along(domain: &Domain, raw: f64, factor: f64, (low, high, step): (f64, f64, f64)) -> f64 {
    let way = raw * factor - raw;
    let direction = if way == 0.0 { factor - 1.0 } else { way };
    let steps = (way / step).round().abs().max(1.0).copysign(direction);
    // Through the unit interval, so that the value is the very same as if it had been sampled.
    domain.raw(domain.unit((raw + steps * step).clamp(low, high)))
}
