//! The edge between libtorch's backward pass and the group: gradients go in as they become ready, and come out as means.
//!
//! DP-3: when a pass has succeeded, the gradient of every parameter that any rank has reached is the mean over the ranks that took part,
//! and lies in the group's memory.
//! DP-4: whether a pass has succeeded is the same on all ranks: each rank's account of it goes to all before any of them returns.

use std::collections::VecDeque;

use regatta_comm::nccl::DeviceGroup;
use regatta_comm::{ProcessGroup, ReduceOp, Ticket};
use tch::{Device, Kind, Tensor, no_grad};

use super::arena::{Arena, Spec};
use super::config::{Compression, DataParallelConfig, Unused};
use super::plan::Caps;
use super::power::{CompressionState, Power};
use super::present::Present;
use super::tally::Tally;
use super::verdict::{Account, verdict};
use super::way::Way;
use crate::autograd;
use crate::error::{BoxError, Error, Result};
use crate::result::ddp::{Moved, all_finite, grad_into, release_grads};

/// A parameter that is trained.
pub(super) type Parameter = (String, Tensor);

pub(super) struct Reducer {
    group: ProcessGroup,
    config: DataParallelConfig,
    parameters: Vec<Parameter>,
    arena: Arena,
    way: Way,
    power: Option<Power>,
    tally: Tally,
    /// Buckets launched and not landed, in order.
    flights: VecDeque<(usize, Ticket)>,
    /// Who takes part, while a reducing pass runs; hooks of other passes do nothing.
    running: Option<Present>,
    /// The first parameter whose gradient was not finite as it came, in this pass.
    infinite: Option<usize>,
    /// Whether all that has landed in this pass is finite.
    finite: bool,
    /// The order of arrival in the first pass, until buckets are rebuilt in it.
    first_order: Option<Vec<usize>>,
    /// With [`Unused::Static`], after the first pass: what this rank does not reach.
    never_reached: Option<Vec<bool>>,
    /// A gradient that came although it never should.
    surprise: Option<usize>,
    /// Whether a pass has succeeded.
    seen_one: bool,
    /// Reducing passes that have ended.
    step: u64,
}

impl Reducer {
    /// All ranks together, which have agreed on the parameters before.
    pub(super) fn new(
        group: ProcessGroup,
        config: DataParallelConfig,
        parameters: Vec<Parameter>,
        nccl: Option<DeviceGroup>,
    ) -> Result<Reducer> {
        let device = parameters.first().map_or(Device::Cpu, |(_, tensor)| tensor.device());
        let specs: Vec<_> = parameters.iter().map(|(_, tensor)| Spec::like(tensor)).collect();
        // Gradients come roughly in the reverse order of definition; how they really come is seen in the first pass.
        let order: Vec<_> = (0..parameters.len()).rev().collect();
        let arena = Arena::on(device, &group, specs, &order, caps(&config))?;
        let way = Way::new(&group, config.compression, &arena, device, nccl)?;
        let power = match config.compression {
            Compression::PowerSgd(how) => Some(Power::new(&group, how, &parameters)?),
            _ => None,
        };
        let tally = Tally::new(&arena.plan);
        Ok(Reducer {
            group,
            config,
            parameters,
            arena,
            way,
            power,
            tally,
            flights: VecDeque::new(),
            running: None,
            infinite: None,
            finite: true,
            first_order: None,
            never_reached: None,
            surprise: None,
            seen_one: false,
            step: 0,
        })
    }

    /// Reducing passes that have ended, well or not.
    pub(super) fn steps(&self) -> u64 {
        self.step
    }

    /// What a checkpoint must hold, if gradients are compressed by parts.
    pub(super) fn compression_state(&self) -> Option<CompressionState> {
        let tensors = self.power.as_ref()?.state(&self.parameters);
        Some(CompressionState { step: self.step, tensors })
    }

    /// Takes such a state over; one without tensors says only how many passes there were.
    pub(super) fn load_compression_state(&mut self, state: &CompressionState) -> Result<()> {
        if let Some(power) = &mut self.power {
            if state.tensors.is_empty() {
                self.step = state.step;
                return Ok(());
            }
            power.load(&self.parameters, &state.tensors)?;
            self.step = state.step;
        }
        Ok(())
    }

    /// Begins a pass whose gradients are reduced; `fresh` lets go of what the last one left. Nothing begins if no rank has data.
    pub(super) fn begin(&mut self, here: bool, fresh: bool) -> Result<Present> {
        let present = match self.config.uneven {
            true => Present::ask(&self.group, here)?,
            false => Present::all(self.group.world_size()),
        };
        if present.count == 0 {
            return Ok(present);
        }
        if fresh {
            release_grads(self.parameters.iter().map(|(_, tensor)| tensor))?;
        }
        if let Some(arrived) = self.first_order.take() {
            self.rebuild(arrived)?;
        }
        self.tally.reset();
        self.flights.clear();
        self.way.clear();
        (self.finite, self.infinite) = (true, None);
        self.surprise = None;
        self.running = Some(present);
        Ok(present)
    }

