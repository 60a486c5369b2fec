//! What a backward pass leaves in `.grad`.

use regatta_torch::ddp::{Compression, DataParallel, DataParallelConfig, PowerSgd, Unused};
use regatta_torch::optim::{Optimizer, Sgd};
use regatta_torch::state::NamedTensor;
use regatta_torch::{Error, memory, params};
use tch::nn::{self, Module, VarStore};
use tch::{Device, Kind, Tensor};

use super::{F32, Net, config, floats, parallel, ranks, same_error, samples, values};

/// Gradients of one rank's batch, computed without any of this.
fn plain_gradients(net: &Net, rank: i64) -> Vec<Vec<f32>> {
    let (x, y) = samples(8, rank);
    net.loss(&x, &y).backward();
    params::parameters(&net.vs).iter().map(|(_, p)| floats(&p.grad())).collect()
}

fn gradients(net: &Net) -> Vec<Vec<f32>> {
    params::parameters(&net.vs).iter().map(|(_, p)| floats(&p.grad())).collect()
}

#[test]
fn gradients_are_the_mean_in_rank_order_and_stay_in_one_place() {
    for world in [2, 3] {
        let alone: Vec<_> = (0..world).map(|r| plain_gradients(&Net::new(5), r as i64)).collect();
        let together = ranks(world, |group| {
            // Ranks begin with different weights: rank 0's count.
            let rank = group.rank() as i64;
            let net = Net::new(5 + rank);
            let model = parallel(&net, group, config())?;
            let (x, y) = samples(8, rank);
            let mut places = Vec::new();
            let mut all = Vec::new();
            for _ in 0..3 {
                model.backward(&net.loss(&x, &y))?;
                places.push(
                    params::parameters(&net.vs).iter().map(|(_, p)| p.grad().data_ptr() as usize).collect(),
                );
                all.push(gradients(&net));
            }
            Ok::<(Vec<Vec<usize>>, _), Error>((places, all))
        });
        for outcome in together {
            let (places, all) = outcome.unwrap();
            // Rebuilt once, after the first pass; then every gradient stays where it is.
            assert_eq!(places[1], places[2]);
            let mut sorted = places[2].clone();
            sorted.sort_unstable();
            assert!(sorted.windows(2).all(|w| w[1] - w[0] >= 64), "no two share a cache line");
            for pass in &all {
                for (p, mean) in pass.iter().enumerate() {
                    for (i, value) in mean.iter().enumerate() {
                        let sum = (0..world).map(|r| alone[r][p][i]).reduce(|a, b| a + b).unwrap();
                        let expected = sum / world as f32;
                        assert!(
                            (value - expected).abs() <= 1e-7 + expected.abs() * 1e-6,
                            "{value} {expected}"
                        );
                    }
                }
            }
            assert_eq!(all[0], all[2], "where a gradient lies changes no bit of it");
        }
    }
}

/// Parameters of other layouts and dtypes go through buckets of their own, and keep their strides.
#[test]
fn channels_last_and_double_parameters_are_reduced_as_they_lie() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank() as f64;
        let vs = VarStore::new(Device::Cpu);
        let conv = vs.root().var("conv", &[5, 3, 2, 2], nn::Init::Const(0.5));
        let mut scale = vs.root().var("scale", &[7], nn::Init::Const(2.0));
        let double = tch::no_grad(|| scale.to_kind(Kind::Double));
        scale.set_data(&double);
        memory::model_to_channels_last(&vs)?;
        let model = DataParallel::new(&vs, group, config())?;
        let weights = values(&[5, 3, 2, 2], 3);
        let loss = (&conv * &weights).sum(Kind::Double) * (rank + 1.0) + scale.sum(Kind::Double) * rank;
        model.backward(&loss)?;
        assert_eq!(conv.grad().stride(), conv.stride());
        assert!(memory::is_channels_last(&conv.grad())?);
        assert_eq!(floats(&conv.grad()), floats(&(&weights * 1.5)));
        assert_eq!(Vec::<f64>::try_from(scale.grad()).unwrap(), [0.5; 7]);
        Ok::<_, Error>(())
    });
    outcomes.into_iter().for_each(|o| o.unwrap());
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank() as i64;
        let (x, y) = samples(24, rank);
        let (one, many) = (Net::new(1), Net::new(1));
        let whole = parallel(&one, group.clone(), config())?;
        let parts = parallel(&many, group, config())?;
        for round in 0..3 {
            whole.backward(&one.loss(&x, &y))?;
            for part in 0..3 {
                let loss = many.loss(&x.narrow(0, part * 8, 8), &y.narrow(0, part * 8, 8)) / 3.0;
                if part < 2 { parts.accumulate(&loss)? } else { parts.backward(&loss)? }
            }
            for (a, b) in gradients(&one).concat().into_iter().zip(gradients(&many).concat()) {
                assert!((a - b).abs() < 1e-6, "round {round}: {a} {b}");
            }
        }
        assert_eq!(parts.steps(), 3);
        Ok::<_, Error>(())
    });
    outcomes.into_iter().for_each(|o| o.unwrap());
}

