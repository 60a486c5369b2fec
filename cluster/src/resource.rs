//! What a worker needs and what a node has: CPUs, GPUs, memory and whatever else a site counts.
//!
//! Amounts are integers (thousandths of a unit, bytes), so that a thousand additions and subtractions come back to
//! exactly zero; a float would leave 0.0000001 of a GPU behind and a gang waiting for it for ever.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};

/// Thousandths of a unit: half a GPU is `Milli::from_thousandths(500)`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Milli(u64);

impl Milli {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// One whole unit.
    pub const ONE: Self = Self(1000);

    /// So many whole units.
    #[must_use]
    pub const fn whole(units: u32) -> Self {
        Self(units as u64 * 1000)
    }

    /// So many thousandths of a unit.
    #[must_use]
    pub const fn from_thousandths(thousandths: u64) -> Self {
        Self(thousandths)
    }

    /// The amount in thousandths.
    #[must_use]
    pub const fn thousandths(self) -> u64 {
        self.0
    }

    /// The whole units in it, rounded down.
    #[must_use]
    pub const fn units(self) -> u64 {
        self.0 / 1000
    }

    /// What is left beyond the whole units.
    #[must_use]
    pub const fn fraction(self) -> Self {
        Self(self.0 % 1000)
    }

    /// Whether there is nothing.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    fn read(text: &str) -> Option<Self> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
            return None;
        }
        let fraction = fraction.trim_end_matches('0');
        if fraction.len() > 3 {
            return None;
        }
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let thousandths: u64 = format!("{fraction:0<3}").parse().ok()?;
        whole.checked_mul(1000)?.checked_add(thousandths).map(Self)
    }
}

impl fmt::Display for Milli {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 1000 {
            0 => write!(f, "{}", self.0 / 1000),
            rest => write!(f, "{}.{}", self.0 / 1000, format!("{rest:03}").trim_end_matches('0')),
        }
    }
}

/// Bytes of memory, read and shown with binary suffixes (`512MiB`, `4GiB`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Bytes(pub u64);

const SUFFIXES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

impl Bytes {
    /// So many mebibytes.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// So many gibibytes.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    fn read(text: &str) -> Option<Self> {
        let (number, unit) = SUFFIXES
            .iter()
            .find_map(|(suffix, unit)| Some((strip_suffix_ignoring_case(text, suffix)?, *unit)))
            .unwrap_or((text, 1));
        let milli = Milli::read(number.trim())?.thousandths();
        let bytes = u128::from(milli) * u128::from(unit) / 1000;
        u64::try_from(bytes).ok().map(Self)
    }
}

fn strip_suffix_ignoring_case<'a>(text: &'a str, suffix: &str) -> Option<&'a str> {
    let at = text.len().checked_sub(suffix.len())?;
    let (head, tail) = (text.get(..at)?, text.get(at..)?);
    tail.eq_ignore_ascii_case(suffix).then_some(head)
}

impl fmt::Display for Bytes {
    /// The largest binary unit, exactly where that takes at most three decimals; bytes otherwise.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, unit) in &SUFFIXES[..4] {
            let scaled = u128::from(self.0) * 1000;
            if self.0 >= *unit && scaled.is_multiple_of(u128::from(*unit)) {
                return write!(f, "{}{suffix}", Milli((scaled / u128::from(*unit)) as u64));
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// An amount of every kind of resource: what one worker asks for, or what a node has.
///
/// ```
/// use regatta_cluster::Resources;
///
/// let worker: Resources = "cpu: 2, gpu: 0.5, memory: 4GiB, license: 1".parse()?;
/// assert_eq!(worker, Resources::cpus(2).with_gpu_thousandths(500).with_memory_gib(4).with_custom("license", 1)?);
/// assert_eq!(worker.to_string(), "cpu: 2, gpu: 0.5, memory: 4GiB, license: 1");
/// # Ok::<_, regatta_cluster::Error>(())
/// ```
///
/// Its written form (a string, or a map of names to numbers and strings) is the same in configuration files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resources {
    /// CPUs; a part of one shares that CPU with other workers.
    pub cpu: Milli,
    /// GPUs: a whole number, or a part of a single one.
    pub gpu: Milli,
    /// Memory; zero asks for none in particular and sets no limit.
    pub memory: Bytes,
    custom: BTreeMap<String, Milli>,
}

impl Resources {
    /// Nothing at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// So many whole CPUs and nothing else.
    #[must_use]
    pub fn cpus(n: u32) -> Self {
        Self { cpu: Milli::whole(n), ..Self::default() }
    }

