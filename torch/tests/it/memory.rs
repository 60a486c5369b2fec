//! Foreign memory, channels-last, threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use regatta_torch::memory::{self, ForeignMemory};
use regatta_torch::{Error, threads};
use tch::nn::{self, Module};
use tch::{Device, Kind, Tensor};

use crate::{F32, alone};

/// Memory that counts how often it is dropped.
struct Counted {
    memory: Vec<f32>,
    drops: Arc<AtomicUsize>,
}

// SAFETY: as the vector's, whose elements do not move.
unsafe impl ForeignMemory for Counted {
    fn pointer(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr().cast()
    }

    fn size(&self) -> usize {
        size_of_val(self.memory.as_slice())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.drops.fetch_add(1, SeqCst);
    }
}

#[test]
fn the_owner_is_dropped_once_with_the_last_tensor() {
    let _alone = alone();
    let drops = Arc::new(AtomicUsize::new(0));
    let mut owner = Counted { memory: vec![1.0; 6], drops: drops.clone() };
    let address = owner.pointer();
    let tensor = memory::tensor_over(owner, Kind::Float, &[2, 3]).unwrap();
    assert_eq!(tensor.data_ptr().cast(), address, "no copy");
    let view = tensor.narrow(0, 1, 1);
    let handle = tensor.shallow_clone();
    drop(tensor);
    drop(handle);
    assert_eq!(drops.load(SeqCst), 0);
    assert_eq!(view.sum(Kind::Float).double_value(&[]), 3.0);
    std::thread::spawn(move || drop(view)).join().unwrap();
    assert_eq!(drops.load(SeqCst), 1);
}

#[test]
fn memory_that_does_not_fit_is_refused_and_dropped() {
    let _alone = alone();
    let drops = Arc::new(AtomicUsize::new(0));
    let counted = || Counted { memory: vec![1.0; 4], drops: drops.clone() };
    let wrong: [(Kind, &[i64]); 4] =
        [(Kind::Float, &[5]), (Kind::Double, &[3]), (Kind::Float, &[-1]), (Kind::QInt8, &[1])];
    for (count, (kind, shape)) in wrong.into_iter().enumerate() {
        let refused = memory::tensor_over(counted(), kind, shape);
        assert!(matches!(refused, Err(Error::Argument { .. })), "{kind:?} {shape:?}");
        assert_eq!(drops.load(SeqCst), count + 1);
    }
}

#[test]
fn misaligned_memory_is_refused() {
    let _alone = alone();
    struct Odd(Vec<u64>);
    // SAFETY: one byte into a vector that does not move; the size says one byte less.
    unsafe impl ForeignMemory for Odd {
        fn pointer(&mut self) -> *mut u8 {
            self.0.as_mut_ptr().cast::<u8>().wrapping_add(1)
        }

        fn size(&self) -> usize {
            self.0.len() * 8 - 1
        }
    }
    let error = memory::tensor_over(Odd(vec![0; 4]), Kind::Float, &[2]).unwrap_err().to_string();
    assert!(error.contains("not aligned"), "{error}");
    assert_eq!(memory::tensor_over(Odd(vec![0; 4]), Kind::Uint8, &[31]).unwrap().numel(), 31);
}

#[test]
fn empty_tensors_over_memory_are_fine() {
    let _alone = alone();
    let drops = Arc::new(AtomicUsize::new(0));
    let owner = Counted { memory: vec![], drops: drops.clone() };
    let tensor = memory::tensor_over(owner, Kind::Float, &[0, 3]).unwrap();
    assert_eq!(tensor.numel(), 0);
    drop(tensor);
    assert_eq!(drops.load(SeqCst), 1);
}

#[test]
fn a_model_goes_channels_last_and_computes_the_same() {
    let _alone = alone();
    let vs = nn::VarStore::new(Device::Cpu);
    let conv = nn::conv2d(vs.root(), 3, 8, 3, Default::default());
    let x = Tensor::randn([2, 3, 9, 9], F32);
    let want = conv.forward(&x);
    memory::model_to_channels_last(&vs).unwrap();
    assert!(memory::is_channels_last(&conv.ws).unwrap());
    assert!(conv.ws.requires_grad() && conv.ws.is_leaf());
    let x = memory::channels_last(&x).unwrap();
    let got = conv.forward(&x);
    assert!(memory::is_channels_last(&got).unwrap());
    assert!((got - want).abs().max().double_value(&[]) < 1e-5);
    let error = memory::channels_last(&Tensor::ones([3], F32)).unwrap_err().to_string();
    assert!(error.contains("4 or 5 dimensions"), "{error}");
}

#[test]
fn the_number_of_threads_is_set_and_read() {
    let _alone = alone();
    threads::set(2).unwrap();
    assert_eq!(threads::get(), 2);
    threads::set(1).unwrap();
    assert_eq!(threads::get(), 1);
    assert!(matches!(threads::set(0), Err(Error::Argument { .. })));
}

#[test]
fn denormal_numbers_become_zero_when_asked() {
    let _turn = alone();
    let product =
        || (Tensor::from_slice(&[1e-30f32; 64]) * Tensor::from_slice(&[1e-10f32; 64])).double_value(&[63]);
    assert!(product() > 0.0);
    regatta_torch::threads::flush_denormals(true).unwrap();
    let flushed = product();
    regatta_torch::threads::flush_denormals(false).unwrap();
    assert_eq!(flushed, 0.0);
    assert!(product() > 0.0);
}
