//! One node's bookkeeping: which of its CPUs and GPUs are free to the thousandth, and how much of everything else.

use std::collections::BTreeMap;

use crate::request::Seat;
use crate::resource::{Bytes, Milli, Resources};

/// Numbered units (CPUs, GPUs), each free in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Units(Vec<u64>);

const FULL: u64 = 1000;

impl Units {
    fn new(total: Milli) -> Self {
        let mut free = vec![FULL; total.units() as usize];
        if !total.fraction().is_zero() {
            free.push(total.fraction().thousandths());
        }
        Self(free)
    }

    fn free(&self) -> Milli {
        Milli::from_thousandths(self.0.iter().sum())
    }

    fn wholly_free(&self) -> usize {
        self.0.iter().filter(|&&free| free == FULL).count()
    }

    /// Takes whole units, and the rest from a unit already shared where that has room: holes stay few. The shared one is last.
    fn take(&mut self, amount: Milli) -> Option<Vec<u32>> {
        let (whole, rest) = (amount.units() as usize, amount.fraction().thousandths());
        let shared = (rest > 0).then(|| {
            let partly = |i: &usize| self.0[*i] < FULL && self.0[*i] >= rest;
            (0..self.0.len()).filter(partly).min_by_key(|&i| self.0[i])
        });
        let opened = usize::from(matches!(shared, Some(None)));
        let mut units: Vec<usize> =
            (0..self.0.len()).filter(|&i| self.0[i] == FULL).take(whole + opened).collect();
        if units.len() < whole + opened {
            return None;
        }
        units.extend(shared.flatten());
        let units: Vec<u32> = units.into_iter().map(|i| i as u32).collect();
        self.change(&units, amount, |free, part| free - part);
        Some(units)
    }

    fn change(&mut self, units: &[u32], amount: Milli, op: impl Fn(u64, u64) -> u64) {
        let whole = amount.units() as usize;
        for (nth, &unit) in units.iter().enumerate() {
            let part = if nth < whole { FULL } else { amount.fraction().thousandths() };
            let free = &mut self.0[unit as usize];
            *free = op(*free, part);
        }
    }

    /// Hides what `workers` workers of `each` could use, now or once others have given back what they hold.
    ///
    /// Where enough units are wholly free those alone will do. Otherwise all that is free is hidden: a unit that is partly
    /// free may become whole, and whoever took the free part would be in the way.
    fn hide(&mut self, workers: usize, each: Milli) {
        if workers == 0 || each.is_zero() {
            return;
        }
        let rest = each.fraction().thousandths();
        let shared = FULL.checked_div(rest).map_or(0, |a_unit| workers.div_ceil(a_unit as usize));
        let needed = (each.units() as usize).saturating_mul(workers).saturating_add(shared);
        if self.wholly_free() >= needed {
            self.0.iter_mut().filter(|free| **free == FULL).take(needed).for_each(|free| *free = 0);
        } else {
            self.0.fill(0);
        }
    }
}

/// A node: what it is called, what it has, and what of it is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) total: Resources,
    pub(super) up: bool,
    cpus: Units,
    gpus: Units,
    memory: u64,
    custom: BTreeMap<String, u64>,
}

impl Node {
    pub(super) fn new(name: String, total: Resources) -> Self {
        Self {
            cpus: Units::new(total.cpu),
            gpus: Units::new(total.gpu),
            memory: total.memory.0,
            custom: total.customs().map(|(name, amount)| (name.to_owned(), amount.thousandths())).collect(),
            name,
            total,
            up: true,
        }
    }

    /// The same with nothing taken.
    pub(super) fn idle(&self) -> Self {
        Self { up: self.up, ..Self::new(self.name.clone(), self.total.clone()) }
    }

    pub(super) fn free(&self) -> Resources {
        let mut free = Resources::none().with_memory(Bytes(self.memory));
        (free.cpu, free.gpu) = (self.cpus.free(), self.gpus.free());
        for (name, &amount) in &self.custom {
            free.restore_custom(name, Milli::from_thousandths(amount));
        }
        free
    }

    /// Takes one worker's part: its CPUs and GPUs, or `None` and nothing changed.
    pub(super) fn take(&mut self, each: &Resources) -> Option<(Vec<u32>, Vec<u32>)> {
        let enough = |(name, amount): (&str, Milli)| self.custom.get(name) >= Some(&amount.thousandths());
        if self.memory < each.memory.0 || !each.customs().all(enough) {
            return None;
        }
        let mut cpus = self.cpus.clone();
        let taken = (cpus.take(each.cpu)?, self.gpus.take(each.gpu)?);
        self.cpus = cpus;
        self.change_rest(each, |free, part| free - part);
        Some(taken)
    }

    /// Takes exactly this seat, which a copy of this node with less free has given.
    pub(super) fn take_seat(&mut self, seat: &Seat) {
        self.cpus.change(&seat.cpus, seat.resources.cpu, |free, part| free - part);
        self.gpus.change(&seat.gpus, seat.resources.gpu, |free, part| free - part);
        self.change_rest(&seat.resources, |free, part| free - part);
    }

    pub(super) fn give_back(&mut self, seat: &Seat) {
        self.cpus.change(&seat.cpus, seat.resources.cpu, |free, part| free + part);
        self.gpus.change(&seat.gpus, seat.resources.gpu, |free, part| free + part);
        self.change_rest(&seat.resources, |free, part| free + part);
    }

    fn change_rest(&mut self, each: &Resources, op: impl Fn(u64, u64) -> u64) {
        self.memory = op(self.memory, each.memory.0);
        for (name, amount) in each.customs() {
            if let Some(free) = self.custom.get_mut(name) {
                *free = op(*free, amount.thousandths());
            }
        }
    }

    /// How many such workers fit into what is free, counted up to `at_most`.
    pub(super) fn fit(&self, each: &Resources, at_most: usize) -> usize {
        let mut trial = self.clone();
        (0..at_most).take_while(|_| trial.take(each).is_some()).count()
    }

    /// Hides from others what `workers` such workers could use here.
    pub(super) fn hide(&mut self, workers: usize, each: &Resources) {
        let hidden = |free: u64, part: u64| free.saturating_sub(part.saturating_mul(workers as u64));
        self.cpus.hide(workers, each.cpu);
        self.gpus.hide(workers, each.gpu);
        self.change_rest(each, hidden);
    }

    /// Which resources one such worker lacks here even when nothing runs.
    pub(super) fn lacks(&self, each: &Resources) -> Vec<String> {
        let mut lacks = Vec::new();
        if each.cpu > self.total.cpu {
            lacks.push(format!("cpu {} of {}", self.total.cpu, each.cpu));
        }
        if each.gpu > self.total.gpu {
            lacks.push(format!("gpu {} of {}", self.total.gpu, each.gpu));
        }
        if each.memory > self.total.memory {
            lacks.push(format!("memory {} of {}", self.total.memory, each.memory));
        }
        for (name, amount) in each.customs().filter(|(name, amount)| *amount > self.total.custom(name)) {
            lacks.push(format!("{name} {} of {amount}", self.total.custom(name)));
        }
        lacks
    }
}