    /// The same with this many thousandths of a CPU.
    #[must_use]
    pub fn with_cpu_thousandths(mut self, thousandths: u64) -> Self {
        self.cpu = Milli(thousandths);
        self
    }

    /// The same with so many whole GPUs.
    #[must_use]
    pub fn with_gpus(mut self, n: u32) -> Self {
        self.gpu = Milli::whole(n);
        self
    }

    /// The same with this many thousandths of a GPU.
    #[must_use]
    pub fn with_gpu_thousandths(mut self, thousandths: u64) -> Self {
        self.gpu = Milli(thousandths);
        self
    }

    /// The same with this much memory.
    #[must_use]
    pub fn with_memory(mut self, memory: Bytes) -> Self {
        self.memory = memory;
        self
    }

    /// The same with so many gibibytes of memory.
    #[must_use]
    pub fn with_memory_gib(self, n: u64) -> Self {
        self.with_memory(Bytes::gib(n))
    }

    /// The same with so many whole units of a resource of your own naming.
    pub fn with_custom(mut self, name: &str, units: u32) -> Result<Self> {
        self.set_custom(name, Milli::whole(units)).map_err(|problem| parse_error(name, problem))?;
        Ok(self)
    }

    /// How much of a custom resource there is.
    #[must_use]
    pub fn custom(&self, name: &str) -> Milli {
        self.custom.get(name).copied().unwrap_or_default()
    }

    /// The custom resources by name; none is zero.
    pub fn customs(&self) -> impl Iterator<Item = (&str, Milli)> {
        self.custom.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Sets a custom resource whose name was checked when the node was described; zero is shown by absence.
    pub(crate) fn restore_custom(&mut self, name: &str, amount: Milli) {
        if !amount.is_zero() {
            self.custom.insert(name.to_owned(), amount);
        }
    }

    /// What is left when this is taken away, nothing where there is less than that.
    #[cfg(feature = "ray")]
    pub(crate) fn less(mut self, taken: &Self) -> Self {
        let rest = |all: Milli, part: Milli| Milli(all.0.saturating_sub(part.0));
        (self.cpu, self.gpu) = (rest(self.cpu, taken.cpu), rest(self.gpu, taken.gpu));
        self.memory = Bytes(self.memory.0.saturating_sub(taken.memory.0));
        for (name, amount) in &mut self.custom {
            *amount = rest(*amount, taken.custom(name));
        }
        self.custom.retain(|_, amount| !amount.is_zero());
        self
    }

    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Sets one resource by its written name and amount.
    fn set(&mut self, name: &str, amount: &str) -> std::result::Result<(), String> {
        if name == "memory" {
            self.memory = Bytes::read(amount)
                .ok_or_else(|| format!("`{amount}` is no amount of memory (512MiB, 4GiB, 16GB)"))?;
            return Ok(());
        }
        if let Some(meant) = ["cpu", "gpu", "memory"].iter().find(|known| looks_like(name, known)) {
            return Err(format!("did you mean `{meant}` where it says `{name}`?"));
        }
        let amount = Milli::read(amount)
            .ok_or_else(|| format!("`{amount}` is no amount of {name} (2, 0.5; at most three decimals)"))?;
        match name {
            "cpu" => self.cpu = amount,
            "gpu" if amount > Milli::ONE && !amount.fraction().is_zero() => {
                return Err(format!("gpu: {amount} is neither whole nor a part of a single GPU"));
            }
            "gpu" => self.gpu = amount,
            _ => self.set_custom(name, amount)?,
        }
        Ok(())
    }

    fn set_custom(&mut self, name: &str, amount: Milli) -> std::result::Result<(), String> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'/');
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(format!("`{name}` is no name for a resource (letters, digits, `_`, `-`, `.`, `/`)"));
        }
        if matches!(name, "cpu" | "gpu" | "memory") {
            return Err(format!("`{name}` is built in and cannot be a custom resource"));
        }
        match amount.is_zero() {
            true => self.custom.remove(name),
            false => self.custom.insert(name.to_owned(), amount),
        };
        Ok(())
    }
}

/// `CPU`, `gpus`, `num_cpus` and `mem` would otherwise silently become custom resources that no node has.
fn looks_like(name: &str, known: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let bare = lower.trim_start_matches("num_").trim_end_matches('s');
    (bare == known && name != known) || (known == "memory" && matches!(bare, "mem" | "ram"))
}

