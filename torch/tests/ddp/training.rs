//! Whole trainings: replicas, one rank against many, buffers, models that differ.

use regatta_torch::ddp::{Buffers, DataParallel, DataParallelConfig};
use regatta_torch::optim::{Adam, Optimizer, Sgd};
use regatta_torch::{Error, Result};
use tch::nn::{self, ModuleT, VarStore};
use tch::{Device, Kind, Tensor};

use super::{F32, Net, config, floats, parallel, ranks, same_error, samples, values};

const GLOBAL_BATCH: i64 = 12;

/// Trains on the same global batches whatever the world; every rank's losses and final bits.
fn train(world: usize, steps: i64) -> Vec<(Vec<f64>, Vec<u8>)> {
    let outcomes = ranks(world, |group| {
        let (rank, world) = (group.rank() as i64, group.world_size() as i64);
        let net = Net::new(rank + 8 * (world - 1) * rank);
        let mut opt = Adam::new(&net.vs, 1e-2);
        let model = parallel(&net, group, config())?;
        let mut losses = Vec::new();
        for step in 0..steps {
            let (x, y) = samples(GLOBAL_BATCH, step);
            losses.push(tch::no_grad(|| net.loss(&x, &y).double_value(&[])));
            let share = GLOBAL_BATCH / world;
            let loss = net.loss(&x.narrow(0, rank * share, share), &y.narrow(0, rank * share, share));
            model.backward(&loss)?;
            opt.step()?;
        }
        model.verify_replicas()?;
        Ok::<_, Error>((losses, net.bits()))
    });
    outcomes.into_iter().map(|o| o.unwrap()).collect()
}

#[test]
fn one_rank_and_many_see_the_same_losses_and_replicas_hold_the_same_bits() {
    let alone = train(1, 50).remove(0);
    assert!(alone.0[49] < alone.0[0], "it learns");
    for (world, steps) in [(2, 50), (3, 12)] {
        let first = train(world, steps);
        for (losses, bits) in &first {
            assert_eq!(bits, &first[0].1, "replicas hold the same bits");
            for (step, (one, many)) in alone.0.iter().zip(losses).enumerate() {
                assert!(
                    (one - many).abs() < 2e-4 * one.abs().max(1.0),
                    "step {step}: {one} alone, {many} by {world}"
                );
            }
        }
        assert_eq!(first, train(world, steps), "and the same bits in every run");
    }
}

#[test]
fn models_that_differ_are_named_by_parameter_and_rank_on_all_ranks() {
    let build = |f: &(dyn Fn(usize, &VarStore) + Sync)| {
        same_error(ranks(3, |group| {
            let vs = VarStore::new(Device::Cpu);
            f(group.rank(), &vs);
            DataParallel::new(&vs, group, config()).map(|_| ())
        }))
    };
    let error = build(&|rank, vs| {
        let _ = vs.root().zeros("a", &[2, 3]);
        let _ = vs.root().zeros("b", if rank == 2 { &[4, 5] } else { &[5, 4] });
    });
    assert!(matches!(&error, Error::Replica { rank: 2, parameter, .. } if parameter == "b"), "{error}");
    assert!(error.to_string().contains("[4, 5]") && error.to_string().contains("[5, 4]"), "{error}");
    let error = build(&|rank, vs| {
        let _ = vs.root().zeros("a", &[2]);
        if rank != 1 {
            let _ = vs.root().zeros("b", &[2]);
        }
    });
    assert!(matches!(&error, Error::Replica { rank: 1, parameter, .. } if parameter == "b"), "{error}");
    let error = build(&|rank, vs| {
        let mut a = vs.root().zeros("a", &[2]);
        if rank == 1 {
            a.set_data(&a.to_kind(Kind::Double));
        }
    });
    assert!(error.to_string().contains("Double"), "{error}");
    // The same bytes in another order of memory would be added up crosswise.
    let error = build(&|rank, vs| {
        let mut a = vs.root().zeros("a", &[3, 3]);
        if rank == 1 {
            a.set_data(&a.detach().tr().contiguous().tr());
        }
    });
    assert!(error.to_string().contains("strides"), "{error}");
    let error = same_error(ranks(2, |group| {
        let vs = VarStore::new(Device::Cpu);
        let bytes = 1 << (10 + group.rank());
        DataParallel::new(&vs, group, DataParallelConfig { bucket_bytes: bytes, ..config() }).map(|_| ())
    }));
    assert!(
        matches!(&error, Error::Replica { rank: 1, parameter, .. } if parameter == "the configuration"),
        "{error}"
    );
}

#[test]
fn a_replica_that_drifts_is_named() {
    let outcomes = ranks(3, |group| {
        let rank = group.rank();
        let net = Net::new(3);
        let model = parallel(&net, group, DataParallelConfig { verify_every: 2, ..config() })?;
        let (x, y) = samples(4, 0);
        model.backward(&net.loss(&x, &y))?;
        if rank == 2 {
            let weight = &net.vs.variables()["third.weight"];
            let _ = tch::no_grad(|| weight.get(0).get(0).fill_(0.123));
        }
        model.backward(&net.loss(&x, &y))
    });
    let error = same_error(outcomes);
    assert!(
        matches!(&error, Error::Replica { rank: 2, parameter, .. } if parameter == "third.weight"),
        "{error}"
    );
}

/// A batch normalisation whose running mean each rank sees differently.
fn running_means(how: Buffers) -> Result<Vec<Vec<f32>>> {
    ranks(2, |group| {
        let rank = group.rank() as f64;
        let vs = VarStore::new(Device::Cpu);
        let norm = nn::batch_norm1d(
            vs.root(),
            3,
            nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() },
        );
        let model = DataParallel::new(&vs, group, DataParallelConfig { buffers: how, ..config() })?;
        let mut opt = Sgd::new(&vs, 0.0);
        let x = values(&[8, 3], 1) + rank;
        model.backward(&norm.forward_t(&x, true).square().sum(Kind::Float))?;
        opt.step()?;
        Ok(floats(&norm.running_mean))
    })
    .into_iter()
    .collect()
}

#[test]
fn buffers_are_broadcast_averaged_or_left() {
    let own = running_means(Buffers::Leave).unwrap();
    assert!((own[1][0] - own[0][0] - 0.1).abs() < 1e-6, "momentum 0.1 of a mean that is one larger: {own:?}");
    assert_eq!(running_means(Buffers::Broadcast).unwrap(), [own[0].clone(), own[0].clone()]);
    let mean = running_means(Buffers::Mean).unwrap();
    assert_eq!(mean[0], mean[1]);
    for i in 0..3 {
        assert!((mean[0][i] - (own[0][i] + own[1][i]) / 2.0).abs() < 1e-6, "{mean:?} {own:?}");
    }
}

#[test]
fn frozen_parameters_are_left_alone_and_the_same_everywhere() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank() as f64;
        let vs = VarStore::new(Device::Cpu);
        let free = vs.root().var("free", &[2], nn::Init::Const(rank));
        let frozen = vs.root().var("frozen", &[2], nn::Init::Const(rank + 5.0)).set_requires_grad(false);
        let model = DataParallel::new(&vs, group, config())?;
        model.backward(&((&free * &frozen).sum(Kind::Float) * Tensor::ones([], F32)))?;
        assert_eq!((floats(&free), floats(&frozen)), (vec![0.0; 2], vec![5.0; 2]));
        assert_eq!(floats(&free.grad()), [5.0; 2]);
        Ok::<_, Error>(frozen.grad().defined())
    });
    outcomes.into_iter().for_each(|o| assert!(!o.unwrap()));
}
