//! Low-rank compression with error feedback: of a matrix of gradients only two thin factors travel.
//!
//! One step of the power method a pass, begun where the last one ended: with `M` this rank's gradient plus what it could not send before,
//! `P = mean(M Q)`, made orthonormal; `Q = mean(Mᵀ P)`; all ranks take `P Qᵀ`, and each keeps what that lacks of its own `M`.
//! Two reductions a pass, after the backward pass and not during it. Tensors that would not become small travel as they are with the first.

use regatta_comm::{ProcessGroup, ReduceOp};
use tch::{Kind, Tensor, no_grad};

use super::arena::{Arena, Spec};
use super::config::PowerSgd;
use super::plan::Caps;
use super::present::Present;
use super::reducer::Parameter;
use crate::error::Result;
use crate::state::{self, NamedTensor};
use crate::{Difference, Error};

const ONE_BUCKET: Caps = Caps { first: usize::MAX, rest: usize::MAX };

/// What a checkpoint must hold of compressed gradients, or a resumed run differs from one that was not interrupted.
#[derive(Debug)]
pub struct CompressionState {
    /// Reducing passes so far; compression begins at a certain one.
    pub step: u64,
    /// `q.<parameter>`, the same on all ranks, and `error.<parameter>`, each rank's own. The tensors are the live ones: copy them
    /// before the next pass. Errors may be made zero where the number of ranks changes.
    pub tensors: Vec<NamedTensor>,
}

/// A parameter whose gradient is compressed.
#[derive(Debug)]
struct Matrix {
    parameter: usize,
    shape: Vec<i64>,
    rows: i64,
    columns: i64,
    q: Tensor,
    error: Tensor,
}

/// The compressor and its memory.
#[derive(Debug)]
pub(super) struct Power {
    config: PowerSgd,
    matrices: Vec<Matrix>,
    /// Parameters that travel as they are.
    plain: Vec<usize>,
    /// The left factors, then what is plain.
    first: Arena,
    /// The right factors.
    second: Arena,
}

impl Power {
    /// All ranks together.
    pub(super) fn new(group: &ProcessGroup, config: PowerSgd, parameters: &[Parameter]) -> Result<Power> {
        let (mut matrices, mut plain) = (Vec::new(), Vec::new());
        let rank = i64::try_from(config.rank).unwrap_or(i64::MAX).max(1);
        for (parameter, (_, tensor)) in parameters.iter().enumerate() {
            let shape = tensor.size();
            let rows = shape.first().copied().unwrap_or(1);
            let columns: i64 = shape.iter().skip(1).product();
            let rank = rank.min(rows).min(columns);
            let smaller = (rows * columns) as f64 >= config.least_ratio * (rank * (rows + columns)) as f64;
            if shape.len() < 2 || tensor.kind() != Kind::Float || !smaller || rank == 0 {
                plain.push(parameter);
                continue;
            }
            let q = start(columns, rank, parameter as u64).f_to(tensor.device())?;
            let error = Tensor::zeros([rows, columns], (Kind::Float, tensor.device()));
            matrices.push(Matrix { parameter, shape, rows, columns, q, error });
        }
        let factor = |rows: i64, q: &Tensor| Tensor::zeros([rows, q.size()[1]], (Kind::Float, q.device()));
        let mut specs: Vec<_> = matrices.iter().map(|m| Spec::contiguous(&factor(m.rows, &m.q))).collect();
        specs.extend(plain.iter().map(|&p| Spec::contiguous(&parameters[p].1)));
        let order: Vec<_> = (0..specs.len()).collect();
        let first = Arena::new(group, specs, &order, ONE_BUCKET)?;
        let specs: Vec<_> = matrices.iter().map(|m| Spec::contiguous(&m.q)).collect();
        let order: Vec<_> = (0..specs.len()).collect();
        let second = Arena::new(group, specs, &order, ONE_BUCKET)?;
        Ok(Power { config, matrices, plain, first, second })
    }

    /// Whether it has begun at this step.
    pub(super) fn is_active(&self, step: u64) -> bool {
        step >= self.config.start
    }