    /// Gives a pass up: hooks do nothing until the next begins.
    pub(super) fn give_up(&mut self) {
        self.running = None;
        self.flights.clear();
    }

    /// Buckets in the order in which gradients really arrived on rank 0. They hold nothing now: gradients were released.
    fn rebuild(&mut self, arrived: Vec<usize>) -> Result<()> {
        let count = self.parameters.len();
        let mut order: Vec<_> = arrived.into_iter().chain((0..count).rev()).map(|p| p as i32).collect();
        let mut known = vec![false; count];
        order.retain(|p| !std::mem::replace(&mut known[*p as usize], true));
        self.group.broadcast(&mut order, 0)?;
        let planned = |p: &usize| *p < count && self.arena.plan.slots[*p].is_some();
        let order: Vec<_> = order.into_iter().map(|p| p as usize).filter(planned).collect();
        self.arrange(&order)
    }

    fn arrange(&mut self, order: &[usize]) -> Result<()> {
        self.arena.arrange(order, caps(&self.config))?;
        self.way.arrange(&self.arena)?;
        self.tally = Tally::new(&self.arena.plan);
        tracing::debug!(buckets = self.arena.plan.buckets.len(), "gradient buckets are laid out anew");
        Ok(())
    }

    /// A parameter's gradient is final for this pass.
    pub(super) fn ready(&mut self, parameter: usize) -> Result<(), BoxError> {
        if self.running.is_none() {
            return Ok(());
        }
        if self.arena.plan.slots[parameter].is_none() {
            self.surprise.get_or_insert(parameter);
            return Ok(());
        }
        self.take_in(parameter)?;
        Ok(self.advance(parameter)?)
    }

    /// Moves a parameter's gradient to its place in the buckets; false if it has none.
    fn take_in(&mut self, parameter: usize) -> Result<bool> {
        let view = self.arena.view(parameter)?;
        let look = self.config.check_finite && !looked_at_late(view);
        let moved = grad_into(&self.parameters[parameter].1, view, look)?;
        if moved == (Moved::Into { finite: false }) {
            self.infinite.get_or_insert(parameter);
        }
        Ok(moved != Moved::None)
    }

    /// Counts a parameter, launches what is complete, and moves along what is in flight.
    fn advance(&mut self, parameter: usize) -> Result<()> {
        let Some(complete) = self.tally.ready(parameter) else {
            return Err(Error::Argument {
                what: "DataParallel::backward",
                why: format!("{} got its gradient twice in one pass", self.parameters[parameter].0),
            });
        };
        if self.compressing() {
            // Compressed when all is there.
            return Ok(());
        }
        for bucket in complete {
            if let Some(ticket) = self.way.launch(&self.group, &self.arena, bucket)? {
                self.flights.push_back((bucket, ticket));
            }
        }
        while let Some(&(bucket, ticket)) = self.flights.front() {
            if !self.group.poll(ticket)? {
                break;
            }
            self.flights.pop_front();
            self.land(bucket)?;
        }
        Ok(())
    }

    fn compressing(&self) -> bool {
        self.power.as_ref().is_some_and(|power| power.is_active(self.step))
    }

    fn land(&mut self, bucket: usize) -> Result<()> {
        self.way.land(&self.arena, bucket)?;
        if let Some(present) = self.running {
            present.rescale(self.arena.flat(bucket), self.group.world_size())?;
        }
        if looked_at_late(self.arena.flat(bucket)) { self.look_at(bucket) } else { Ok(()) }
    }

    fn look_at(&mut self, bucket: usize) -> Result<()> {
        let flat = self.arena.flat(bucket);
        if self.config.check_finite && self.finite {
            self.finite = all_finite(flat)?;
        }
        Ok(())
    }

