//! Hooks and gradients.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use regatta_torch::autograd::{
    self, GradHook, backward, backward_with, live_callbacks, on_backward_end, set_grad,
};
use regatta_torch::{BoxError, Error};
use tch::{Kind, Tensor};

use crate::{F32, alone};

fn leaf() -> Tensor {
    Tensor::ones([3], F32).set_requires_grad(true)
}

fn total(tensor: &Tensor) -> Tensor {
    tensor.sum(Kind::Float)
}

/// A hook that notes its index.
fn noting(parameter: &Tensor, index: usize, fired: &Arc<Mutex<Vec<usize>>>) -> GradHook {
    let fired = fired.clone();
    GradHook::register(parameter, index, move |index| {
        fired.lock().unwrap().push(index);
        Ok(())
    })
    .unwrap()
}

#[derive(Debug, PartialEq, thiserror::Error)]
#[error("peer {0} is gone")]
struct PeerGone(usize);

#[test]
fn hooks_fire_once_a_pass_for_parameters_that_were_used() {
    let _alone = alone();
    let (once, twice, never) = (leaf(), leaf(), leaf());
    let fired = Arc::new(Mutex::new(Vec::new()));
    let _hooks = [noting(&once, 1, &fired), noting(&twice, 2, &fired), noting(&never, 3, &fired)];
    for _ in 0..2 {
        fired.lock().unwrap().clear();
        backward(&total(&(&once * &twice + &twice * &twice))).unwrap();
        let mut seen = fired.lock().unwrap().clone();
        seen.sort();
        assert_eq!(seen, [1, 2]);
    }
}

#[test]
fn the_gradient_is_final_when_a_hook_fires() {
    let _alone = alone();
    let shared = leaf();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (handle, into) = (Mutex::new(shared.shallow_clone()), seen.clone());
    let _hook = GradHook::register(&shared, 0, move |_| {
        into.lock().unwrap().push(handle.lock().unwrap().grad().double_value(&[0]));
        Ok(())
    })
    .unwrap();
    // Shared by two branches that finish at different depths.
    backward(&total(&(&shared * 2.0 + (&shared * 3.0).exp().log()))).unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1);
    assert!((seen[0] - 5.0).abs() < 1e-5, "{seen:?}");
}

#[test]
fn two_hooks_of_one_parameter_are_independent() {
    let _alone = alone();
    let w = leaf();
    let fired = Arc::new(Mutex::new(Vec::new()));
    let first = noting(&w, 1, &fired);
    let _second = noting(&w, 2, &fired);
    assert_eq!(first.index(), 1);
    drop(first);
    backward(&total(&w)).unwrap();
    assert_eq!(*fired.lock().unwrap(), [2]);
}

#[test]
fn an_error_in_a_hook_comes_out_as_it_was_and_the_next_pass_works() {
    let _alone = alone();
    let w = leaf();
    let failing = Arc::new(AtomicUsize::new(1));
    let flag = failing.clone();
    let _hook = GradHook::register(&w, 0, move |_| match flag.load(SeqCst) {
        0 => Ok(()),
        _ => Err(PeerGone(7).into()),
    })
    .unwrap();
    match backward(&total(&w)).unwrap_err() {
        Error::Hook(source) => assert_eq!(source.downcast_ref::<PeerGone>(), Some(&PeerGone(7))),
        other => panic!("{other}"),
    }
    failing.store(0, SeqCst);
    backward(&total(&w)).unwrap();
}

#[test]
fn a_panic_in_a_hook_comes_out_as_an_error_and_the_next_pass_works() {
    let _alone = alone();
    let w = leaf();
    let hook = GradHook::register(&w, 0, |index| panic!("boom {index}")).unwrap();
    match backward(&total(&w)).unwrap_err() {
        Error::HookPanic(message) => assert_eq!(message, "boom 0"),
        other => panic!("{other}"),
    }
    // tch's own backward meets it too, as its own kind of error.
    let error = total(&w).f_backward().unwrap_err().to_string();
    assert!(error.contains("a gradient hook panicked: boom 0"), "{error}");
    drop(hook);
    backward(&total(&w)).unwrap();
}

#[test]
fn callbacks_at_the_end_run_after_all_hooks_and_not_after_a_failure() {
    let _alone = alone();
    let (a, b) = (leaf(), leaf());
    let events = Arc::new(Mutex::new(Vec::new()));
    let fail = Arc::new(AtomicUsize::new(0));
    let hooks: Vec<_> = [&a, &b]
        .into_iter()
        .enumerate()
        .map(|(index, w)| {
            let (events, fail) = (events.clone(), fail.clone());
            GradHook::register(w, index, move |_| {
                let mut list = events.lock().unwrap();
                if list.is_empty() {
                    let events = events.clone();
                    on_backward_end(move || {
                        events.lock().unwrap().push("end");
                        Ok(())
                    })?;
                } else if fail.load(SeqCst) == 1 {
                    return Err(PeerGone(1).into());
                }
                list.push("hook");
                Ok(())
            })
            .unwrap()
        })
        .collect();
    backward(&total(&(&a * &b))).unwrap();
    assert_eq!(*events.lock().unwrap(), ["hook", "hook", "end"]);
    events.lock().unwrap().clear();
    fail.store(1, SeqCst);
    backward(&total(&(&a * &b))).unwrap_err();
    assert_eq!(*events.lock().unwrap(), ["hook"]);
    drop(hooks);
    assert_eq!(live_callbacks(), 0, "the callback that did not run is gone as well");
}

