//! A command line becomes words, with the configuration's values in them. No shell takes part: a value is never code.

use serde_json::Value;

use crate::{Error, Result};

/// The words of a line. Quotes and backslashes as in a shell; `{a.b}` is the configuration's value, `{{` a brace.
pub(super) fn of(line: &str, config: &Value) -> Result<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\'', None) | ('"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None | Some('"')) => {
                let next = chars.next().ok_or_else(|| wrong("it ends with a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            ('{', _) if chars.peek() == Some(&'{') => {
                chars.next();
                word.get_or_insert_default().push('{');
            }
            ('}', _) if chars.peek() == Some(&'}') => {
                chars.next();
                word.get_or_insert_default().push('}');
            }
            ('{', _) => {
                let mut key = String::new();
                loop {
                    match chars.next() {
                        Some('}') => break,
                        Some(c) => key.push(c),
                        None => return Err(wrong("a `{` is not closed; write `{{` for a brace")),
                    }
                }
                word.get_or_insert_default().push_str(&value(config, &key)?);
            }
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(wrong(&format!("a {open} is not closed")));
    }
    words.extend(word);
    if words.is_empty() {
        return Err(wrong("it is empty; write Command(\"program arguments\")"));
    }
    Ok(words)
}

fn wrong(why: &str) -> Error {
    Error::config("trainable", format!("the command cannot be read: {why}"))
}

fn value(config: &Value, key: &str) -> Result<String> {
    let found = key.split('.').try_fold(config, |value, part| value.get(part));
    match found {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(value @ (Value::Number(_) | Value::Bool(_))) => Ok(value.to_string()),
        Some(value) => Err(wrong(&format!("`{{{key}}}` is {value}, which is no single value"))),
        None => {
            let known: Vec<&str> =
                config.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
            let known = if known.is_empty() {
                "it has no keys".into()
            } else {
                format!("it has {}", known.join(", "))
            };
            Err(wrong(&format!("the configuration has no `{key}` for `{{{key}}}`; {known}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_words_and_never_code() {
        let config = json!({ "lr": 1e-3, "data": { "dir": "a b; rm -rf" }, "list": [1] });
        let words = |line| of(line, &config);
        assert_eq!(
            words("python t.py --lr={lr} {data.dir}").unwrap(),
            ["python", "t.py", "--lr=0.001", "a b; rm -rf"]
        );
        assert_eq!(
            words(r#"sh -c 'echo "{lr}" {{}}' "" a\ b"#).unwrap(),
            ["sh", "-c", "echo \"0.001\" {}", "", "a b"]
        );
        for (line, why) in [
            ("x {momentum}", "no `momentum`"),
            ("x {lr", "not closed"),
            ("x 'y", "not closed"),
            ("  ", "empty"),
            ("x {list}", "no single value"),
            ("x \\", "backslash"),
        ] {
            let error = words(line).unwrap_err().to_string();
            assert!(error.contains(why), "{line}: {error}");
        }
    }
}