/// A model of which some passes use only a part.
struct Branches {
    vs: VarStore,
    left: nn::Linear,
    right: nn::Linear,
    never: nn::Linear,
}

impl Branches {
    fn new() -> Branches {
        let vs = VarStore::new(Device::Cpu);
        let zero = nn::LinearConfig {
            ws_init: nn::Init::Const(0.5),
            bs_init: Some(nn::Init::Const(0.1)),
            bias: true,
        };
        let layer = |name: &str| nn::linear(vs.root() / name, 3, 1, zero);
        let (left, right, never) = (layer("left"), layer("right"), layer("never"));
        Branches { vs, left, right, never }
    }

    fn loss(&self, left: bool, right: bool) -> Tensor {
        let x = Tensor::ones([2, 3], F32);
        let mut sum = Tensor::zeros([2, 1], F32);
        if left {
            sum += self.left.forward(&x);
        }
        if right {
            sum += self.right.forward(&x);
        }
        sum.mean(Kind::Float)
    }
}

#[test]
fn an_unused_parameter_is_named_on_all_ranks_and_nobody_hangs() {
    let outcomes = ranks(3, |group| {
        let rank = group.rank();
        let net = Branches::new();
        let model = DataParallel::new(&net.vs, group, config())?;
        let all = |net: &Branches| {
            net.loss(true, true)
                + net.never.ws.sum(Kind::Float)
                + net.never.bs.as_ref().unwrap().sum(Kind::Float)
        };
        model.backward(&all(&net))?;
        // Rank 1 alone leaves one out.
        let loss = if rank == 1 { all(&net) - net.loss(false, true) + 0.0 } else { all(&net) };
        let without = net.loss(true, false)
            + net.never.ws.sum(Kind::Float)
            + net.never.bs.as_ref().unwrap().sum(Kind::Float);
        let failed = model.backward(if rank == 1 { &without } else { &loss });
        // The group is still good.
        model.backward(&all(&net))?;
        failed
    });
    let error = same_error(outcomes);
    let Error::Unused { rank: 1, parameters, .. } = &error else { panic!("{error}") };
    assert!(parameters[0].starts_with("right."), "{error}");
}

#[test]
fn unused_parameters_are_found_in_every_pass() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank();
        let net = Branches::new();
        let model =
            DataParallel::new(&net.vs, group, DataParallelConfig { unused: Unused::Find, ..config() })?;
        for round in 0..3 {
            // Left on both ranks, right on one that changes.
            model.backward(&net.loss(true, rank == round % 2))?;
            assert_eq!(floats(&net.left.ws.grad()), [1.0; 3]);
            assert_eq!(floats(&net.right.ws.grad()), [0.5; 3], "the other rank counts with zero");
            assert!(!net.never.ws.grad().defined(), "what nobody reaches has no gradient");
        }
        model.backward(&net.loss(true, false))?;
        assert!(!net.right.ws.grad().defined());
        Ok::<_, Error>(())
    });
    outcomes.into_iter().for_each(|o| o.unwrap());
}

#[test]
fn unused_parameters_that_stay_the_same_are_found_once() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank();
        let net = Branches::new();
        let model =
            DataParallel::new(&net.vs, group, DataParallelConfig { unused: Unused::Static, ..config() })?;
        for _ in 0..3 {
            model.backward(&net.loss(true, rank == 0))?;
            assert_eq!(floats(&net.left.ws.grad()), [1.0; 3]);
            assert_eq!(floats(&net.right.ws.grad()), [0.5; 3]);
            assert!(!net.never.ws.grad().defined());
        }
        let missing = model.backward(&net.loss(rank == 0, true));
        assert!(matches!(&missing, Err(Error::Unused { rank: 1, .. })), "{missing:?}");
        model
            .backward(&(net.loss(true, rank == 0) + net.never.ws.sum(Kind::Float) * rank as f64))
            .and_then(|()| model.backward(&(net.loss(true, rank == 0) + net.never.ws.sum(Kind::Float))))
    });
    let error = same_error(outcomes);
    assert!(
        error.to_string().contains("no rank had reached") && error.to_string().contains("never.weight"),
        "{error}"
    );
}