    /// Replaces the gradients in the arena by their approximate mean.
    pub(super) fn reduce(&mut self, group: &ProcessGroup, arena: &Arena, present: &Present) -> Result<()> {
        no_grad(|| {
            let mut inputs = Vec::with_capacity(self.matrices.len());
            for (place, matrix) in self.matrices.iter().enumerate() {
                let mut input = match arena.plan.slots[matrix.parameter] {
                    Some(_) => arena.view(matrix.parameter)?.f_reshape([matrix.rows, matrix.columns])?,
                    None => matrix.error.f_zeros_like()?,
                };
                if present.here {
                    input = input.f_add(&matrix.error)?;
                }
                copy(self.first.view(place)?, &input.f_matmul(&matrix.q)?)?;
                inputs.push(input);
            }
            for (place, &parameter) in self.plain.iter().enumerate() {
                if arena.plan.slots[parameter].is_some() {
                    copy(self.first.view(self.matrices.len() + place)?, arena.view(parameter)?)?;
                }
            }
            mean(group, &self.first, present)?;
            for (place, (matrix, input)) in self.matrices.iter().zip(&inputs).enumerate() {
                orthonormalise(self.first.view(place)?, matrix.q.size()[1])?;
                copy(self.second.view(place)?, &input.f_t_copy()?.f_matmul(&self.left(place)?)?)?;
            }
            mean(group, &self.second, present)?;
            let left = (0..self.matrices.len()).map(|place| self.left(place)).collect::<Result<Vec<_>>>()?;
            for (place, (matrix, input)) in self.matrices.iter_mut().zip(inputs).enumerate() {
                copy(&matrix.q, self.second.view(place)?)?;
                let approximate = left[place].f_matmul(&matrix.q.f_t_copy()?)?;
                if present.here {
                    matrix.error = input.f_sub(&approximate)?;
                }
                if arena.plan.slots[matrix.parameter].is_some() {
                    copy(arena.view(matrix.parameter)?, &approximate.f_reshape(&matrix.shape)?)?;
                }
            }
            for (place, &parameter) in self.plain.iter().enumerate() {
                if arena.plan.slots[parameter].is_some() {
                    copy(arena.view(parameter)?, self.first.view(self.matrices.len() + place)?)?;
                }
            }
            Ok(())
        })
    }

    /// A matrix's left factor, where the matrix is.
    fn left(&self, place: usize) -> Result<Tensor> {
        Ok(self.first.view(place)?.f_to(self.matrices[place].q.device())?)
    }

    /// The live state by name.
    pub(super) fn state(&self, parameters: &[Parameter]) -> Vec<NamedTensor> {
        let named = |what: &str, matrix: &Matrix, tensor: &Tensor| {
            NamedTensor::new(format!("{what}.{}", parameters[matrix.parameter].0), tensor.shallow_clone())
        };
        (self.matrices.iter()).flat_map(|m| [named("q", m, &m.q), named("error", m, &m.error)]).collect()
    }

    /// Takes a state over; if anything does not fit, nothing is changed.
    pub(super) fn load(&mut self, parameters: &[Parameter], tensors: &[NamedTensor]) -> Result<()> {
        let live = self.state(parameters);
        let differences: Vec<Difference> = state::differences(&live, tensors);
        if !differences.is_empty() {
            return Err(Error::Mismatch { what: "the state of compressed gradients", differences });
        }
        state::copy_all(&live, tensors)
    }
}

fn copy(to: &Tensor, from: &Tensor) -> Result<()> {
    to.shallow_clone().f_copy_(from)?;
    Ok(())
}

fn mean(group: &ProcessGroup, arena: &Arena, present: &Present) -> Result<()> {
    for bucket in 0..arena.plan.buckets.len() {
        let ticket = group.submit(arena.call(group, bucket, ReduceOp::Mean)?)?;
        group.wait(ticket)?;
        present.rescale(arena.flat(bucket), group.world_size())?;
    }
    Ok(())
}

/// Gram and Schmidt's way, column by column; a column that is nothing but rounding becomes small, not random.
fn orthonormalise(matrix: &Tensor, columns: i64) -> Result<()> {
    for i in 0..columns {
        let column = matrix.f_narrow(1, i, 1)?;
        for j in 0..i {
            let before = matrix.f_narrow(1, j, 1)?;
            let overlap = before.f_mul(&column)?.f_sum(Kind::Float)?;
            copy(&column, &column.f_sub(&before.f_mul(&overlap)?)?)?;
        }
        let norm = column.f_norm()?.f_add_scalar(1e-8)?;
        copy(&column, &column.f_div(&norm)?)?;
    }
    Ok(())
}

/// Where the power method starts: numbers that look random, the same on all ranks and in all runs.
fn start(columns: i64, rank: i64, seed: u64) -> Tensor {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32) - 1.0
    };
    let values: Vec<f32> = (0..columns * rank).map(|_| next()).collect();
    Tensor::from_slice(&values).reshape([columns, rank])
}
