//! Optimisers against libtorch's own C++ ones, and what they do with groups, gradients and bad numbers.

use regatta_torch::autograd::set_grad;
use regatta_torch::optim::{Adam, AdamW, Group, Optimizer, Sgd};
use regatta_torch::{Error, backward, memory};
use tch::nn::{self, OptimizerConfig};
use tch::{Kind, Tensor};

use crate::{F32, Net, alone, batch, largest_difference};

/// A hundred steps of both from the same start, the learning rate halved half way.
fn agrees(
    case: &str,
    ours: impl FnOnce(&nn::VarStore) -> Box<dyn Optimizer>,
    theirs: impl OptimizerConfig,
    lr: f64,
) {
    let _alone = alone();
    let (x, y) = batch();
    let (mine, other) = (Net::plain(5), Net::plain(5));
    assert_eq!(largest_difference(&mine.weights(), &other.weights()), 0.0);
    let start = mine.weights();
    let mut ours = ours(&mine.vs);
    let mut theirs = theirs.build(&other.vs, lr).unwrap();
    for step in 0..100 {
        if step == 50 {
            ours.set_lr(lr / 2.0).unwrap();
            theirs.set_lr(lr / 2.0);
        }
        ours.zero_grad().unwrap();
        backward(&mine.loss(&x, &y)).unwrap();
        ours.step().unwrap();
        theirs.backward_step(&other.loss(&x, &y));
    }
    assert!(largest_difference(&mine.weights(), &start) > 1e-3, "{case}: nothing was trained");
    let difference = largest_difference(&mine.weights(), &other.weights());
    assert!(difference <= 1e-6, "{case}: differs by {difference:e} after 100 steps");
}

fn boxed(optimizer: impl Optimizer + 'static) -> Box<dyn Optimizer> {
    Box::new(optimizer)
}

#[test]
fn sgd_agrees_with_libtorch() {
    for momentum in [0.0, 0.9] {
        for weight_decay in [0.0, 0.01] {
            for nesterov in [false, true] {
                if nesterov && momentum == 0.0 {
                    continue;
                }
                agrees(
                    &format!("SGD momentum {momentum} decay {weight_decay} nesterov {nesterov}"),
                    |vs| {
                        let sgd = Sgd::new(vs, 0.05).momentum(momentum).weight_decay(weight_decay);
                        boxed(sgd.nesterov(nesterov))
                    },
                    nn::sgd(momentum, 0.0, weight_decay, nesterov),
                    0.05,
                );
            }
        }
    }
}

#[test]
fn adam_agrees_with_libtorch() {
    for weight_decay in [0.0, 0.01] {
        for amsgrad in [false, true] {
            agrees(
                &format!("Adam decay {weight_decay} amsgrad {amsgrad}"),
                |vs| boxed(Adam::new(vs, 1e-3).betas(0.8, 0.99).weight_decay(weight_decay).amsgrad(amsgrad)),
                nn::adam(0.8, 0.99, weight_decay).amsgrad(amsgrad),
                1e-3,
            );
        }
    }
}

#[test]
fn adamw_agrees_with_libtorch() {
    for weight_decay in [0.0, 0.1] {
        for amsgrad in [false, true] {
            agrees(
                &format!("AdamW decay {weight_decay} amsgrad {amsgrad}"),
                |vs| boxed(AdamW::new(vs, 1e-3).weight_decay(weight_decay).eps(1e-6).amsgrad(amsgrad)),
                nn::adamw(0.9, 0.999, weight_decay).eps(1e-6).amsgrad(amsgrad),
                1e-3,
            );
        }
    }
}

fn param(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).set_requires_grad(true)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.detach()).unwrap()
}

#[test]
fn a_group_has_its_own_rate_and_decay_and_follows_the_schedule() {
    let _alone = alone();
    let (weight, bias) = (param(&[1.0]), param(&[1.0]));
    let params = vec![("weight".into(), weight.shallow_clone()), ("bias".into(), bias.shallow_clone())];
    let own = Group::matching(|name| name == "bias").lr_scale(0.5).weight_decay(0.0);
    let mut opt = Sgd::from_params(params, 0.1).weight_decay(1.0).group(own);
    let mut step = || {
        opt.zero_grad().unwrap();
        backward(&(&weight * 2.0 + &bias * 2.0).sum(Kind::Float)).unwrap();
        opt.step().unwrap();
        opt.set_lr(0.2).unwrap();
    };
    step();
    assert!((values(&weight)[0] - (1.0 - 0.1 * (2.0 + 1.0))).abs() < 1e-6);
    assert!((values(&bias)[0] - (1.0 - 0.05 * 2.0)).abs() < 1e-6);
    let before = values(&bias)[0];
    step();
    assert!((values(&bias)[0] - (before - 0.1 * 2.0)).abs() < 1e-6);
}

