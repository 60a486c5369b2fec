//! The same models, batches and steps through libtorch's own reducer and through ours: gradients and weights must be the same.
//!
//! With two ranks a mean is exact whether the halves or the sum are divided, so the bits must be equal; with three ranks the order of
//! division shows in the last place.

use regatta_comm::thread;
use regatta_torch::ddp::{DataParallel, DataParallelConfig, Unused};
use regatta_torch::{Error, params};
use regatta_torch_oracle::{Hub, Reducer, Settings};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

const F32: (Kind, Device) = (Kind::Float, Device::Cpu);
const STEPS: i64 = 6;

fn values(shape: &[i64], seed: i64) -> Tensor {
    let n: i64 = shape.iter().product();
    ((Tensor::arange(n, F32) + (seed * 7919) as f64) * 12.9898).sin().reshape(shape)
}

/// A convolution, two linear layers and a branch that only some passes use.
struct Net {
    vs: VarStore,
    conv: nn::Conv2D,
    hidden: nn::Linear,
    branch: nn::Linear,
    head: nn::Linear,
}

impl Net {
    fn new() -> Net {
        let vs = VarStore::new(Device::Cpu);
        let root = vs.root();
        let net = Net {
            conv: nn::conv2d(&root / "conv", 2, 6, 3, Default::default()),
            hidden: nn::linear(&root / "hidden", 6 * 16, 40, Default::default()),
            branch: nn::linear(&root / "branch", 40, 40, Default::default()),
            head: nn::linear(&root / "head", 40, 5, Default::default()),
            vs,
        };
        for (i, (_, p)) in params::parameters(&net.vs).into_iter().enumerate() {
            tch::no_grad(|| p.shallow_clone().copy_(&(values(&p.size(), i as i64) * 0.2)));
        }
        net
    }

    fn loss(&self, rank: i64, step: i64, branch: bool) -> Tensor {
        let x = values(&[7, 2, 6, 6], 100 * rank + step);
        let y = ((values(&[7], rank + 3 * step) + 1.0) * 2.499).floor().to_kind(Kind::Int64);
        let hidden = self.hidden.forward(&self.conv.forward(&x).relu().flatten(1, -1)).tanh();
        let hidden = if branch { self.branch.forward(&hidden).tanh() } else { hidden };
        self.head.forward(&hidden).cross_entropy_for_logits(&y)
    }

    /// The gradients, then a step of plain descent, then the weights.
    fn step(&self) -> Vec<Vec<f32>> {
        let parameters = params::parameters(&self.vs);
        let read = |t: &Tensor| Vec::<f32>::try_from(t.detach().contiguous().reshape([-1])).unwrap();
        let mut all = Vec::new();
        for (_, p) in &parameters {
            let grad = p.grad();
            if grad.defined() {
                all.push(read(&grad));
                let _ = tch::no_grad(|| p.shallow_clone().f_sub_(&(grad * 0.1)).unwrap());
            } else {
                all.push(Vec::new());
            }
        }
        all.extend(parameters.iter().map(|(_, p)| read(p)));
        all
    }
}

type History = Vec<Vec<Vec<f32>>>;

/// Which branch a rank takes in a step.
type Uses = fn(usize, i64) -> bool;

fn by_the_oracle(world: usize, find_unused: bool, uses: Uses) -> Vec<History> {
    let hub = Hub::new(world);
    let how = Settings { first_bucket: 512, bucket: 4096, find_unused };
    let rank = |rank: usize| {
        let net = Net::new();
        let parameters: Vec<_> = params::parameters(&net.vs).into_iter().map(|(_, p)| p).collect();
        let reducer = Reducer::new(&hub, rank, world, &parameters, how);
        let mut history = Vec::new();
        for step in 0..STEPS {
            for grad in parameters.iter().map(Tensor::grad).filter(Tensor::defined) {
                let _ = tch::no_grad(|| grad.shallow_clone().zero_());
            }
            reducer.before_forward();
            let loss = net.loss(rank as i64, step, uses(rank, step));
            reducer.after_forward(&loss);
            loss.backward();
            history.push(net.step());
        }
        history
    };
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..world)
            .map(|r| {
                scope.spawn({
                    let rank = &rank;
                    move || rank(r)
                })
            })
            .collect();
        ranks.into_iter().map(|r| r.join().unwrap()).collect()
    })
}

fn by_us(world: usize, unused: Unused, uses: Uses) -> Vec<History> {
    let outcomes = thread::run(world, |group| {
        let rank = group.rank();
        let net = Net::new();
        let config =
            DataParallelConfig { first_bucket_bytes: 512, bucket_bytes: 4096, unused, ..Default::default() };
        let model = DataParallel::new(&net.vs, group, config)?;
        let mut history = Vec::new();
        for step in 0..STEPS {
            model.backward(&net.loss(rank as i64, step, uses(rank, step)))?;
            history.push(net.step());
        }
        Ok::<_, Error>(history)
    });
    outcomes.into_iter().map(|o| o.unwrap()).collect()
}

fn same(a: &[History], b: &[History], tolerance: f32) {
    for (rank, (a, b)) in a.iter().zip(b).enumerate() {
        for (step, (a, b)) in a.iter().zip(b).enumerate() {
            for (which, (a, b)) in a.iter().zip(b).enumerate() {
                assert_eq!(a.len(), b.len(), "rank {rank}, step {step}, tensor {which}");
                let far = a.iter().zip(b).position(|(a, b)| (a - b).abs() > tolerance * a.abs().max(1.0));
                assert_eq!(far, None, "rank {rank}, step {step}, tensor {which}");
            }
        }
    }
}

#[test]
fn two_ranks_get_the_same_bits_as_from_libtorchs_reducer() {
    tch::set_num_threads(1);
    let uses: Uses = |_, _| true;
    same(&by_the_oracle(2, false, uses), &by_us(2, Unused::Refuse, uses), 0.0);
}

#[test]
fn three_ranks_get_the_same_values_as_from_libtorchs_reducer() {
    tch::set_num_threads(1);
    let uses: Uses = |_, _| true;
    same(&by_the_oracle(3, false, uses), &by_us(3, Unused::Refuse, uses), 1e-6);
}

/// One rank never uses the branch, and counts with zero. (A set that changes from pass to pass cannot be shown here: libtorch's reducer then
/// tells its logger, without asking whether it has one.)
#[test]
fn unused_parameters_count_as_in_libtorchs_reducer() {
    tch::set_num_threads(1);
    let uses: Uses = |rank, _| rank == 0;
    let theirs = by_the_oracle(2, true, uses);
    same(&theirs, &by_us(2, Unused::Find, uses), 0.0);
    same(&theirs, &by_us(2, Unused::Static, uses), 0.0);
}
