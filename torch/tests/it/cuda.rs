//! Every CUDA call answers `NotAvailable` on a machine without CUDA, and the same program goes on.
//!
//! Tests that need a device are ignored; run them with `cargo nextest run -p regatta-torch --run-ignored only`.

use std::time::Duration;

use regatta_torch::cuda::{self, Event, GraphedStep, Mode, Stream};
use regatta_torch::optim::{Adam, Optimizer};
use regatta_torch::{Error, amp, backward, memory, rng};
use tch::{Device, Kind, Tensor};

use crate::{F32, Net, alone, batch, largest_difference};

const GPU: Device = Device::Cuda(0);

fn unavailable<T>(result: regatta_torch::Result<T>) {
    match result {
        Err(Error::NotAvailable { why, .. }) => assert!(!why.is_empty()),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("there should be no CUDA here"),
    }
}

#[test]
fn without_cuda_every_call_says_so() {
    let _alone = alone();
    if cuda::is_available() {
        return; // the ignored tests are for this machine
    }
    unavailable(cuda::load());
    assert_eq!((cuda::device_count(), cuda::best_device()), (0, Device::Cpu));
    unavailable(Stream::current(GPU));
    unavailable(Stream::from_pool(GPU, true));
    unavailable(Event::new(true));
    unavailable(GraphedStep::new(GPU, |inputs: &[Tensor]| Ok::<_, Error>(vec![inputs[0].shallow_clone()])));
    unavailable(amp::autocast(GPU, Kind::Half));
    unavailable(amp::without_autocast(GPU));
    unavailable(amp::GradScaler::new(GPU, Default::default()));
    unavailable(memory::pin(&Tensor::ones([1], F32)));
    assert!(!memory::is_pinned(&Tensor::ones([1], F32)).unwrap());
    assert!(!format!("{:?}", rng::state().unwrap()).contains("cuda devices: 1"));
    amp::allow_tf32(false).unwrap();
}

#[test]
fn a_cpu_is_no_cuda_device() {
    let _alone = alone();
    unavailable(Stream::current(Device::Cpu));
    unavailable(Stream::current(Device::Cuda(4096)));
}

#[test]
fn a_step_that_cannot_be_captured_trains_eagerly_and_alike() {
    let _alone = alone();
    let (x, y) = batch();
    let (plain, stepped) = (Net::plain(2), Net::plain(2));
    let mut opt = Adam::new(&plain.vs, 0.01);
    for _ in 0..6 {
        opt.zero_grad().unwrap();
        backward(&plain.loss(&x, &y)).unwrap();
        opt.step().unwrap();
    }
    let mut opt = Adam::new(&stepped.vs, 0.01);
    let mut inner = opt.share();
    let net = &stepped;
    let mut step = GraphedStep::or_eager(Device::Cpu, move |inputs: &[Tensor]| {
        inner.zero_grad()?;
        let loss = net.loss(&inputs[0], &inputs[1]);
        backward(&loss)?;
        inner.step()?;
        Ok::<_, Error>(vec![loss.detach()])
    })
    .warmup(2);
    match step.mode() {
        Mode::Eager(why) => assert!(why.contains("not available"), "{why}"),
        other => panic!("{other:?}"),
    }
    for _ in 0..6 {
        assert!(step.run(&[&x, &y]).unwrap()[0].double_value(&[]).is_finite());
    }
    assert_eq!(largest_difference(&plain.weights(), &stepped.weights()), 0.0);
    // The handle outside is the same optimiser.
    opt.set_lr(0.0).unwrap();
    let before = stepped.weights();
    step.run(&[&x, &y]).unwrap();
    assert_eq!(largest_difference(&before, &stepped.weights()), 0.0);
}

