//! How a run goes, on standard error: one line that is drawn again on a terminal, a line now and then elsewhere, and what
//! happens in between.

use std::io::Write;
use std::time::{Duration, Instant};

use regatta_track::Metrics;
use regatta_train::wire::{Committed, Progress};
use regatta_train::{Callback, RunEvent, Status};

use crate::term::{Mode, bytes, count, duration, figure};

/// What is shown.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) mode: Mode,
    /// How often progress is shown.
    pub(crate) every: Duration,
    pub(crate) colour: bool,
    /// The ranks' own lines too.
    pub(crate) verbose: bool,
    /// The metric of which the best value is shown, and whether more is better.
    pub(crate) best: Option<(String, bool)>,
    /// What resumes this run, without its name.
    pub(crate) resume: String,
}

/// Shows a run as it goes.
pub(crate) struct Shown<W> {
    look: Look,
    width: fn() -> usize,
    to: W,
    view: View,
    header: Header,
    drawn: Option<Instant>,
    /// Whether a line stands there that is to be drawn over.
    open: bool,
    stopping: bool,
}

/// The first line, put together from what is told one after the other.
#[derive(Default)]
struct Header {
    run: Option<String>,
    git: Option<String>,
    about: Option<String>,
    shown: bool,
}

/// What the line says.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    progress: Progress,
    /// The last figures, and of which epoch.
    metrics: Metrics,
    best: Option<(String, f64, u64)>,
    eta: Eta,
}

/// The time that is left, from the pace of the last minutes: what came before (compiling, warming up, another number of
/// workers) says nothing of what comes.
#[derive(Debug, Clone, Default)]
struct Eta {
    marks: std::collections::VecDeque<(f64, f64)>,
}

impl Eta {
    const WINDOW: f64 = 120.0;

    /// At this time, this part of the whole was done.
    fn mark(&mut self, now: f64, done: f64) {
        if self.marks.back().is_some_and(|(_, last)| done < *last) {
            self.marks.clear();
        }
        self.marks.push_back((now, done));
        while self.marks.len() > 2 && self.marks.front().is_some_and(|(then, _)| now - then > Self::WINDOW) {
            self.marks.pop_front();
        }
    }

    fn left(&self) -> Option<f64> {
        let ((first, begun), (now, done)) = (self.marks.front()?, self.marks.back()?);
        let (time, part) = (now - first, done - begun);
        (time >= 1.0 && part > 0.0).then(|| (1.0 - done).max(0.0) * time / part)
    }
}

/// The part of the whole run that is done, if that can be told.
fn done(progress: &Progress) -> Option<f64> {
    match (progress.steps, progress.epochs, progress.epoch_part) {
        (Some(steps), ..) if steps > 0 => Some(progress.step as f64 / steps as f64),
        (_, Some(epochs), part) if epochs > 0 => {
            Some((progress.epoch as f64 + part.unwrap_or(0.0)) / epochs as f64)
        }
        _ => None,
    }
}

impl View {
    fn told(&mut self, progress: &Progress, now: f64) {
        self.progress = progress.clone();
        if let Some(done) = done(progress) {
            self.eta.mark(now, done);
        }
    }

    fn reported(&mut self, metrics: &Metrics, step: u64, epoch: u64, best: Option<&(String, bool)>) {
        self.metrics = metrics.clone();
        (self.progress.step, self.progress.epoch) = (step, epoch);
        if let Some((name, more)) = best
            && let Some(value) = metrics.get(name).filter(|value| !value.is_nan())
        {
            let better = |old: f64| if *more { value > old } else { value < old };
            if self.best.as_ref().is_none_or(|(_, old, _)| better(*old)) {
                self.best = Some((name.clone(), value, epoch));
            }
        }
    }

