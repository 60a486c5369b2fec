//! Autocast and the gradient scaler.

use regatta_torch::amp::{self, GradScaler, GradScalerConfig};
use regatta_torch::autograd::set_grad;
use regatta_torch::optim::{Optimizer, Sgd};
use regatta_torch::{Error, backward};
use tch::{Device, Kind, Tensor};

use crate::{F32, alone};

fn product() -> Kind {
    let a = Tensor::ones([4, 4], F32);
    a.matmul(&a).kind()
}

#[test]
fn autocast_changes_the_dtype_and_nests() {
    let _alone = alone();
    assert_eq!(product(), Kind::Float);
    {
        let _outer = amp::autocast(Device::Cpu, Kind::BFloat16).unwrap();
        assert_eq!(product(), Kind::BFloat16);
        {
            let _half = amp::autocast(Device::Cpu, Kind::Half).unwrap();
            assert_eq!(product(), Kind::Half);
            let _none = amp::without_autocast(Device::Cpu).unwrap();
            assert_eq!(product(), Kind::Float);
        }
        assert_eq!(product(), Kind::BFloat16);
        let elsewhere = std::thread::spawn(product).join().unwrap();
        assert_eq!(elsewhere, Kind::Float, "other threads are not touched");
    }
    assert_eq!(product(), Kind::Float);
}

#[test]
fn weights_keep_their_precision_and_get_their_gradients() {
    let _alone = alone();
    let w = Tensor::ones([4, 4], F32).set_requires_grad(true);
    let loss = {
        let _autocast = amp::autocast(Device::Cpu, Kind::BFloat16).unwrap();
        let once = w.matmul(&w);
        assert_eq!(once.kind(), Kind::BFloat16);
        once.sum(Kind::Float)
    };
    backward(&loss).unwrap();
    assert_eq!(w.grad().kind(), Kind::Float);
    assert_eq!(w.grad().double_value(&[0, 0]), 8.0);
    // The cache of converted weights ends with the guard: a changed weight is seen by the next one.
    let _ = tch::no_grad(|| w.shallow_clone().fill_(2.0));
    let _autocast = amp::autocast(Device::Cpu, Kind::BFloat16).unwrap();
    assert_eq!(w.matmul(&w).double_value(&[0, 0]), 16.0);
}

#[test]
fn autocast_refuses_what_is_no_low_precision() {
    let _alone = alone();
    assert!(matches!(amp::autocast(Device::Cpu, Kind::Float), Err(Error::Argument { .. })));
}

struct Scaled {
    w: Tensor,
    opt: Sgd,
    scaler: GradScaler,
}

fn scaled() -> Scaled {
    let w = Tensor::ones([2], F32).set_requires_grad(true);
    let opt = Sgd::from_params(vec![("w".into(), w.shallow_clone())], 0.5);
    let config = GradScalerConfig { init_scale: 8.0, growth_interval: 2, ..Default::default() };
    Scaled { w, opt, scaler: GradScaler::new(Device::Cpu, config).unwrap() }
}

impl Scaled {
    fn step(&mut self, factor: f64) {
        self.opt.zero_grad().unwrap();
        backward(&self.scaler.scale(&(&self.w * factor).sum(Kind::Float))).unwrap();
        self.scaler.step(&mut self.opt).unwrap();
        self.scaler.update().unwrap();
    }

    fn at(&self) -> (f64, f64, i64) {
        let state = self.scaler.state().unwrap();
        (self.w.double_value(&[0]), state.scale, state.growth_tracker)
    }
}

#[test]
fn the_scale_cancels_grows_and_backs_off() {
    let _alone = alone();
    let mut run = scaled();
    run.step(1.0);
    assert_eq!(run.at(), (0.5, 8.0, 1));
    run.step(1.0);
    assert_eq!(run.at(), (0.0, 16.0, 0), "two good steps double the scale");
    run.step(f64::INFINITY);
    assert_eq!(run.at(), (0.0, 8.0, 0), "a bad step is skipped and halves the scale");
    assert_eq!(run.opt.skipped_steps().unwrap(), 1);
    run.step(1.0);
    assert_eq!(run.at(), (-0.5, 8.0, 1));
}

#[test]
fn unscaled_gradients_can_be_clipped_and_are_unscaled_once() {
    let _alone = alone();
    let mut run = scaled();
    set_grad(&run.w, Some(&Tensor::from_slice(&[24.0f32, 32.0]))).unwrap();
    run.scaler.unscale(&mut run.opt).unwrap();
    let norm = run.opt.clip_grad_norm(1.0).unwrap();
    assert!((norm.double_value(&[]) - 5.0).abs() < 1e-5);
    run.scaler.step(&mut run.opt).unwrap();
    run.scaler.update().unwrap();
    assert!((run.w.double_value(&[0]) - (1.0 - 0.5 * 0.6)).abs() < 1e-5);
    let error = run.scaler.update().unwrap_err().to_string();
    assert!(error.contains("no optimiser was unscaled"), "{error}");
}

#[test]
fn one_bad_optimizer_of_two_lowers_the_scale_for_both() {
    let _alone = alone();
    let mut run = scaled();
    let other = Tensor::ones([1], F32).set_requires_grad(true);
    let mut opt = Sgd::from_params(vec![("other".into(), other.shallow_clone())], 0.5);
    set_grad(&run.w, Some(&Tensor::from_slice(&[f32::NAN, 8.0]))).unwrap();
    set_grad(&other, Some(&Tensor::from_slice(&[8.0f32]))).unwrap();
    run.scaler.step(&mut run.opt).unwrap();
    run.scaler.step(&mut opt).unwrap();
    run.scaler.update().unwrap();
    assert_eq!(run.at().1, 4.0);
    assert_eq!((run.w.double_value(&[0]), other.double_value(&[0])), (1.0, 0.5));
}

#[test]
fn senseless_scalers_are_refused() {
    let _alone = alone();
    for config in [
        GradScalerConfig { init_scale: 0.0, ..Default::default() },
        GradScalerConfig { growth_factor: 1.0, ..Default::default() },
        GradScalerConfig { backoff_factor: 1.5, ..Default::default() },
        GradScalerConfig { growth_interval: 0, ..Default::default() },
    ] {
        assert!(matches!(GradScaler::new(Device::Cpu, config), Err(Error::Argument { .. })));
    }
}