#[test]
fn a_failing_callback_at_the_end_fails_the_pass() {
    let _alone = alone();
    let w = leaf();
    let _hook = GradHook::register(&w, 0, |_| Ok(on_backward_end(|| Err(PeerGone(2).into()))?)).unwrap();
    match backward(&total(&w)).unwrap_err() {
        Error::Hook(source) => assert_eq!(source.downcast_ref::<PeerGone>(), Some(&PeerGone(2))),
        other => panic!("{other}"),
    }
    let outside = on_backward_end(|| Ok(())).unwrap_err().to_string();
    assert!(outside.contains("only possible inside a gradient hook"), "{outside}");
}

#[test]
fn a_hook_may_be_dropped_but_not_registered_during_a_pass() {
    let _alone = alone();
    let (w, other) = (leaf(), leaf());
    let own: Arc<Mutex<Option<GradHook>>> = Arc::default();
    let refused = Arc::new(Mutex::new(None));
    let fired = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (own, refused, fired) = (own.clone(), refused.clone(), fired.clone());
        let other = Mutex::new(other.shallow_clone());
        GradHook::register(&w, 0, move |_| {
            fired.fetch_add(1, SeqCst);
            drop(own.lock().unwrap().take());
            *refused.lock().unwrap() = GradHook::register(&other.lock().unwrap(), 1, |_| Ok(())).err();
            Ok(())
        })
        .unwrap()
    };
    *own.lock().unwrap() = Some(hook);
    backward(&total(&(&w * &other))).unwrap();
    let refusal = refused.lock().unwrap().take().unwrap().to_string();
    assert!(refusal.contains("between passes"), "{refusal}");
    backward(&total(&(&w * &other))).unwrap();
    assert_eq!(fired.load(SeqCst), 1);
    assert_eq!(live_callbacks(), 0);
}

#[test]
fn only_leaves_that_require_a_gradient_take_hooks() {
    let _alone = alone();
    let computed = leaf() * 2.0;
    for tensor in [&Tensor::ones([1], F32), &computed, &Tensor::new()] {
        let error = GradHook::register(tensor, 0, |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("leaf that requires a gradient"), "{error}");
    }
    assert_eq!(live_callbacks(), 0, "a refused closure is dropped");
    // Also when what it captured is a hook, whose drop takes the same lock.
    let inner = GradHook::register(&leaf(), 1, |_| Ok(())).unwrap();
    let inner = Mutex::new(inner);
    let refused = GradHook::register(&computed, 0, move |_| {
        drop(inner.lock());
        Ok(())
    });
    assert!(refused.is_err());
    assert_eq!(live_callbacks(), 0);
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_hundred_thousand_registrations_leave_nothing_behind() {
    let _alone = alone();
    let w = leaf();
    let round = |count: usize| {
        for index in 0..count {
            // Large enough captures that a leak of them would show: 100,000 of these are 100 MB.
            let ballast = vec![1u8; 1024];
            let hook = GradHook::register(&w, index, move |_| match ballast.len() {
                1024 => Ok(()),
                _ => Err(BoxError::from("impossible")),
            });
            drop(hook.unwrap());
        }
    };
    round(1000);
    let before = resident_kib();
    round(100_000);
    let grown = resident_kib().saturating_sub(before);
    assert_eq!(live_callbacks(), 0);
    assert!(grown < 20_000, "grew by {grown} KiB");
    backward(&total(&w)).unwrap();
}

#[test]
fn gradients_accumulate_into_a_view_without_a_copy() {
    let _alone = alone();
    let (a, b) = (leaf(), leaf());
    let bucket = Tensor::zeros([6], F32);
    set_grad(&a, Some(&bucket.narrow(0, 0, 3))).unwrap();
    set_grad(&b, Some(&bucket.narrow(0, 3, 3))).unwrap();
    backward(&total(&(&a * 2.0 + &b * 5.0))).unwrap();
    assert_eq!(Vec::<f32>::try_from(&bucket).unwrap(), [2.0, 2.0, 2.0, 5.0, 5.0, 5.0]);
    assert_eq!(a.grad().data_ptr(), bucket.data_ptr());
    set_grad(&a, None).unwrap();
    assert!(!a.grad().defined());
}

#[test]
fn a_gradient_that_does_not_fit_is_refused() {
    let _alone = alone();
    let w = Tensor::ones([2, 3], F32).set_requires_grad(true);
    let transposed = Tensor::ones([3, 2], F32).transpose(0, 1);
    for wrong in
        [&Tensor::ones([6], F32), &Tensor::ones([2, 3], (Kind::Double, tch::Device::Cpu)), &transposed]
    {
        let error = set_grad(&w, Some(wrong)).unwrap_err();
        assert!(error.to_string().contains("the parameter is Float [2, 3]"), "{error}");
    }
}

#[test]
fn backward_takes_a_gradient_and_keeps_a_graph() {
    let _alone = alone();
    let w = leaf();
    let y = &w * 2.0;
    let error = backward(&y).unwrap_err();
    assert!(matches!(&error, Error::Torch { op: "backward", .. }), "{error}");
    let gradient = Tensor::from_slice(&[1.0f32, 2.0, 3.0]);
    backward_with(&y, Some(&gradient), true).unwrap();
    autograd::backward_with(&y, Some(&gradient), false).unwrap();
    assert_eq!(Vec::<f32>::try_from(w.grad()).unwrap(), [4.0, 8.0, 12.0]);
}