fn parse_error(text: &str, problem: String) -> Error {
    Error::BadResources { text: text.to_owned(), problem }
}

impl FromStr for Resources {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut resources = Self::default();
        let mut seen = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (name, amount) = item
                .split_once([':', '='])
                .ok_or_else(|| parse_error(text, format!("`{item}` is not `name: amount`")))?;
            let name = name.trim();
            if seen.contains(&name) {
                return Err(parse_error(text, format!("`{name}` stands there twice")));
            }
            seen.push(name);
            resources.set(name, amount.trim()).map_err(|problem| parse_error(text, problem))?;
        }
        Ok(resources)
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.cpu.is_zero() {
            parts.push(format!("cpu: {}", self.cpu));
        }
        if !self.gpu.is_zero() {
            parts.push(format!("gpu: {}", self.gpu));
        }
        if self.memory.0 > 0 {
            parts.push(format!("memory: {}", self.memory));
        }
        parts.extend(self.customs().map(|(name, amount)| format!("{name}: {amount}")));
        f.write_str(if parts.is_empty() { "nothing" } else { "" })?;
        f.write_str(&parts.join(", "))
    }
}

impl Serialize for Resources {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let text = if self.is_none() { String::new() } else { self.to_string() };
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Resources {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(ResourcesVisitor)
    }
}

struct ResourcesVisitor;

impl<'de> de::Visitor<'de> for ResourcesVisitor {
    type Value = Resources;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("resources, as \"cpu: 2, gpu: 0.5, memory: 4GiB\" or a map of names to amounts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Resources, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> std::result::Result<Resources, A::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Amount {
            Whole(u64),
            Part(f64),
            Text(String),
        }
        let mut resources = Resources::default();
        while let Some((name, amount)) = map.next_entry::<String, Amount>()? {
            let amount = match amount {
                Amount::Whole(n) => n.to_string(),
                Amount::Part(x) => x.to_string(),
                Amount::Text(text) => text,
            };
            resources.set(&name, amount.trim()).map_err(de::Error::custom)?;
        }
        Ok(resources)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(text: &str) -> String {
        text.parse::<Resources>().unwrap_err().to_string()
    }

    #[test]
    fn written_and_read_back_exactly() {
        for text in [
            "cpu: 1",
            "cpu: 0.001, gpu: 0.25",
            "gpu: 8, memory: 1.5GiB",
            "memory: 1B",
            "cpu: 3.5, a/b.c: 0.125",
        ] {
            assert_eq!(text.parse::<Resources>().unwrap().to_string(), text);
        }
        assert_eq!("".parse::<Resources>().unwrap(), Resources::none());
        assert_eq!("memory: 2 gb".parse::<Resources>().unwrap().memory, Bytes(2_000_000_000));
        assert_eq!("cpu=2".parse::<Resources>().unwrap(), Resources::cpus(2));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_advice() {
        assert!(problem("gpus: 1").contains("did you mean `gpu`"));
        assert!(problem("num_cpus: 1").contains("did you mean `cpu`"));
        assert!(problem("mem: 1GiB").contains("did you mean `memory`"));
        assert!(problem("gpu: 1.5").contains("neither whole"));
        assert!(problem("cpu: 0.0001").contains("three decimals"));
        assert!(problem("cpu: -1").contains("no amount"));
        assert!(problem("cpu: 99999999999999999999").contains("no amount"));
        assert!(problem("cpu: 1, cpu: 2").contains("twice"));
        assert!(problem("cpu").contains("name: amount"));
        assert!(problem("memory: 4XB").contains("no amount of memory"));
    }

    #[test]
    fn maps_and_strings_mean_the_same_in_a_file() {
        let map: Resources =
            serde_json::from_str(r#"{"cpu": 2, "gpu": 0.5, "memory": "4GiB", "tpu": 1}"#).unwrap();
        let text: Resources = serde_json::from_str(r#""cpu: 2, gpu: 0.5, memory: 4GiB, tpu: 1""#).unwrap();
        assert_eq!(map, text);
        let there_and_back =
            serde_json::from_str::<Resources>(&serde_json::to_string(&map).unwrap()).unwrap();
        assert_eq!(map, there_and_back);
        assert!(serde_json::from_str::<Resources>(r#"{"gpu": 1.5}"#).is_err());
    }
}