#[test]
fn zero_grad_zeroes_what_others_see_and_releases_the_rest() {
    let _alone = alone();
    let (held, bucketed, lonely) = (param(&[1.0; 3]), param(&[1.0; 3]), param(&[1.0; 3]));
    let foreign = param(&[1.0; 3]);
    let bucket = Tensor::zeros([6], F32);
    set_grad(&bucketed, Some(&bucket.narrow(0, 3, 3))).unwrap();
    // The handle goes, the foreign memory must stay the gradient's.
    set_grad(&foreign, Some(&memory::tensor_over(vec![0.0f32; 3], Kind::Float, &[3]).unwrap())).unwrap();
    let address = foreign.grad().data_ptr();
    let params = [&held, &bucketed, &lonely, &foreign];
    let named = params.iter().enumerate().map(|(i, p)| (i.to_string(), p.shallow_clone())).collect();
    let mut opt = Sgd::from_params(named, 0.1);
    let loss = || params.iter().map(|&p| (p * 3.0).sum(Kind::Float)).sum::<Tensor>();
    backward(&loss()).unwrap();
    let alias = held.grad();
    assert_eq!(values(&alias), [3.0; 3]);
    assert_eq!(values(&bucket), [0.0, 0.0, 0.0, 3.0, 3.0, 3.0]);

    opt.zero_grad().unwrap();
    assert_eq!(values(&alias), [0.0; 3]);
    assert_eq!(values(&bucket), [0.0; 6]);
    assert!(!lonely.grad().defined(), "a gradient nobody sees is let go");
    assert_eq!(foreign.grad().data_ptr(), address);
    assert_eq!(values(&foreign.grad()), [0.0; 3]);

    backward(&loss()).unwrap();
    assert_eq!(alias.data_ptr(), held.grad().data_ptr());
    for grad in [&alias, &lonely.grad(), &bucketed.grad(), &foreign.grad()] {
        assert_eq!(values(grad), [3.0; 3], "every gradient is fresh, not accumulated");
    }
}

#[test]
fn parameters_without_a_gradient_are_left_alone_with_their_step_count() {
    let _alone = alone();
    let (used, late) = (param(&[1.0]), param(&[1.0]));
    let reference = param(&[1.0]);
    let params = vec![("used".into(), used.shallow_clone()), ("late".into(), late.shallow_clone())];
    let mut opt = Adam::from_params(params, 0.1);
    let mut fresh = Adam::from_params(vec![("late".into(), reference.shallow_clone())], 0.1);
    for _ in 0..3 {
        opt.zero_grad().unwrap();
        backward(&(&used * &used).sum(Kind::Float)).unwrap();
        opt.step().unwrap();
    }
    assert_eq!(values(&late), [1.0]);
    opt.zero_grad().unwrap();
    backward(&(&used * &late).sum(Kind::Float)).unwrap();
    let gradient = late.grad().copy();
    opt.step().unwrap();
    set_grad(&reference, Some(&gradient)).unwrap();
    fresh.step().unwrap();
    assert_eq!(values(&late), values(&reference), "its first step is a first step");
}

#[test]
fn clipping_bounds_the_common_norm_and_reports_it() {
    let _alone = alone();
    let (a, b) = (param(&[0.0; 2]), param(&[0.0]));
    let params = vec![("a".into(), a.shallow_clone()), ("b".into(), b.shallow_clone())];
    let mut opt = Sgd::from_params(params, 0.1);
    let fill = |a_grad: &[f32], b_grad: f32| {
        set_grad(&a, Some(&Tensor::from_slice(a_grad))).unwrap();
        set_grad(&b, Some(&Tensor::from_slice(&[b_grad]))).unwrap();
    };
    fill(&[2.0, 3.0], 6.0);
    let norm = opt.clip_grad_norm(1.0).unwrap();
    assert!((norm.double_value(&[]) - 7.0).abs() < 1e-6);
    for (grad, want) in
        values(&a.grad()).iter().chain(&values(&b.grad())).zip([2.0 / 7.0, 3.0 / 7.0, 6.0 / 7.0])
    {
        assert!((grad - want).abs() < 1e-6);
    }
    fill(&[2.0, 3.0], 6.0);
    let _ = opt.clip_grad_norm(10.0).unwrap();
    assert_eq!(values(&a.grad()), [2.0, 3.0], "below the bound nothing changes");
}

