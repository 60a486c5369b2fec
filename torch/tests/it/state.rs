//! A model's state as bytes.

use std::borrow::Cow;

use regatta_torch::state::{self, NamedTensor};
use regatta_torch::{DifferenceKind, Error, params};
use tch::{Device, Kind, Tensor};

use crate::{F32, Net, alone, largest_difference};

#[test]
fn names_come_in_the_order_of_definition_then_buffers() {
    let _alone = alone();
    let net = Net::new(1, 0.0);
    let names: Vec<_> = state::model(&net.vs).iter().map(|t| t.name().to_owned()).collect();
    let want = ["first.bias", "first.weight", "norm.weight", "norm.bias", "second.bias", "second.weight"];
    assert_eq!(params::parameters(&net.vs).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), want);
    assert_eq!(names[..6], want);
    assert_eq!(names[6..], ["norm.running_mean", "norm.running_var"]);
}

#[test]
fn a_model_goes_out_and_in_again() {
    let _alone = alone();
    let (from, to) = (Net::new(1, 0.0), Net::new(2, 0.0));
    assert!(largest_difference(&from.weights(), &to.weights()) > 0.0);
    let mut tensors = Vec::new();
    for tensor in state::model(&from.vs) {
        let bytes = tensor.bytes().unwrap();
        assert!(matches!(bytes, Cow::Borrowed(_)), "{} was copied", tensor.name());
        assert_eq!(bytes.as_ptr(), tensor.tensor().data_ptr().cast_const().cast());
        tensors.push(NamedTensor::from_bytes(tensor.name(), tensor.kind(), &tensor.shape(), &bytes).unwrap());
    }
    tensors.reverse();
    state::load_model(&to.vs, &tensors).unwrap();
    assert_eq!(largest_difference(&from.weights(), &to.weights()), 0.0);
    let parameter = &params::parameters(&to.vs)[0].1;
    assert!(parameter.requires_grad() && parameter.is_leaf());
}

#[test]
fn every_plain_dtype_survives() {
    let _alone = alone();
    let kinds = [
        Kind::Uint8,
        Kind::Int8,
        Kind::Int16,
        Kind::Int,
        Kind::Int64,
        Kind::Half,
        Kind::Float,
        Kind::Double,
        Kind::Bool,
        Kind::BFloat16,
    ];
    for kind in kinds {
        let tensor = NamedTensor::new("t", Tensor::from_slice(&[0i64, 1, 5, 1]).to_kind(kind));
        let again = NamedTensor::from_bytes("t", kind, &[4], &tensor.bytes().unwrap()).unwrap();
        assert_eq!(again.tensor(), tensor.tensor(), "{kind:?}");
    }
}

#[test]
fn what_is_not_contiguous_is_copied_in_order() {
    let _alone = alone();
    let tensor =
        NamedTensor::new("t", Tensor::from_slice(&[1.0f32, 2.0, 3.0, 4.0]).view([2, 2]).transpose(0, 1));
    let bytes = tensor.bytes().unwrap();
    assert!(matches!(bytes, Cow::Owned(_)));
    let want: Vec<u8> = [1.0f32, 3.0, 2.0, 4.0].iter().flat_map(|x| x.to_ne_bytes()).collect();
    assert_eq!(*bytes, want);
    let empty = NamedTensor::new("e", Tensor::zeros([0, 3], F32));
    assert!(empty.bytes().unwrap().is_empty());
    assert_eq!(NamedTensor::from_bytes("e", Kind::Float, &[0, 3], &[]).unwrap().shape(), [0, 3]);
}

#[test]
fn all_mismatches_are_listed_at_once_and_nothing_changes() {
    let _alone = alone();
    let net = Net::new(1, 0.0);
    let before = net.weights();
    let mut tensors = state::model(&Net::new(2, 0.0).vs);
    // tch defines a layer's bias before its weight.
    tensors.remove(0);
    tensors[0] = NamedTensor::new("first.weight", Tensor::ones([2, 2], F32));
    tensors[2] = NamedTensor::new("norm.bias", Tensor::ones([17], (Kind::Double, Device::Cpu)));
    tensors.push(NamedTensor::new("head.weight", Tensor::ones([1], F32)));
    tensors.push(NamedTensor::new("second.bias", Tensor::ones([3], F32)));
    let error = state::load_model(&net.vs, &tensors).unwrap_err();
    let text = error.to_string();
    let Error::Mismatch { differences, .. } = error else { panic!("{text}") };
    let listed: Vec<_> = differences.iter().map(|d| (d.name.as_str(), &d.kind)).collect();
    assert_eq!(
        listed.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["second.bias", "first.bias", "first.weight", "norm.bias", "head.weight"]
    );
    assert_eq!(*listed[1].1, DifferenceKind::Missing);
    assert_eq!(*listed[4].1, DifferenceKind::Unexpected);
    assert!(text.contains("first.weight should be Float[17, 12], found Float[2, 2]"), "{text}");
    assert!(text.contains("norm.bias should be Float[17], found Double[17]"), "{text}");
    assert_eq!(largest_difference(&before, &net.weights()), 0.0);
}

#[test]
fn bytes_of_the_wrong_length_are_refused() {
    for (shape, bytes) in [(&[3i64][..], &[0u8; 8][..]), (&[-1], &[]), (&[i64::MAX, i64::MAX], &[0; 4])] {
        let refused = NamedTensor::from_bytes("t", Kind::Float, shape, bytes);
        assert!(matches!(refused, Err(Error::Argument { .. })), "{shape:?}");
    }
}
