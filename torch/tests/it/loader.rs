//! Batches of tensors, as a training loop gets them.

use regatta_torch::loader::{Loader, TensorBatch, TensorDataset};
use regatta_torch::{Error, threads};
use regatta_train::data::{Dataset, LoaderConfig, Records, Shard, from_fn, stream};
use tch::{Device, Kind, Tensor};

use crate::alone;

/// Sample i is a row of i's, with the label i.
fn rows(len: i64) -> (Tensor, Tensor) {
    let labels = Tensor::arange(len, (Kind::Int64, Device::Cpu));
    (labels.to_kind(Kind::Uint8).view([len, 1, 1]).expand([len, 2, 3], true).contiguous(), labels)
}

fn labels(batch: &Tensor) -> Vec<i64> {
    batch.try_into().unwrap()
}

#[test]
fn a_batch_is_the_rows_in_the_orders_order() {
    let _alone = alone();
    let dataset = TensorDataset::new(rows(50)).unwrap();
    let (x, y) = dataset.get_batch(&[7, 0, 49]).unwrap();
    assert_eq!((x.size(), x.kind(), labels(&y)), (vec![3, 2, 3], Kind::Uint8, vec![7, 0, 49]));
    // A batch is the loop's own: what it does to it stays there.
    let _ = x.shallow_clone().fill_(9);
    assert_eq!(dataset.get_batch(&[7]).unwrap().0.int64_value(&[0, 0, 0]), 7);

    let mut data = Loader::new(dataset, LoaderConfig::batch_size(8), Shard::whole(3), Device::Cpu).unwrap();
    assert_eq!((data.len_batches(), data.device()), (Some(7), Device::Cpu));
    let mut seen = Vec::new();
    for batch in data.epoch(0) {
        let (x, y) = batch.unwrap();
        assert_eq!(labels(&x.select(1, 1).select(1, 2).to_kind(Kind::Int64)), labels(&y));
        seen.extend(labels(&y));
    }
    assert_ne!(seen, (0..50).collect::<Vec<_>>());
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
    assert!(data.position().epoch_done());
}

#[test]
fn tensors_that_count_different_samples_are_refused() {
    let _alone = alone();
    let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    for wrong in [vec![zeros(&[3, 2]), zeros(&[4])], vec![], vec![zeros(&[])]] {
        let error = TensorDataset::new(wrong).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }));
        assert!(error.to_string().contains("must count the same samples"), "{error}");
    }
    let bad = TensorDataset::new(zeros(&[3])).unwrap().get_batch(&[5]).unwrap_err().to_string();
    assert!(bad.contains("libtorch failed"), "{bad}");
}

