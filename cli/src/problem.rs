//! Why a command did not do what it was asked, with the exit code that says so.

use std::fmt;
use std::process::ExitCode;

/// The exit codes.
pub(crate) mod exit {
    /// The run, or the command, failed.
    pub(crate) const FAILED: u8 = 1;
    /// What was asked for cannot be: usage or configuration.
    pub(crate) const USAGE: u8 = 2;
    /// A study came to its end, and some of its trials failed.
    pub(crate) const SOME_FAILED: u8 = 3;
    /// The run was stopped and can be resumed.
    pub(crate) const RESUMABLE: u8 = 75;
    /// It was ended by force.
    pub(crate) const FORCED: u8 = 130;
}

/// What went wrong, for people, the root cause last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) code: u8,
    pub(crate) message: String,
}

pub(crate) type Outcome<T = ()> = Result<T, Problem>;

impl Problem {
    /// What was asked for cannot be.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Problem { code: exit::USAGE, message: message.into() }
    }

    /// It was tried and failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Problem { code: exit::FAILED, message: message.into() }
    }

    pub(crate) fn exit(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<regatta_train::Error> for Problem {
    fn from(error: regatta_train::Error) -> Self {
        use regatta_cluster::Error as Cluster;
        use regatta_train::Error as E;
        let code = match &error {
            E::Config { .. } | E::UnknownTrainable { .. } | E::RunExists { .. } | E::NoSuchRun { .. } => {
                exit::USAGE
            }
            E::Cluster(
                Cluster::Infeasible(_) | Cluster::BadResources { .. } | Cluster::BadRequest { .. },
            ) => exit::USAGE,
            E::Stopped { .. } => exit::RESUMABLE,
            _ => exit::FAILED,
        };
        Problem { code, message: chain(&error) }
    }
}

impl From<regatta_track::Error> for Problem {
    fn from(error: regatta_track::Error) -> Self {
        Problem::failed(chain(&error))
    }
}

impl From<regatta_tune::Error> for Problem {
    fn from(error: regatta_tune::Error) -> Self {
        use regatta_tune::Error as E;
        match error {
            E::Train(error) => error.into(),
            E::Track(error) => error.into(),
            E::Space { .. }
            | E::Config { .. }
            | E::Setting(_)
            | E::StudyExists { .. }
            | E::ChangedSpace { .. } => Problem::usage(chain(&error)),
            other => Problem::failed(chain(&other)),
        }
    }
}

impl From<regatta_cluster::Error> for Problem {
    fn from(error: regatta_cluster::Error) -> Self {
        regatta_train::Error::from(error).into()
    }
}

impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        Problem::failed(format!("cannot write the answer: {error}"))
    }
}

/// An error and what it came from, the root last, nothing said twice.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// The known word that was probably meant.
pub(crate) fn meant<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distance = |known: &str| strsim::damerau_levenshtein(&word.to_lowercase(), &known.to_lowercase());
    let near =
        known.into_iter().map(|known| (distance(known), known)).min_by_key(|(distance, _)| *distance)?;
    let allowed = (word.chars().count().max(near.1.chars().count()) / 3).max(1);
    (near.0 <= allowed).then_some(near.1)
}

/// `: did you mean x?`, or what there is.
pub(crate) fn advice<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    if let Some(meant) = meant(word, known.clone()) {
        return format!("; did you mean `{meant}`?");
    }
    let known: Vec<&str> = known.into_iter().take(20).collect();
    if known.is_empty() { "; there are none".into() } else { format!("; there is: {}", known.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_near_is_suggested() {
        assert_eq!(meant("lerning_rate", ["learning_rate", "epochs"]), Some("learning_rate"));
        assert_eq!(meant("epoch", ["learning_rate", "epochs"]), Some("epochs"));
        assert_eq!(meant("lr", ["learning_rate", "epochs"]), None);
        assert_eq!(advice("x", ["alpha", "beta"]), "; there is: alpha, beta");
    }
}
