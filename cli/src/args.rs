//! What can be typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::runs::ROOT;
use crate::term::Mode;

/// Distributed training: runs that survive.
#[derive(Debug, Parser)]
#[command(version, propagate_version = false, arg_required_else_help = true, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print JSON in place of text
    #[arg(long, global = true)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Train what an experiment file says
    Train(Train),
    /// Search for the best configuration, as an experiment file's `tune` section says
    Tune(Tune),
    /// Go on with a run or a study that was stopped, failed or lost its controller
    Resume(Resume),
    /// Submit a run or study, or going on with one, as a job of its engine
    Submit(Submit),
    /// List jobs that were submitted
    Jobs(Jobs),
    /// Follow a job until it ends; Ctrl-C leaves it alone
    Attach(Attach),
    /// Ask a job's run to save and leave, and end it
    Cancel(Cancel),
    /// Print what submitting would hand to the engine
    Render(Submit),
    /// What a job runs
    #[command(hide = true)]
    Drive,
    /// Run a program N times with torchrun's environment
    Launch(Launch),
    /// List runs
    Ls(Ls),
    /// Show a run (metrics, checkpoints, attempts, why it failed), a study (its trials, the best first) or a trial
    Show(Show),
    /// Compare runs, and trials of studies: best and last, over seeds, and how far behind the best
    Compare(Compare),
    /// Show how two runs, trials or studies differ: configuration, environment, git
    Diff(Diff),
    /// Write a study's trials to a file for other programs, and plots of it
    Export(Export),
    /// Print what a run's ranks wrote
    Logs(Logs),
    /// Look at checkpoints, check them, export them and clean up
    #[command(subcommand)]
    Ckpt(regatta_checkpoint::cli::Command),
    /// Check, print and explain an experiment's configuration
    #[command(subcommand)]
    Config(Config),
    /// Show what this machine has, and what this program can train
    Env,
    /// Print a shell's completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// An experiment file, and what changes it.
#[derive(Debug, Args)]
pub(crate) struct Source {
    /// The experiment file
    pub(crate) file: PathBuf,
    /// Values to set: `optim.lr=0.01`, `scaling.workers=2`
    pub(crate) overrides: Vec<String>,
}

/// What is set so often that it has options of its own.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// The run's name; one is drawn otherwise
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The experiment the run belongs to
    #[arg(long)]
    pub(crate) experiment: Option<String>,
    /// How many workers
    #[arg(long, short)]
    pub(crate) workers: Option<String>,
    /// Where runs lie: a folder or an object store's URL
    #[arg(long)]
    pub(crate) storage: Option<String>,
    /// The seed
    #[arg(long)]
    pub(crate) seed: Option<u64>,
}

#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) common: Common,
    /// Drive the run in this process, which is an allocation's shell or a job of the engine's
    #[arg(long)]
    pub(crate) here: bool,
    /// Print the plan and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Two batches through training, evaluation and saving, and then a restart that restores them
    #[arg(long)]
    pub(crate) fast_dev_run: bool,
    #[command(flatten)]
    pub(crate) show: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct Tune {
    #[command(flatten)]
    pub(crate) source: Source,
    #[command(flatten)]
    pub(crate) common: Common,
    /// How many trials
    #[arg(long, short = 'n')]
    pub(crate) samples: Option<u64>,
    /// How many trials at once
    #[arg(long, short = 'j')]
    pub(crate) concurrent: Option<usize>,
    /// Drive the study in this process, which is an allocation's shell or a job of the engine's
    #[arg(long)]
    pub(crate) here: bool,
    /// Print what would be searched and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) show: Shown,
}

/// How progress is shown, on standard error.
#[derive(Debug, Args)]
pub(crate) struct Shown {
    /// How progress is shown
    #[arg(long, value_enum, default_value_t = Mode::Auto)]
    pub(crate) progress: Mode,
    /// Show the workers' log lines too
    #[arg(long, short)]
    pub(crate) verbose: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// The run: its name, the beginning of it, its folder, or its URL in an object store
    pub(crate) run: String,
    /// How many workers go on with it; as many as before otherwise
    #[arg(long, short)]
    pub(crate) workers: Option<usize>,
    /// Of a study: how many trials there are to be in all, or `+20` for so many more
    #[arg(long)]
    pub(crate) samples: Option<String>,
    /// Of a study: how many trials at once
    #[arg(long)]
    pub(crate) concurrent: Option<usize>,
    /// Of a study: go on though the search space was changed
    #[arg(long)]
    pub(crate) allow_changed_space: bool,
    /// Drive the run in this process, which is an allocation's shell or a job of the engine's
    #[arg(long)]
    pub(crate) here: bool,
    /// What places them from now on, as in `Local` or `Slurm(nodes: 2)`; as before otherwise
    #[arg(long)]
    pub(crate) engine: Option<String>,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
    #[command(flatten)]
    pub(crate) show: Shown,
}

