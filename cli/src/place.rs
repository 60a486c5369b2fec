//! Where in a RON file a key stands, so that whatever is wrong with its value can be shown there. A scanner, not a parser:
//! the file was read before.

/// A place in a text, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// Where the key at this path stands; the path's parts are struct fields and map keys.
pub(crate) fn find(text: &str, path: &str) -> Option<Place> {
    let wanted: Vec<&str> = path.split('.').collect();
    let mut scanner = Scanner { text, at: 0 };
    // For every bracket that is open: the key under way in it.
    let mut open: Vec<Option<&str>> = Vec::new();
    let mut last: Option<(usize, &str)> = None;
    while let Some(token) = scanner.next() {
        match token {
            Token::Open => open.push(None),
            Token::Close => drop(open.pop()),
            Token::Comma => set(&mut open, None),
            Token::Word(at, word) => {
                last = Some((at, word));
                continue;
            }
            Token::Colon => {
                let (at, key) = last.take()?;
                set(&mut open, Some(key));
                if open.iter().flatten().eq(wanted.iter()) {
                    return Some(self::at(text, at));
                }
            }
            Token::Other => {}
        }
        last = None;
    }
    None
}

fn set<'a>(open: &mut [Option<&'a str>], key: Option<&'a str>) {
    if let Some(top) = open.last_mut() {
        *top = key;
    }
}

/// The place of a byte.
pub(crate) fn at(text: &str, at: usize) -> Place {
    let before = &text[..at];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    Place { line, column }
}

enum Token<'a> {
    Open,
    Close,
    Comma,
    Colon,
    /// A name, or what stands in quotes, and where.
    Word(usize, &'a str),
    Other,
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_to(&mut self, end: Option<usize>) {
        self.at = end.map_or(self.text.len(), |end| self.at + end);
    }

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            let rest = self.rest();
            if rest.starts_with("//") {
                self.skip_to(rest.find('\n'));
            } else if rest.starts_with("/*") {
                self.skip_to(comment(rest));
            } else if rest.starts_with(char::is_whitespace) {
                self.skip_to(rest.find(|c: char| !c.is_whitespace()));
            } else {
                break;
            }
        }
        let (rest, at) = (self.rest(), self.at);
        let first = rest.chars().next()?;
        if let Some((start, end, length)) = string(rest) {
            self.at += length;
            return Some(Token::Word(at, &rest[start..end]));
        }
        let name = |c: char| c.is_alphanumeric() || c == '_';
        if name(first) {
            let rest = rest.strip_prefix("r#").unwrap_or(rest);
            let length = rest.find(|c: char| !name(c)).unwrap_or(rest.len());
            self.at = self.text.len() - rest.len() + length;
            return Some(Token::Word(at, &rest[..length]));
        }
        self.at += first.len_utf8();
        Some(match first {
            '(' | '[' | '{' => Token::Open,
            ')' | ']' | '}' => Token::Close,
            ',' => Token::Comma,
            ':' => Token::Colon,
            _ => Token::Other,
        })
    }
}

/// The length of a comment that may hold others.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    None
}

/// If a string or character begins here: where its content begins and ends, and its whole length.
fn string(text: &str) -> Option<(usize, usize, usize)> {
    if let Some(raw) = text.strip_prefix('r') {
        let marks = raw.len() - raw.trim_start_matches('#').len();
        if raw[marks..].starts_with('"') {
            let start = 1 + marks + 1;
            let close = format!("\"{}", "#".repeat(marks));
            let end = text[start..].find(&close).map_or(text.len(), |end| start + end);
            return Some((start, end, (end + close.len()).min(text.len())));
        }
    }
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some((1, at, at + 1)),
            _ => {}
        }
    }
    Some((1, text.len(), text.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r##"#![enable(implicit_some)]
// trainable: "comment"
(
    trainable: "res(net", /* config: (lr: /* nested */ 1) */
    config: Config(
        optim: Adam(lr: 0.1, betas: (0.9, 0.99)),
        text: r#"lr: ("#, c: ')',
        "quoted": 3, r#type: 1,
    ),
    stop: (metrics: { "val/acc": AtLeast(0.9) }),
)"##;

    #[test]
    fn keys_are_found_where_they_stand() {
        let at = |path: &str| find(FILE, path).map(|place| (place.line, place.column));
        assert_eq!(at("trainable"), Some((4, 5)));
        assert_eq!(at("config"), Some((5, 5)));
        assert_eq!(at("config.optim.lr"), Some((6, 21)));
        assert_eq!(at("config.optim.betas"), Some((6, 30)));
        assert_eq!(at("config.c"), Some((7, 27)));
        assert_eq!(at("config.quoted"), Some((8, 9)));
        assert_eq!(at("config.type"), Some((8, 22)));
        assert_eq!(at("stop.metrics.val/acc"), Some((10, 23)));
        assert_eq!(at("config.lr"), None);
        assert_eq!(at("lr"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ -~\nä]{0,60}", path in "[a-z.]{0,6}") {
            find(&text, &path);
        }
    }
}
