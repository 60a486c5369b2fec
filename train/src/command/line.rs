//! What a program says in a line of its output.

use serde_json::Value;

/// A line that begins with `regatta:`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Said {
    pub(super) step: Option<u64>,
    pub(super) epoch: Option<u64>,
    pub(super) metrics: Vec<(String, f64)>,
    pub(super) checkpoint: Option<String>,
}

/// What the line says; `None` if it is not for us.
pub(super) fn read(line: &str) -> Option<Result<Said, String>> {
    let text = line.trim_start().strip_prefix("regatta:")?.trim();
    Some(understand(text))
}

fn understand(text: &str) -> Result<Said, String> {
    let value: Value =
        serde_json::from_str(&quoted(text)).map_err(|error| format!("it is no JSON: {error}"))?;
    let Value::Object(map) = value else { return Err("it is no JSON object".into()) };
    let mut said = Said::default();
    for (key, value) in map {
        let whole = || value.as_u64().ok_or_else(|| format!("`{key}` is {value}, which is no whole number"));
        match (key.as_str(), &value) {
            ("step", _) => said.step = Some(whole()?),
            ("epoch", _) => said.epoch = Some(whole()?),
            ("checkpoint", Value::String(folder)) => said.checkpoint = Some(folder.clone()),
            (_, value) => match number(value) {
                Some(number) => said.metrics.push((key, number)),
                None => return Err(format!("`{key}` is {value}, which is no number")),
            },
        }
    }
    Ok(said)
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Bool(yes) => Some(f64::from(u8::from(*yes))),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// Python writes NaN and infinities into JSON, where they have no place: puts them into quotes.
fn quoted(text: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(text.len() + 8), text);
    let mut inside = false;
    while let Some(c) = rest.chars().next() {
        let word =
            ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| !inside && rest.starts_with(word));
        let taken = match (c, word) {
            (_, Some(word)) => {
                out.extend(["\"", word, "\""]);
                word.len()
            }
            ('\\', None) if inside => {
                let length = 1 + rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&rest[..length]);
                length
            }
            (c, None) => {
                inside ^= c == '"';
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[taken..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_reports_and_checkpoints() {
        assert_eq!(read("loss 0.1"), None);
        let said = read(r#"  regatta: {"loss": 0.5, "step": 3, "epoch": 1, "best": true}"#).unwrap().unwrap();
        assert_eq!((said.step, said.epoch), (Some(3), Some(1)));
        assert_eq!(said.metrics, [("best".to_owned(), 1.0), ("loss".to_owned(), 0.5)]);
        let said = read(r#"regatta: {"checkpoint": "NaN/a\"b"}"#).unwrap().unwrap();
        assert_eq!(said.checkpoint.as_deref(), Some("NaN/a\"b"));
    }

    #[test]
    fn what_python_writes_of_numbers_that_are_none_is_understood() {
        let said = read(r#"regatta: {"a": NaN, "b": -Infinity, "c": Infinity}"#).unwrap().unwrap();
        assert!(said.metrics[0].1.is_nan());
        assert_eq!((said.metrics[1].1, said.metrics[2].1), (f64::NEG_INFINITY, f64::INFINITY));
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (line, why) in [
            ("regatta: loss 3", "no JSON"),
            ("regatta: [1]", "no JSON object"),
            (r#"regatta: {"step": 1.5}"#, "no whole number"),
            (r#"regatta: {"loss": "low"}"#, "no number"),
        ] {
            let error = read(line).unwrap().unwrap_err();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