    /// The line, as much of it as fits.
    pub(crate) fn line(&self, width: usize, colour: bool, bar: bool) -> String {
        let Progress { step, steps, epoch, epochs, epoch_part, .. } = &self.progress;
        let mut parts = Vec::new();
        if epochs.is_some() || *epoch > 0 {
            let of = epochs.map_or(String::new(), |all| format!("/{all}"));
            // Counted from 1 for people; past the last there is none.
            let number = epochs.map_or(epoch + 1, |all| (epoch + 1).min(all.max(1)));
            parts.push(format!("epoch {number}{of}"));
        }
        if let (Some(part), true) = (epoch_part.or_else(|| done(&self.progress)), bar) {
            parts.push(format!("{} {:.0}%", drawn(part, 16, colour), part.clamp(0.0, 1.0) * 100.0));
        }
        parts.push(format!("step {step}{}", steps.map_or(String::new(), |all| format!("/{all}"))));
        if let Some(loss) = self.progress.loss.or_else(|| self.metrics.get("loss")) {
            parts.push(format!("loss {}", figure(loss)));
        }
        if let Some((name, value, epoch)) = &self.best {
            parts.push(format!("{name} {} (best, ep {})", figure(*value), epoch + 1));
        }
        match self.progress.samples_per_second {
            Some(rate) => parts.push(format!("{}/s", count(rate))),
            None if self.progress.steps_per_second > 0.0 => {
                parts.push(format!("{} steps/s", count(self.progress.steps_per_second)));
            }
            None => {}
        }
        if let Some(wait) = self.progress.data_wait {
            parts.push(format!("data-wait {:.0}%", wait * 100.0));
        }
        if self.progress.memory_bytes > 0 {
            parts.push(bytes(self.progress.memory_bytes));
        }
        if let Some(left) = self.eta.left() {
            parts.push(format!("ETA {}", duration(left)));
        }
        fit(&parts.join("  "), width)
    }
}

/// A bar of so many places, to half a place.
fn drawn(part: f64, places: usize, colour: bool) -> String {
    let halves = (part.clamp(0.0, 1.0) * (places * 2) as f64).round() as usize;
    let (full, half) = (halves / 2, halves % 2);
    let done = "━".repeat(full) + if half == 1 { "╸" } else { "" };
    let rest = places - full - half;
    match colour {
        true => format!("\x1b[36m{done}\x1b[90m{}\x1b[0m", "━".repeat(rest)),
        false => done + &"─".repeat(rest),
    }
}

/// As much of a line as fits; what stands between escape and `m` takes no place.
fn fit(line: &str, width: usize) -> String {
    let (mut fitting, mut taken, mut escape) = (String::new(), 0, false);
    for c in line.chars() {
        escape |= c == '\x1b';
        if !escape {
            if taken == width {
                break;
            }
            taken += 1;
        }
        fitting.push(c);
        escape &= c != 'm';
    }
    fitting
}

impl<W: Write + Send> Shown<W> {
    pub(crate) fn new(look: Look, to: W, width: fn() -> usize) -> Self {
        let (view, header) = (View::default(), Header::default());
        Shown { look, width, to, view, header, drawn: None, open: false, stopping: false }
    }

    /// A line that stays. Nobody is left to be told that standard error is gone.
    fn say(&mut self, text: &str) {
        if self.look.mode == Mode::None {
            return;
        }
        let clear = if self.open { "\r\x1b[2K" } else { "" };
        self.open = false;
        self.drawn = None;
        let _ = writeln!(self.to, "{clear}{text}");
    }

    fn draw(&mut self) {
        let every = self.look.every;
        if self.look.mode == Mode::None {
            return;
        }
        let now = Instant::now();
        // Elsewhere the first line comes after a while, too: what is there at once says little.
        let last = *self.drawn.get_or_insert(if self.look.mode == Mode::Bar { now - every } else { now });
        if now - last < every {
            return;
        }
        self.drawn = Some(now);
        match self.look.mode {
            Mode::Bar => {
                let line = self.view.line((self.width)().saturating_sub(1), self.look.colour, true);
                let _ = write!(self.to, "\r\x1b[2K{line}").and_then(|()| self.to.flush());
                self.open = true;
            }
            _ => {
                let mut line = self.view.line(usize::MAX, false, false);
                for (name, value) in self.view.metrics.iter().filter(|(name, _)| &***name != "loss").take(8) {
                    line += &format!("  {name} {}", figure(value));
                }
                let _ = writeln!(self.to, "{line}");
            }
        }
    }

    /// Shows the first line once all of it is known, or something else is to be said.
    fn head(&mut self, ready: bool) {
        let Header { run: Some(run), git, about, shown: false } = &self.header else { return };
        if ready || (git.is_some() && about.is_some()) {
            let parts = [Some(run), git.as_ref(), about.as_ref()].into_iter().flatten().map(String::as_str);
            let text = parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("  ");
            self.header.shown = true;
            self.say(&text);
        }
    }

    fn checkpoint(&mut self, committed: &Committed) {
        let Committed { name, step, bytes: size, seconds, error, .. } = committed;
        match error {
            Some(error) => self.say(&format!("the checkpoint of step {step} could not be saved: {error}")),
            None if self.stopping => {
                self.say(&format!("saved {name} ({}, {seconds:.1} s)", bytes(*size)));
            }
            None => {}
        }
    }