#[test]
fn losses_and_gradients_that_are_not_finite_are_the_same_error_at_the_same_step() {
    let nan_loss = |rank: usize| if rank == 1 { f64::NAN } else { 1.0 };
    let outcomes = ranks(2, |group| {
        let rank = group.rank();
        let net = Net::new(2);
        let model = parallel(&net, group, config())?;
        let (x, y) = samples(4, 0);
        model.backward(&net.loss(&x, &y))?;
        model.backward(&(net.loss(&x, &y) * nan_loss(rank)))
    });
    let error = same_error(outcomes);
    assert!(matches!(error, Error::NotFinite { step: 1, rank: Some(1), .. }), "{error}");

    // A finite loss with an infinite gradient, on one rank and in one parameter: sqrt at zero.
    let outcomes = ranks(2, |group| {
        let rank = group.rank();
        let net = Net::new(2);
        let model = parallel(&net, group, config())?;
        let (x, y) = samples(4, 0);
        let all = params::parameters(&net.vs);
        let (_, bias) = all.iter().find(|(name, _)| name == "second.bias").unwrap();
        let spike = if rank == 0 {
            (bias - bias.detach()).sqrt().sum(Kind::Float)
        } else {
            bias.sum(Kind::Float) * 0.0
        };
        let failed = model.backward(&(net.loss(&x, &y) + spike));
        // The next batch is fine, and so is the group.
        model.backward(&net.loss(&x, &y))?;
        assert!(gradients(&net).concat().iter().all(|g| g.is_finite()));
        failed
    });
    let error = same_error(outcomes);
    assert_eq!(error.to_string(), "step 0: the gradient of second.bias on rank 0 is not finite");

    // One rank alone is checked too.
    let net = Net::new(2);
    let model = parallel(&net, ranks(1, |group| group).remove(0), config()).unwrap();
    let (x, y) = samples(4, 0);
    model.backward(&net.loss(&x, &y)).unwrap();
    assert!(matches!(model.backward(&(net.loss(&x, &y) * f64::NAN)), Err(Error::NotFinite { step: 1, .. })));
}

#[test]
fn gradients_can_travel_in_sixteen_bits() {
    for compression in [Compression::Bf16, Compression::F16] {
        let outcomes = ranks(2, |group| {
            let rank = group.rank() as i64;
            let (exact, narrow) = (Net::new(4), Net::new(4));
            let a = parallel(&exact, group.clone(), config())?;
            let b = parallel(&narrow, group, DataParallelConfig { compression, ..config() })?;
            let (x, y) = samples(8, rank);
            for _ in 0..2 {
                a.backward(&exact.loss(&x, &y))?;
                b.backward(&narrow.loss(&x, &y))?;
            }
            let (exact, narrow) = (gradients(&exact).concat(), gradients(&narrow).concat());
            assert_ne!(exact, narrow, "something was rounded");
            for (a, b) in exact.iter().zip(&narrow) {
                assert!((a - b).abs() <= 1e-3 + a.abs() / 64.0, "{a} {b}");
            }
            Ok::<_, Error>(narrow)
        });
        let all: Vec<_> = outcomes.into_iter().map(|o| o.unwrap()).collect();
        assert_eq!(all[0], all[1], "the same bits on all ranks");
    }
}

#[test]
fn clipping_works_on_gradients_in_buckets() {
    let outcomes = ranks(2, |group| {
        let net = Net::new(6);
        let mut opt = Sgd::new(&net.vs, 0.1);
        let (x, y) = samples(8, group.rank() as i64);
        let model = parallel(&net, group, config())?;
        model.backward(&net.loss(&x, &y))?;
        let before: f32 = gradients(&net).concat().iter().map(|g| g * g).sum::<f32>().sqrt();
        let told = opt.clip_grad_norm(0.01)?.double_value(&[]) as f32;
        let after: f32 = gradients(&net).concat().iter().map(|g| g * g).sum::<f32>().sqrt();
        assert!((told - before).abs() < 1e-4 && (after - 0.01).abs() < 1e-4, "{told} {before} {after}");
        // A call of zero_grad is not needed, and does no harm.
        opt.zero_grad()?;
        model.backward(&net.loss(&x, &y))?;
        opt.step()?;
        Ok::<_, Error>(net.bits())
    });
    let bits: Vec<_> = outcomes.into_iter().map(|o| o.unwrap()).collect();
    assert_eq!(bits[0], bits[1]);
}