#[derive(Debug, Args)]
pub(crate) struct Submit {
    /// The experiment file, of a study if it has a `tune` section; or what to go on with: its name, the beginning of it, or its
    /// folder
    pub(crate) what: PathBuf,
    /// Values to set: `optim.lr=0.01`, `engine.nodes=2`, `tune.samples=40`
    pub(crate) overrides: Vec<String>,
    #[command(flatten)]
    pub(crate) common: Common,
    /// Where runs lie that are gone on with
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
    /// Follow the job until it ends
    #[arg(long)]
    pub(crate) attach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Jobs {
    /// Only those that are not over
    #[arg(long)]
    pub(crate) active: bool,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// The job: its name, the beginning of it, or its run
    pub(crate) job: String,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Cancel {
    /// The job: its name, the beginning of it, or its run
    pub(crate) job: String,
    /// How long the run gets to finish its step and save, in seconds
    #[arg(long, default_value_t = 60.0)]
    pub(crate) grace: f64,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// How many processes
    #[arg(short = 'n', long = "nproc-per-node", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) processes: u16,
    /// How often the processes are started again after one failed
    #[arg(long, default_value_t = 0)]
    pub(crate) max_restarts: u32,
    /// The port at which rank 0 listens; a free one is taken otherwise
    #[arg(long)]
    pub(crate) master_port: Option<u16>,
    /// How long processes get to end after SIGTERM, in seconds
    #[arg(long, default_value_t = 30.0)]
    pub(crate) grace: f64,
    /// Write each rank's output to attempt_N/rank_R.log in this folder, too
    #[arg(long)]
    pub(crate) log_dir: Option<PathBuf>,
    /// The program and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub(crate) program: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Ls {
    /// Only this experiment's
    pub(crate) experiment: Option<String>,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The run or study: its name, the beginning of it, or its folder; or a trial: STUDY/7
    pub(crate) run: String,
    /// How many of a study's trials; 0 is all
    #[arg(long, short = 'n', default_value_t = 20)]
    pub(crate) trials: usize,
    #[command(flatten)]
    pub(crate) judge: Judge,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

/// By what trials and runs are judged.
#[derive(Debug, Args)]
pub(crate) struct Judge {
    /// The metric; a study's own otherwise
    #[arg(long)]
    pub(crate) metric: Option<String>,
    /// Which way it gets better
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Better>,
    /// Which of its values counts: last, best, average or last-5
    #[arg(long, value_parser = crate::judge::scope)]
    pub(crate) by: Option<regatta_tune::results::Scope>,
}

/// Which way a metric gets better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Better {
    /// Less is better
    Min,
    /// More is better
    Max,
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// Runs, studies (their best trials) and trials: STUDY/7, or numbers after their study
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
    #[command(flatten)]
    pub(crate) judge: Judge,
    /// How many trials of each study; 0 is all
    #[arg(long, default_value_t = 10)]
    pub(crate) top: usize,
    /// The part of the configuration that is the seed
    #[arg(long, default_value = "seed")]
    pub(crate) seed: String,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// Two runs, studies or trials: STUDY/7, or numbers after their study
    #[arg(required = true)]
    pub(crate) what: Vec<String>,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The study
    pub(crate) study: String,
    /// The file, whose ending tells its format; standard output otherwise
    pub(crate) file: Option<PathBuf>,
    /// As comma-separated values
    #[arg(long, conflicts_with_all = ["parquet", "json"])]
    pub(crate) csv: bool,
    /// As Parquet
    #[arg(long, conflicts_with = "json")]
    pub(crate) parquet: bool,
    /// Write plots (SVG) into this folder
    #[arg(long)]
    pub(crate) plots: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) judge: Judge,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The run: its name, the beginning of it, or its folder; or a job, for what its driver wrote
    pub(crate) run: String,
    /// Only this rank's
    pub(crate) rank: Option<u32>,
    /// Of this attempt; the last one otherwise
    #[arg(long)]
    pub(crate) attempt: Option<u32>,
    /// Go on as lines are written, until the run is over
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Where runs lie
    #[arg(long, default_value = ROOT)]
    pub(crate) root: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Check an experiment without starting anything
    Check(Source),
    /// Print the experiment with all values in it
    Print(Source),
    /// Show who set each value: default, file, environment or command line
    Explain(Source),
    /// Print a JSON schema of the experiment
    Schema(Source),
}