#[test]
fn a_step_with_non_finite_gradients_is_skipped_and_counted() {
    let _alone = alone();
    let w = param(&[1.0, 2.0]);
    let named = || vec![("w".to_string(), w.shallow_clone())];
    let mut plain = Adam::from_params(named(), 0.1);
    let mut guarded = Adam::from_params(named(), 0.1).skip_nonfinite();
    let give = |grad: [f32; 2]| set_grad(&w, Some(&Tensor::from_slice(&grad))).unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        give([1.0, bad]);
        guarded.step().unwrap();
        assert_eq!(values(&w), [1.0, 2.0]);
    }
    assert_eq!(guarded.skipped_steps().unwrap(), 2);
    let state = guarded.state().unwrap();
    for tensor in &state.tensors {
        assert_eq!(tensor.tensor().abs().sum(Kind::Double).double_value(&[]), 0.0, "{} moved", tensor.name());
    }
    give([1.0, 1.0]);
    guarded.step().unwrap();
    let guarded_step = values(&w);
    tch::no_grad(|| w.shallow_clone().copy_(&Tensor::from_slice(&[1.0f32, 2.0])));
    plain.step().unwrap();
    assert_eq!(values(&w), guarded_step, "the first good step is a first step");
    assert_eq!(guarded.skipped_steps().unwrap(), 2);
    give([f32::NAN, 1.0]);
    plain.step().unwrap();
    assert!(values(&w)[0].is_nan(), "without the guard nothing is skipped");
}

#[test]
fn a_change_of_layout_in_mid_training_changes_no_numbers() {
    let _alone = alone();
    let start = Tensor::randn([4, 3, 2, 2], F32);
    let slope = Tensor::randn([4, 3, 2, 2], F32);
    let train = |relaid: bool| {
        let mut own = start.copy().set_requires_grad(true);
        let mut opt = AdamW::from_params(vec![("w".into(), own.shallow_clone())], 0.1);
        for step in 0..4 {
            opt.zero_grad().unwrap();
            backward(&(&own * &own * &slope).sum(Kind::Float)).unwrap();
            if relaid && step == 2 {
                // The moments and this gradient lie the old way.
                own.set_data(&memory::channels_last(&own.detach()).unwrap());
            }
            opt.step().unwrap();
        }
        assert_eq!(memory::is_channels_last(&own).unwrap(), relaid);
        own.detach().contiguous()
    };
    assert_eq!((train(false) - train(true)).abs().max().double_value(&[]), 0.0);
}

#[test]
fn half_precision_and_double_parameters_train_side_by_side() {
    let _alone = alone();
    let kinds = [Kind::Float, Kind::Double, Kind::BFloat16];
    let params: Vec<_> =
        kinds.iter().map(|&kind| Tensor::ones([8], F32).to_kind(kind).set_requires_grad(true)).collect();
    let named = params.iter().enumerate().map(|(i, p)| (i.to_string(), p.shallow_clone())).collect();
    let mut opt = Adam::from_params(named, 0.125);
    opt.zero_grad().unwrap();
    backward(&params.iter().map(|p| p.sum(Kind::Float)).sum::<Tensor>()).unwrap();
    opt.step().unwrap();
    for param in &params {
        let moved = param.double_value(&[0]);
        assert!((moved - 0.875).abs() < 1e-2, "{:?} went to {moved}", param.kind());
    }
}

#[test]
fn wrong_settings_are_refused_with_a_reason() {
    let _alone = alone();
    let w = param(&[1.0]);
    let computed = &w * 2.0;
    let error = Adam::from_params(vec![("computed".into(), computed)], 0.1).step().unwrap_err();
    assert!(error.to_string().contains("computed is not a floating-point leaf"), "{error}");
    let error =
        Sgd::from_params(vec![("w".into(), w.shallow_clone())], 0.1).nesterov(true).step().unwrap_err();
    assert!(error.to_string().contains("momentum above zero"), "{error}");
    let mut opt = Sgd::from_params(vec![("w".into(), w.shallow_clone())], 0.1);
    assert!(matches!(opt.set_lr(f64::NAN), Err(Error::Argument { .. })));
    assert_eq!(opt.lr(), 0.1);
}
