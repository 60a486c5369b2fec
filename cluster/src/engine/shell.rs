//! Text for `/bin/sh`: programs, arguments and variables that mean only themselves.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::spawner::WorkerCommand;

/// The text as one word of the shell.
pub(crate) fn quote(text: &OsStr) -> OsString {
    let mut quoted = vec![b'\''];
    for &byte in text.as_bytes() {
        match byte {
            b'\'' => quoted.extend_from_slice(b"'\\''"),
            byte => quoted.push(byte),
        }
    }
    quoted.push(b'\'');
    OsString::from_vec(quoted)
}

/// A program and its arguments as one line.
pub(crate) fn words<'a>(words: impl IntoIterator<Item = &'a OsStr>) -> OsString {
    let mut line = OsString::new();
    for word in words {
        if !line.is_empty() {
            line.push(" ");
        }
        line.push(quote(word));
    }
    line
}

/// The lines that set these variables. A name the shell cannot spell is left out: no program of ours has one.
#[cfg(any(test, feature = "kubernetes", feature = "ray", feature = "slurm"))]
pub(crate) fn exports<'a>(variables: impl IntoIterator<Item = (&'a OsStr, &'a OsStr)>) -> OsString {
    let mut lines = OsString::new();
    for (name, value) in variables.into_iter().filter(|(name, _)| is_name(name)) {
        lines.push("export ");
        lines.push(name);
        lines.push("=");
        lines.push(quote(value));
        lines.push("\n");
    }
    lines
}

#[cfg(any(test, feature = "kubernetes", feature = "ray", feature = "slurm"))]
fn is_name(name: &OsStr) -> bool {
    let starts = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'_';
    let goes_on = |byte: &u8| starts(byte) || byte.is_ascii_digit();
    name.as_bytes().first().is_some_and(starts) && name.as_bytes().iter().all(goes_on)
}

/// All variables a command wants: this process's own first, where it inherits them. What an engine set for this process
/// alone is not handed on.
pub(crate) fn environment(command: &WorkerCommand) -> BTreeMap<OsString, OsString> {
    let own = |name: &OsStr| {
        let name = name.as_bytes();
        name.starts_with(b"SLURM")
            || name.starts_with(b"SBATCH_")
            || name.starts_with(b"SRUN_")
            || name == b"PWD"
    };
    let mut variables = BTreeMap::new();
    if command.inherit_env {
        variables.extend(std::env::vars_os().filter(|(name, _)| !own(name)));
    }
    variables.extend(command.env.iter().map(|(name, value)| (OsString::from(name), value.clone())));
    variables
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn whatever_is_quoted_comes_out_of_the_shell_as_it_went_in() {
        let odd = ["", " ", "it's", "$HOME `id` \"x\" \\", "two\nlines", "*", "-n", "\u{e9}", "';exit 1;'"];
        for text in odd {
            let value = OsStr::new(text);
            let script = exports([(OsStr::new("ODD"), value)]);
            let mut line = script;
            line.push("printf '%s|' \"$ODD\" ");
            line.push(words([value]));
            let said = Command::new("/bin/sh").arg("-c").arg(&line).output().unwrap();
            assert_eq!(String::from_utf8_lossy(&said.stdout), format!("{text}|{text}|"), "{line:?}");
        }
    }

    #[test]
    fn a_variable_the_shell_cannot_spell_is_left_out() {
        let value = OsStr::new("x");
        assert!(exports([(OsStr::new("BASH_FUNC_f%%"), value), (OsStr::new("1A"), value)]).is_empty());
    }
}
