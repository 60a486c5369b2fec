//! A sampler in a simulated study, as a runner would ask it.

use super::{Ask, Failure, Outcome, Simulation, Workload};
use crate::sampler::{self, End, History, Judge, Sampler, Told};
use crate::scheduler::{Scheduler, State};
use crate::space::Space;

impl<W: Workload> Simulation<W> {
    /// Runs a study of at most so many trials whose configurations a sampler makes: what it knows when it is asked is the
    /// [history as the scheduler judges it](History::judged_by).
    pub fn search(
        &self,
        scheduler: Box<dyn Scheduler>,
        mut sampler: impl Sampler,
        space: &Space,
        trials: u32,
    ) -> Result<Outcome, Failure> {
        let (mut history, mut judge) = (History::new(), Judge::default());
        let mut refused = None;
        let outcome = self.run(scheduler, |ask| {
            if ask.trial >= trials || refused.is_some() {
                return None;
            }
            catch_up(&mut history, ask, self.workload.horizon());
            let number = u64::from(ask.trial);
            let judged = judge.look(&history, ask.scheduler);
            let suggestion =
                sampler.suggest(&sampler::Ask { space, history: judged, number, seed: self.seed });
            match suggestion {
                Ok(suggestion) => {
                    let values = space.values(&suggestion.point);
                    let config = values.map(|(path, value)| (path.to_owned(), value)).collect();
                    history.start(number, suggestion.point, suggestion.note);
                    Some(config)
                }
                Err(error) => {
                    refused = Some(error);
                    None
                }
            }
        });
        match refused {
            Some(error) => Err(Failure::Sampler(error)),
            None => outcome,
        }
    }
}

/// Tells the history of the trials that are over.
fn catch_up(history: &mut History, ask: &Ask<'_>, horizon: u64) {
    let over = |number: &&u64| ask.roster.state(**number as u32) == State::Ended;
    let over: Vec<u64> = history.running().keys().filter(over).copied().collect();
    for number in over {
        let running = &history.running()[&number];
        let last = ask.trials.get(&(number as u32)).and_then(|trial| trial.reports.last());
        let told =
            Told::complete(number, running.point.clone(), last.map(|(_, loss)| *loss).into_iter().collect());
        let end = match last {
            Some((step, _)) if *step < horizon => End::Pruned { step: *step },
            Some(_) => End::Complete,
            None => End::Failed,
        };
        let note = running.note;
        history.tell(Told { note, end, ..told });
    }
}
