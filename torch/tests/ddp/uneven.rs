//! Ranks that do not have the same number of samples.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use regatta_torch::ddp::{Buffers, DataParallel, DataParallelConfig, Unused};
use regatta_torch::optim::{Adam, Optimizer};
use regatta_torch::{Error, params};
use tch::nn::{self, ModuleT, VarStore};
use tch::{Device, Kind};

use super::{Net, config, floats, parallel, ranks, samples, values};

#[test]
fn ranks_without_data_shadow_the_others() {
    for unused in [Unused::Refuse, Unused::Find, Unused::Static] {
        let outcomes = ranks(3, |group| {
            let rank = group.rank();
            let net = Net::new(1);
            let mut opt = Adam::new(&net.vs, 1e-2);
            let model = parallel(&net, group, DataParallelConfig { uneven: true, unused, ..config() })?;
            // Ranks have 2, 4 and 1 batches.
            let batches = [2, 4, 1][rank];
            let mut gradients = Vec::new();
            for step in 0..batches {
                let (x, y) = samples(4, rank as i64 * 10 + step);
                model.backward(&net.loss(&x, &y))?;
                gradients.push(floats(&params::parameters(&net.vs)[0].1.grad()));
                opt.step()?;
            }
            let shadowed = model.join(|| opt.step())?;
            assert_eq!((shadowed, model.steps()), (4 - batches as u64, 4));
            model.verify_replicas()?;
            // Everyone is back.
            let (x, y) = samples(4, rank as i64);
            model.backward(&net.loss(&x, &y))?;
            Ok::<_, Error>((net.bits(), gradients))
        });
        let all: Vec<_> = outcomes.into_iter().map(|o| o.unwrap()).collect();
        assert!(all.iter().all(|(bits, _)| bits == &all[0].0), "optimisers took the same steps");
        // In the last step rank 1 was alone: the mean over those present is its own gradient, which is not small.
        assert!(all[1].1[3].iter().any(|g| g.abs() > 1e-3));
    }
}

/// The mean is over those who took part.
#[test]
fn a_mean_over_one_rank_is_its_own_gradient() {
    let outcomes = ranks(2, |group| {
        let rank = group.rank();
        let vs = VarStore::new(Device::Cpu);
        let w = vs.root().var("w", &[3], nn::Init::Const(1.0));
        let norm = nn::batch_norm1d(vs.root() / "norm", 3, Default::default());
        let config =
            DataParallelConfig { uneven: true, buffers: Buffers::Mean, unused: Unused::Find, ..config() };
        let model = DataParallel::new(&vs, group, config)?;
        let before = floats(&norm.running_mean);
        if rank == 0 {
            model.join(|| Ok(()))?;
        } else {
            let x = values(&[6, 3], 2) + 1.0;
            model.backward(
                &((norm.forward_t(&x, true) * &w).sum(Kind::Float) + (&w * 3.0).sum(Kind::Float)),
            )?;
            model.join(|| Ok(()))?;
        }
        assert_ne!(before, floats(&norm.running_mean), "the buffers of the rank that was there");
        Ok::<_, Error>((floats(&w.grad()), floats(&norm.running_mean)))
    });
    let all: Vec<_> = outcomes.into_iter().map(|o| o.unwrap()).collect();
    assert_eq!(all[0], all[1]);
    assert!(all[0].0.iter().all(|g| (g - 3.0).abs() < 1e-4), "{:?}", all[0]);
}

#[test]
fn joining_needs_the_setting() {
    let outcomes = ranks(2, |group| {
        let net = Net::new(1);
        let model = parallel(&net, group, config())?;
        model.join(|| Ok(())).map(|_| ())
    });
    for outcome in outcomes {
        assert!(outcome.unwrap_err().to_string().contains("uneven"));
    }
}

/// 5 samples over 2 ranks: with weights 3 * 2 / 5 and 2 * 2 / 5 the mean is the mean over the samples.
#[test]
fn the_weight_of_a_smaller_batch_makes_every_sample_count_alike() {
    let (x, y) = samples(5, 0);
    let alone = Net::new(3);
    alone.loss(&x, &y).backward();
    let expected: Vec<_> =
        params::parameters(&alone.vs).iter().flat_map(|(_, p)| floats(&p.grad())).collect();
    let outcomes = ranks(2, |group| {
        let rank = group.rank() as i64;
        let net = Net::new(3);
        let weight = Arc::new(AtomicU64::new(1.0f64.to_bits()));
        let read = weight.clone();
        let model = parallel(&net, group, config())?
            .with_weight(move || f64::from_bits(read.load(Ordering::Relaxed)));
        let (from, n) = if rank == 0 { (0, 3) } else { (3, 2) };
        let (x, y) = samples(5, 0);
        weight.store((n as f64 * 2.0 / 5.0).to_bits(), Ordering::Relaxed);
        model.backward(&net.loss(&x.narrow(0, from, n), &y.narrow(0, from, n)))?;
        Ok::<Vec<f32>, Error>(
            params::parameters(&net.vs).iter().flat_map(|(_, p)| floats(&p.grad())).collect(),
        )
    });
    for outcome in outcomes {
        for (a, b) in outcome.unwrap().iter().zip(&expected) {
            assert!((a - b).abs() < 1e-6, "{a} {b}");
        }
    }
}