    fn ended(&mut self, status: &Status) {
        match status {
            Status::Completed => {
                let Progress { step, .. } = self.view.progress;
                let figures: Vec<String> = self
                    .view
                    .metrics
                    .iter()
                    .take(8)
                    .map(|(name, value)| format!("{name} {}", figure(value)))
                    .collect();
                self.say(&format!("done at step {step}  {}", figures.join("  ")));
            }
            Status::Stopped { reason, forced } => {
                match (self.stopping, forced) {
                    (_, true) => self.say("ended at once, without another checkpoint"),
                    (false, false) => self.say(&reason.to_string()),
                    (true, false) => {}
                }
                let resume = self.look.resume.clone();
                self.say(&format!("resume: {resume}"));
            }
            _ => {}
        }
    }

    /// Ends the line that is drawn over.
    fn close(&mut self) {
        if self.open {
            self.open = false;
            let _ = writeln!(self.to);
        }
    }
}

impl<W: Write + Send> Callback for Shown<W> {
    fn on(&mut self, event: &RunEvent<'_>) {
        // The environment comes late and may not come at all: the first line does not wait for it longer than this.
        let waits =
            matches!(event, RunEvent::Begun { .. } | RunEvent::Environment(_) | RunEvent::Started { .. });
        if !waits && !matches!(event, RunEvent::Restored { checkpoint: None, .. } | RunEvent::Line { .. }) {
            self.head(true);
        }
        match event {
            RunEvent::Begun { experiment, run, seed, resumed, .. } => {
                let resumed = if *resumed { "  resumed" } else { "" };
                self.header.run = Some(format!("run {experiment}/{run}{resumed}  seed {seed}"));
                self.look.resume = self.look.resume.replace("{run}", run).replace("{experiment}", experiment);
            }
            RunEvent::Environment(environment) => {
                self.header.git = Some(environment.git.as_ref().map_or(String::new(), |git| {
                    let commit: String = git.commit.chars().take(7).collect();
                    match (git.dirty, &git.diff) {
                        (false, _) => format!("git {commit}"),
                        (true, None) => format!("git {commit} (dirty)"),
                        (true, Some(_)) => format!("git {commit} (dirty, diff saved)"),
                    }
                }));
                self.head(false);
            }
            RunEvent::Started { attempt, about, .. } => {
                self.header.about = Some((*about).to_owned());
                match self.header.shown {
                    true => self.say(&format!("attempt {attempt}  {about}")),
                    false => self.head(false),
                }
            }
            RunEvent::Restored { checkpoint, step, damaged } => {
                for damaged in *damaged {
                    self.say(&format!("passed over a damaged checkpoint: {damaged}"));
                }
                if let Some(checkpoint) = checkpoint {
                    self.say(&format!("restored {checkpoint} (step {step})"));
                }
            }
            RunEvent::Report { step, epoch, metrics, .. } => {
                self.view.reported(metrics, *step, *epoch, self.look.best.as_ref());
                self.draw();
            }
            RunEvent::Progress(progress) => {
                static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
                let now = START.get_or_init(Instant::now).elapsed().as_secs_f64();
                self.view.told(progress, now);
                self.draw();
            }
            RunEvent::Checkpoint(committed) => self.checkpoint(committed),
            RunEvent::Line { rank, text } if self.look.verbose => self.say(&format!("[{rank}] {text}")),
            RunEvent::Stopping { reason, grace } => {
                self.stopping = true;
                let (step, grace) = (self.view.progress.step, duration(grace.as_secs_f64()));
                self.say(&format!(
                    "{reason}: stopping after step {step}, within {grace}      press Ctrl-C again to kill"
                ));
            }
            RunEvent::Failed { attempt, error } => self.say(&format!("attempt {attempt} failed: {error}")),
            RunEvent::Recovering { wait } => {
                self.say(&format!("starting again from the last checkpoint in {:.1} s", wait.as_secs_f64()));
            }
            RunEvent::Ended { status } => {
                self.ended(status);
                self.close();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use regatta_train::StopReason;

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Paper {
        fn text(&self) -> String {
            String::from_utf8(std::mem::take(&mut self.0.lock().unwrap())).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn shown(mode: Mode, every: Duration) -> (Shown<Paper>, Paper) {
        let resume = "mnist resume {experiment}/{run}".into();
        let best = Some(("acc".into(), true));
        let (look, paper) =
            (Look { mode, every, colour: false, verbose: false, best, resume }, Paper::default());
        (Shown::new(look, paper.clone(), || 40), paper)
    }

    fn begin(shown: &mut Shown<Paper>) {
        let folder = std::path::Path::new("runs/mnist/otter");
        shown.on(&RunEvent::Begun { experiment: "mnist", run: "otter", folder, seed: 7, resumed: false });
        shown.on(&RunEvent::Started { attempt: 1, world_size: 2, about: "2 x cpu, shm" });
        shown.on(&RunEvent::Restored { checkpoint: None, step: 0, damaged: &[] });
    }

    fn progress(step: u64) -> Progress {
        Progress {
            step,
            epoch: 2,
            epochs: Some(10),
            epoch_part: Some(0.31),
            steps_per_second: 9.0,
            samples_per_second: Some(2140.0),
            data_wait: Some(0.03),
            loss: Some(0.0931),
            memory_bytes: 4_800_000,
            ..Progress::default()
        }
    }

    fn metrics(values: &[(&str, f64)]) -> Metrics {
        values.iter().copied().collect()
    }

    #[test]
    fn elsewhere_than_on_a_terminal_there_are_whole_lines_with_the_metrics_now_and_then() {
        let (mut shown, paper) = shown(Mode::Plain, Duration::ZERO);
        begin(&mut shown);
        assert_eq!(paper.text(), "", "the first line waits for the environment");
        shown.on(&RunEvent::Progress(&progress(1450)));
        let text = paper.text();
        assert_eq!(
            text,
            "run mnist/otter  seed 7  2 x cpu, shm\n\
             epoch 3/10  step 1450  loss 0.0931  2.1k/s  data-wait 3%  4.8 MB\n"
        );
        let all = metrics(&[("loss", 0.5), ("acc", 0.9782)]);
        shown.on(&RunEvent::Report { iteration: 1, step: 1500, epoch: 2, metrics: &all });
        let line = paper.text();
        assert!(line.contains("step 1500") && line.contains("acc 0.9782 (best, ep 3)"), "{line}");
        assert!(line.ends_with("  acc 0.9782\n") && !line.contains('\x1b'), "{line}");
        let worse = metrics(&[("acc", 0.5)]);
        shown.on(&RunEvent::Report { iteration: 2, step: 1600, epoch: 3, metrics: &worse });
        assert!(paper.text().contains("acc 0.9782 (best, ep 3)"));
    }

    #[test]
    fn between_the_lines_there_is_silence() {
        let (mut shown, paper) = shown(Mode::Plain, Duration::from_secs(3600));
        begin(&mut shown);
        for step in 0..100 {
            shown.on(&RunEvent::Progress(&progress(step)));
        }
        assert_eq!(paper.text().lines().count(), 1);
        let (mut silent, nothing) = self::shown(Mode::None, Duration::ZERO);
        begin(&mut silent);
        silent.on(&RunEvent::Progress(&progress(1)));
        silent.on(&RunEvent::Ended { status: &Status::Completed });
        assert_eq!(nothing.text(), "");
    }

    #[test]
    fn on_a_terminal_one_line_is_drawn_over_and_fits() {
        let (mut shown, paper) = shown(Mode::Bar, Duration::ZERO);
        begin(&mut shown);
        shown.on(&RunEvent::Progress(&progress(1450)));
        let text = paper.text();
        let (head, line) = text.split_once('\n').unwrap();
        assert_eq!(head, "run mnist/otter  seed 7  2 x cpu, shm");
        // Cut to one place less than the width, as terminals go to the next line after the last.
        assert_eq!(line, "\r\x1b[2Kepoch 3/10  ━━━━━─────────── 31%  step ");
        let reason = StopReason::User;
        shown.on(&RunEvent::Stopping { reason: &reason, grace: Duration::from_secs(30) });
        let text = paper.text();
        assert!(text.starts_with("\r\x1b[2Kasked to stop: stopping after step 1450, within 30s"), "{text}");
        let status = Status::Stopped { reason, forced: true };
        shown.on(&RunEvent::Ended { status: &status });
        let text = paper.text();
        assert_eq!(text, "ended at once, without another checkpoint\nresume: mnist resume mnist/otter\n");
    }

    #[test]
    fn colours_take_no_place() {
        let view = View { progress: progress(1450), ..View::default() };
        let line = view.line(31, true, true);
        let plain: String =
            line.split('\x1b').map(|part| part.split_once('m').map_or(part, |p| p.1)).collect();
        assert!(line.contains("\x1b[36m") && plain.chars().count() == 31, "{line:?} {plain}");
    }

    #[test]
    fn the_time_left_follows_from_the_last_minutes() {
        let mut eta = Eta::default();
        eta.mark(0.0, 0.0);
        assert_eq!(eta.left(), None);
        // A slow beginning is forgotten.
        eta.mark(1000.0, 0.1);
        for second in 1..=200 {
            eta.mark(1000.0 + f64::from(second), 0.1 + f64::from(second) / 1000.0);
        }
        let left = eta.left().unwrap();
        assert!((left - 700.0).abs() < 1.0, "{left}");
        // Gone back to a checkpoint.
        eta.mark(1300.0, 0.2);
        assert_eq!(eta.left(), None);
    }
}