#[test]
fn whatever_makes_tensors_is_a_dataset() {
    let _alone = alone();
    let folder = std::env::temp_dir().join(format!("regatta-loader-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("images.bin");
    std::fs::write(&path, (0..40u8).collect::<Vec<_>>()).unwrap();
    let images = Records::open(&path, 0, 4).unwrap().map(|bytes| {
        let count = (bytes.len() / 4) as i64;
        Ok(Tensor::from_slice(&bytes).view([count, 2, 2]))
    });
    let config = || LoaderConfig::batch_size(5).shuffle(false).workers(2);
    let mut data = Loader::new(images, config(), Shard::whole(0), Device::Cpu).unwrap();
    let second = data.epoch(0).nth(1).unwrap().unwrap();
    assert_eq!((second.size(), second.int64_value(&[0, 0, 0])), (vec![5, 2, 2], 20));
    std::fs::remove_dir_all(&folder).unwrap();

    let named = from_fn(10, |index| Ok::<_, Error>((format!("sample {index}"), Tensor::from(index as i64))));
    let mut data = Loader::new(named, config(), Shard::whole(0), Device::Cpu).unwrap();
    let batch = data.epoch(0).next().unwrap().unwrap();
    assert_eq!((batch.len(), batch[4].0.as_str(), batch[4].1.int64_value(&[])), (5, "sample 4", 4));

    let lines = stream(|_| Ok((0..7i64).map(|item| Ok(Tensor::from(item)))));
    let mut data = Loader::from_stream(lines, config(), Shard::whole(0), Device::Cpu).unwrap();
    let sizes: Vec<_> = data.epoch(0).map(|batch| Tensor::stack(&batch.unwrap(), 0).size()).collect();
    assert_eq!(sizes, [[5], [2]]);
}

#[test]
fn a_failure_of_libtorch_comes_out_of_the_loop() {
    let _alone = alone();
    let dataset = TensorDataset::new(rows(20)).unwrap().map(|(x, y)| Ok(x.f_matmul(&y)?));
    let mut data = Loader::new(dataset, LoaderConfig::batch_size(4), Shard::whole(0), Device::Cpu).unwrap();
    let error = data.epoch(0).next().unwrap().unwrap_err().to_string();
    assert!(error.starts_with("the dataset failed in epoch 0, samples "), "{error}");
    assert!(data.position().cursor().is_err());
}

#[test]
fn loader_threads_compute_alone_and_leave_the_others_their_cores() {
    let _alone = alone();
    threads::set(3).unwrap();
    let asked = |workers| {
        let dataset = from_fn(4, |_| Ok::<_, Error>(threads::get() as u64));
        let config = LoaderConfig::batch_size(4).workers(workers);
        let mut data = Loader::new(dataset, config, Shard::whole(0), Device::Cpu).unwrap();
        data.epoch(0).next().unwrap().unwrap()[0]
    };
    assert_eq!(asked(1), 1);
    assert_eq!(asked(0), 3, "the loop's own thread keeps what it has");
    assert_eq!(threads::get(), 3);
    let newcomer = std::thread::spawn(threads::get).join().unwrap();
    assert_eq!(newcomer, 3, "threads that come later are not held back");
    threads::set(1).unwrap();
}

#[test]
fn plain_values_travel_with_tensors() {
    let _alone = alone();
    let batch = (Tensor::from(1i64), vec![(2u8, Tensor::from(3i64))], "name".to_owned(), true);
    let mut seen = 0;
    let twice = batch
        .map_tensors(&mut |tensor| {
            seen += 1;
            Ok(tensor * 2)
        })
        .unwrap();
    assert_eq!((seen, twice.0.int64_value(&[]), twice.1[0].0, twice.1[0].1.int64_value(&[])), (2, 2, 2, 6));
    assert_eq!((twice.2.as_str(), twice.3), ("name", true));
}

#[test]
fn a_device_that_is_not_there_is_refused_at_once() {
    let _alone = alone();
    if regatta_torch::cuda::is_available() {
        return; // the ignored test is for this machine
    }
    let dataset = TensorDataset::new(rows(20)).unwrap();
    let refused = Loader::new(dataset, LoaderConfig::batch_size(4), Shard::whole(0), Device::Cuda(0));
    let error = refused.unwrap_err().to_string();
    assert!(error.contains("the device") && error.contains("not available"), "{error}");
}

#[test]
#[ignore = "needs a CUDA device"]
fn batches_are_on_the_gpu_when_the_loop_gets_them() {
    let _alone = alone();
    assert!(regatta_torch::cuda::load().unwrap() > 0);
    let gpu = Device::Cuda(0);
    for on_device in [false, true] {
        let (x, y) = rows(200);
        let tensors = if on_device { (x.to_device(gpu), y.to_device(gpu)) } else { (x, y) };
        let dataset = TensorDataset::new(tensors).unwrap();
        let config = LoaderConfig::batch_size(16).workers(2).prefetch(4);
        let mut data = Loader::new(dataset, config, Shard::whole(3), gpu).unwrap();
        for epoch in 0..20 {
            let mut seen = Vec::new();
            for batch in data.epoch(epoch) {
                let (x, y) = batch.unwrap();
                assert_eq!((x.device(), y.device()), (gpu, gpu));
                let of_rows = x.select(1, 0).select(1, 0).to_kind(Kind::Int64).to_device(Device::Cpu);
                assert_eq!(labels(&of_rows), labels(&y.to_device(Device::Cpu)));
                seen.extend(labels(&of_rows));
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..200).collect::<Vec<_>>());
        }
    }
}
