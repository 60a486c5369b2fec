//! What can go wrong in a search, and what to do about it.

/// Why a space, a configuration or a sampler was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The search space itself is wrong: correct the declaration at this path.
    #[error("the search space is wrong at `{path}`: {problem}")]
    Space {
        /// Where in the tree, its names joined by dots.
        path: String,
        /// What is wrong there, and what would be right.
        problem: String,
    },
    /// A configuration does not fit the space or the type it is meant for: correct the value at this path.
    #[error("the configuration does not fit at `{path}`: {problem}")]
    Config {
        /// Where in the tree, its names joined by dots.
        path: String,
        /// What is wrong there, and what would be right.
        problem: String,
    },
    /// A study's log does not fit the study: it was begun with another space, sampler or scheduler, or by another build. Take
    /// the ones it was begun with, or begin a new study.
    #[error("the study cannot go on: {problem}")]
    Study {
        /// What does not fit.
        problem: String,
    },
    /// A study of this name is there already: resume it, or give this one another name.
    #[error("study {name:?} exists already in {folder}: resume it, or give this one another name")]
    StudyExists {
        /// The study.
        name: String,
        /// Its folder.
        folder: String,
    },
    /// The study was begun with another search space. Go on with its own, begin a new study, or allow the change.
    #[error(
        "the study was begun with another search space:\n{diff}\ngive it back its space, begin a new study, or allow the change"
    )]
    ChangedSpace {
        /// What differs, a line a parameter.
        diff: String,
    },
    /// A setting of a scheduler or a stopper cannot be.
    #[error(transparent)]
    Setting(#[from] crate::scheduler::InvalidConfig),
    /// A scheduler broke the rules.
    #[error(transparent)]
    Scheduler(#[from] crate::scheduler::Misuse),
    /// Training failed where that is nobody trial's fault.
    #[error(transparent)]
    Train(#[from] regatta_train::Error),
    /// The study's store failed.
    #[error(transparent)]
    Track(#[from] regatta_track::Error),
    /// A sampler cannot work on this space or study: choose another, or change what it names.
    #[error("the sampler {sampler} cannot go on: {problem}")]
    Sampler {
        /// Which sampler.
        sampler: &'static str,
        /// What it cannot do, and what can.
        problem: String,
    },
    /// A study's results cannot be read or do not say what was asked.
    #[error("the results in {folder}: {problem}")]
    Results {
        /// The study's or trial's folder.
        folder: String,
        /// What is wrong there.
        problem: String,
    },
}

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn space(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Space { path: named(path.into()), problem: problem.into() }
    }

    pub(crate) fn results(folder: &std::path::Path, problem: impl ToString) -> Self {
        Self::Results { folder: folder.display().to_string(), problem: problem.to_string() }
    }

    pub(crate) fn config(path: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Config { path: named(path.into()), problem: problem.into() }
    }
}

/// The root of the tree has no name of its own.
fn named(path: String) -> String {
    if path.is_empty() || path == "." { "(root)".into() } else { path }
}
