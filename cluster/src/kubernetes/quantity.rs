//! Quantities, as Kubernetes writes them.

use std::collections::BTreeMap;

use super::KubernetesConfig;
use crate::error::{Error, Result};
use crate::resource::{Milli, Resources};

/// What a container asks for, by Kubernetes' names and in its quantities.
pub(super) fn quantities(config: &KubernetesConfig, wanted: &Resources) -> Result<BTreeMap<String, String>> {
    let refuse = |problem: String| {
        Err(Error::BadRequest { what: format!("{{{wanted}}} for a pod of Kubernetes"), problem })
    };
    let mut found = BTreeMap::new();
    if !wanted.cpu.is_zero() {
        found.insert("cpu".to_owned(), milli(wanted.cpu));
    }
    if wanted.memory.0 > 0 {
        found.insert("memory".to_owned(), wanted.memory.0.to_string());
    }
    if !wanted.gpu.fraction().is_zero() {
        return refuse("it gives GPUs as wholes only; ask for a whole one".into());
    }
    if !wanted.gpu.is_zero() {
        found.insert(config.gpu.clone(), wanted.gpu.units().to_string());
    }
    for (name, amount) in wanted.customs() {
        if !name.contains('/') || !amount.fraction().is_zero() {
            let problem =
                format!("`{name}` has to be whole, and named as nodes name it, as in `example.com/{name}`");
            return refuse(problem);
        }
        found.insert(name.to_owned(), amount.units().to_string());
    }
    Ok(found)
}

fn milli(amount: Milli) -> String {
    if amount.fraction().is_zero() {
        amount.units().to_string()
    } else {
        format!("{}m", amount.thousandths())
    }
}

/// A quantity of Kubernetes in thousandths, rounded down: `1900m`, `2`, `16Gi`, `0.5`, `3e3`.
pub(super) fn thousandths(quantity: &str) -> Option<u128> {
    const SUFFIXES: [(&str, u128); 14] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
        ("m", 0),
        ("", 1),
    ];
    let quantity = quantity.trim();
    let (number, unit) =
        SUFFIXES.iter().find_map(|(suffix, unit)| Some((quantity.strip_suffix(suffix)?, *unit)))?;
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<u32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let digits: u128 = format!("{whole}{fraction:0<3.3}").parse().ok()?;
    let scaled = digits.checked_mul(10u128.checked_pow(exponent)?)?;
    if unit == 0 { Some(scaled / 1000) } else { scaled.checked_mul(unit) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        for (text, expected) in [
            ("2", 2_000),
            ("1900m", 1_900),
            ("0.5", 500),
            ("1Ki", 1_024_000),
            ("16384Mi", 16_384 * 1_048_576 * 1_000),
            ("3e3", 3_000_000),
            ("1k", 1_000_000),
            ("1.5Gi", 1_610_612_736_000),
        ] {
            assert_eq!(thousandths(text), Some(expected), "{text}");
        }
        assert_eq!(thousandths("lots"), None);
        assert_eq!(thousandths(""), None);
    }

    #[test]
    fn a_pod_asks_in_the_names_of_its_cluster() {
        let config = KubernetesConfig { gpu: "amd.com/gpu".into(), ..KubernetesConfig::new("image") };
        let ask = |text: &str| quantities(&config, &text.parse().unwrap());
        let wanted = ask("cpu: 1.5, gpu: 2, memory: 1GiB, example.com/nic: 1").unwrap();
        let wanted: Vec<_> = wanted.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
        assert_eq!(wanted, ["amd.com/gpu=2", "cpu=1500m", "example.com/nic=1", "memory=1073741824"]);
        assert!(ask("gpu: 0.5").unwrap_err().to_string().contains("whole"));
        assert!(ask("license: 1").unwrap_err().to_string().contains("example.com/license"));
    }
}