#[test]
fn errors_of_a_step_keep_their_kind() {
    let _alone = alone();
    let mut own = GraphedStep::or_eager(Device::Cpu, |_: &[Tensor]| Err::<Vec<Tensor>, _>(std::fmt::Error));
    assert!(matches!(own.run(&[]), Err(Error::Step(source)) if source.is::<std::fmt::Error>()));
    let refused = Error::Timeout { what: "it", after: Duration::ZERO };
    let mut refused = Some(refused);
    let mut ours = GraphedStep::or_eager(Device::Cpu, move |_: &[Tensor]| {
        Err::<Vec<Tensor>, _>(refused.take().unwrap())
    });
    assert!(matches!(ours.run(&[]), Err(Error::Timeout { what: "it", .. })));
}

#[test]
#[ignore = "needs a CUDA device"]
fn a_captured_step_trains_as_an_eager_one() {
    let _alone = alone();
    assert!(cuda::load().unwrap() > 0);
    let (x, y) = batch();
    let (x, y) = (x.to_device(GPU), y.to_device(GPU));
    let (mut eager, mut captured) = (Net::plain(2), Net::plain(2));
    eager.vs.set_device(GPU);
    captured.vs.set_device(GPU);
    let mut opt = Adam::new(&eager.vs, 0.01).skip_nonfinite();
    let inside = Adam::new(&captured.vs, 0.01).skip_nonfinite();
    let (mut inner, mut outer) = (inside.share(), inside.share());
    let net = &captured;
    let mut step = GraphedStep::new(GPU, move |inputs: &[Tensor]| {
        inner.zero_grad()?;
        let loss = net.loss(&inputs[0], &inputs[1]);
        backward(&loss)?;
        let _norm = inner.clip_grad_norm(1.0)?;
        inner.step()?;
        Ok::<_, Error>(vec![loss.detach()])
    })
    .unwrap();
    for round in 0..12 {
        if round == 8 {
            opt.set_lr(0.005).unwrap();
            outer.set_lr(0.005).unwrap();
        }
        // The last, smaller batch of an epoch.
        let rows = if round == 9 { 20 } else { 32 };
        let (x, y) = (x.narrow(0, 0, rows), y.narrow(0, 0, rows));
        opt.zero_grad().unwrap();
        let loss = eager.loss(&x, &y);
        backward(&loss).unwrap();
        let _norm = opt.clip_grad_norm(1.0).unwrap();
        opt.step().unwrap();
        let other = step.run(&[&x, &y]).unwrap()[0].double_value(&[]);
        assert!((loss.double_value(&[]) - other).abs() < 1e-5, "round {round}");
    }
    assert_eq!(*step.mode(), Mode::Graph);
    assert!(largest_difference(&eager.weights(), &captured.weights()) < 1e-5);
    let state = outer.state().unwrap();
    assert_eq!(state.tensors[0].tensor().double_value(&[]), 12.0, "replays count their steps");
}

#[test]
#[ignore = "needs a CUDA device"]
fn streams_and_events_order_work() {
    let _alone = alone();
    assert!(cuda::load().unwrap() > 0);
    let deadline = Duration::from_secs(30);
    let (main, side) = (Stream::current(GPU).unwrap(), Stream::from_pool(GPU, false).unwrap());
    assert_ne!(main, side);
    let (mut start, mut end) = (Event::new(true).unwrap(), Event::new(true).unwrap());
    start.record(&side).unwrap();
    let product = {
        let _side = side.enter().unwrap();
        assert_eq!(Stream::current(GPU).unwrap(), side);
        let a = Tensor::ones([2048, 2048], (Kind::Float, GPU));
        a.matmul(&a)
    };
    assert_eq!(Stream::current(GPU).unwrap(), main);
    end.record(&side).unwrap();
    end.block(&main).unwrap();
    side.uses(&product).unwrap();
    assert_eq!(product.double_value(&[0, 0]), 2048.0);
    end.wait(deadline).unwrap();
    side.wait(deadline).unwrap();
    assert!(start.elapsed_ms(&end).unwrap() > 0.0);
    assert!(!side.raw().unwrap().is_null());
    let pinned = memory::pin(&Tensor::ones([4], F32)).unwrap();
    assert!(memory::is_pinned(&pinned).unwrap());
}