    /// Ends a pass: reduces what is left, and comes to the same verdict on all ranks. `loss` is this rank's, if it has one.
    pub(super) fn finish(&mut self, loss: Option<f64>) -> Result<()> {
        let Some(present) = self.running else { return Ok(()) };
        let unreached = self.fill_in()?;
        while let Some((bucket, ticket)) = self.flights.pop_front() {
            self.group.wait(ticket)?;
            self.land(bucket)?;
        }
        for bucket in self.way.finish(&self.group, &self.arena)? {
            self.land(bucket)?;
        }
        if self.compressing()
            && let Some(power) = &mut self.power
        {
            power.reduce(&self.group, &self.arena, &present)?;
            (0..self.arena.plan.buckets.len()).try_for_each(|bucket| self.look_at(bucket))?;
        }
        let reached = self.reached(&unreached)?;
        let account = self.account(&present, &unreached, loss);
        self.running = None;
        self.step += 1;
        self.judge(account)?;
        for &p in unreached.iter().filter(|p| reached.as_ref().is_none_or(|by_any| by_any[**p])) {
            autograd::set_grad(&self.parameters[p].1, Some(self.arena.view(p)?))?;
        }
        if !std::mem::replace(&mut self.seen_one, true) {
            self.after_the_first(&unreached, reached)?;
        }
        Ok(())
    }

    /// Gives zeros for the parameters that this pass has not reached, and says which they are.
    fn fill_in(&mut self) -> Result<Vec<usize>> {
        let mut unreached = Vec::new();
        for p in self.tally.missing() {
            // It may have a gradient from passes that were accumulated before.
            if !self.take_in(p)? {
                let _ = no_grad(|| self.arena.view(p)?.shallow_clone().f_zero_().map_err(Error::from))?;
                unreached.push(p);
            }
            self.advance(p)?;
        }
        Ok(unreached)
    }

    /// Which parameters any rank has reached, where that has to be asked.
    fn reached(&self, unreached: &[usize]) -> Result<Option<Vec<bool>>> {
        let ask = match self.config.unused {
            Unused::Refuse => false,
            Unused::Static => self.never_reached.is_none(),
            Unused::Find => true,
        };
        if !ask {
            return Ok(None);
        }
        let mut reached = vec![1i32; self.parameters.len()];
        unreached.iter().for_each(|&p| reached[p] = 0);
        self.group.all_reduce(&mut reached, ReduceOp::Sum)?;
        Ok(Some(reached.into_iter().map(|ranks| ranks > 0).collect()))
    }

    fn account(&self, present: &Present, unreached: &[usize], loss: Option<f64>) -> Account {
        let expected = |p: &&usize| match (&self.never_reached, self.config.unused) {
            (Some(never), Unused::Static) => !never[**p],
            (_, Unused::Refuse) => true,
            _ => false,
        };
        let missing = unreached.iter().find(expected).filter(|_| present.here);
        let loss = loss.filter(|_| self.config.check_finite);
        Account { missing: missing.copied(), surprise: self.surprise, loss, infinite: self.infinite }
    }

    /// The first thing that is wrong on any rank, as an error on all of them.
    fn judge(&self, account: Account) -> Result<()> {
        if !self.config.check_finite && self.config.unused == Unused::Find {
            return Ok(());
        }
        let accounts = account.exchange(&self.group)?;
        let names: Vec<_> = self.parameters.iter().map(|(name, _)| name.as_str()).collect();
        verdict(&accounts, &names, self.step - 1)?;
        if self.finite {
            return Ok(());
        }
        // The reduced gradients are the same bits everywhere, and so is what is found in them.
        for (p, (name, _)) in self.parameters.iter().enumerate() {
            if self.arena.plan.slots[p].is_some() && !all_finite(self.arena.view(p)?)? {
                return Err(Error::NotFinite {
                    step: self.step - 1,
                    rank: None,
                    what: format!("the gradient of {name}"),
                });
            }
        }
        Ok(())
    }

    /// What the first pass has shown: who is never reached, and in which order gradients come.
    fn after_the_first(&mut self, unreached: &[usize], reached: Option<Vec<bool>>) -> Result<()> {
        let mut order = self.tally.arrived().to_vec();
        if let (Unused::Static, Some(reached)) = (self.config.unused, reached) {
            let mut never = vec![false; self.parameters.len()];
            unreached.iter().for_each(|&p| never[p] = true);
            self.never_reached = Some(never);
            order.retain(|&p| reached[p]);
            for (p, _) in reached.iter().enumerate().filter(|(_, by_any)| !**by_any) {
                // No rank ever has a gradient for it: it leaves the buckets.
                self.arena.plan.slots[p] = None;
            }
        }
        self.first_order = Some(order);
        Ok(())
    }
}

/// Whether a gradient is looked at once it is reduced rather than as it comes: on a GPU, where to look is to wait, and in 16 bits, whose sums
/// may overflow although no part does.
fn looked_at_late(tensor: &Tensor) -> bool {
    tensor.device().is_cuda() || tensor.kind() == Kind::Half
}

fn caps(config: &DataParallelConfig) -> Caps {
    Caps { first: config.first_bucket_bytes, rest: config.bucket_bytes }
}
