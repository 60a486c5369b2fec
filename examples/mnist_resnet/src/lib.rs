//! The model and the data of the MNIST example: what `main.rs` trains, and what the step benchmark times.

pub mod mnist;
pub mod resnet;

pub use mnist::{Images, Mnist};
pub use resnet::resnet18;