fn power_sgd(rank: usize, start: u64) -> DataParallelConfig {
    let compression = Compression::PowerSgd(PowerSgd { rank, start, least_ratio: 1.0 });
    DataParallelConfig { compression, ..config() }
}

/// Of a matrix of rank one nothing is lost; of others, what a pass does not send it sends later.
#[test]
fn power_sgd_is_exact_for_thin_matrices_and_catches_up_for_others() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank() as f64;
        let vs = VarStore::new(Device::Cpu);
        let (thin, full) = (vs.root().zeros("thin", &[20, 30]), vs.root().zeros("full", &[20, 30]));
        let bias = vs.root().zeros("bias", &[20]);
        let model = DataParallel::new(&vs, group, power_sgd(1, 1))?;
        let thin_part = values(&[20, 1], 1).matmul(&values(&[1, 30], 2)) * (rank + 1.0);
        let full_part = values(&[20, 30], 3 + rank as i64);
        let mean = (values(&[20, 30], 3) + values(&[20, 30], 4)) * 0.5;
        let mut sent = Tensor::zeros([20, 30], F32);
        let mut first = 0.0;
        for pass in 0..100 {
            let loss = (&thin * &thin_part).sum(Kind::Float)
                + (&full * &full_part).sum(Kind::Float)
                + (&bias * (rank + 1.0)).sum(Kind::Float);
            model.backward(&loss)?;
            let off = (thin.grad() - &thin_part * (1.5 / (rank + 1.0))).abs().max().double_value(&[]);
            assert!(off < 1e-4, "pass {pass}: {off}");
            assert_eq!(floats(&bias.grad()), [1.5; 20], "what is no matrix travels as it is");
            let error = (full.grad() - &mean).norm().double_value(&[]);
            if pass == 0 {
                assert!(error < 1e-5, "the first passes are exact");
                continue;
            }
            sent += full.grad();
            let behind = (&sent / pass as f64 - &mean).norm().double_value(&[]);
            if pass == 1 {
                first = behind
            } else if pass == 99 {
                assert!(behind < first / 5.0, "{behind} of {first}")
            }
        }
        Ok::<_, Error>(floats(&full.grad()))
    });
    let all: Vec<_> = outcomes.into_iter().map(|o| o.unwrap()).collect();
    assert_eq!(all[0], all[1], "the same bits on all ranks");
}

/// A run that is resumed with the compressor's state has the same bits as one that was not interrupted.
#[test]
fn the_state_of_power_sgd_is_all_that_a_resume_needs() {
    let run = |interrupted: bool| {
        let outcomes = ranks(2, |group| {
            let rank = group.rank() as i64;
            let net = Net::new(2);
            let mut model = parallel(&net, group.clone(), power_sgd(2, 2))?;
            for step in 0..8 {
                if interrupted && step == 5 {
                    let mut saved = model.compression_state().expect("PowerSGD has a state");
                    saved.tensors =
                        saved.tensors.iter().map(|t| NamedTensor::new(t.name(), t.tensor().copy())).collect();
                    drop(model);
                    model = parallel(&net, group.clone(), power_sgd(2, 2))?;
                    model.load_compression_state(&saved)?;
                    assert_eq!(model.steps(), 5);
                    saved.tensors.pop();
                    assert!(matches!(model.load_compression_state(&saved), Err(Error::Mismatch { .. })));
                }
                let (x, y) = samples(8, rank * 10 + step);
                model.backward(&net.loss(&x, &y))?;
                for (_, p) in params::parameters(&net.vs) {
                    let _ = tch::no_grad(|| p.shallow_clone().f_sub_(&(p.grad() * 0.05)))?;
                }
            }
            model.verify_replicas()?;
            Ok::<_, Error>(net.bits())
        });
        outcomes.into_iter().map(|o| o.unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(run(false), run(true));
}
