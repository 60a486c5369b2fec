//! ResNet-18 with a stem for one channel (He et al., 2015): a 7x7 convolution of stride 2 and a max-pool, which leave
//! 7x7 of a 28x28 image.

use tch::Tensor;
use tch::nn::{self, BatchNorm, Conv2D, Linear, ModuleT, Path};

/// A ResNet-18, its parameters in the `VarStore` that `vs` belongs to.
pub fn resnet18(vs: &Path, classes: i64) -> ResNet18 {
    let body = vs / "body";
    let mut blocks = vec![];
    let mut channels = 64;
    for (out, stride) in [(64, 1), (128, 2), (256, 2), (512, 2)] {
        for stride in [stride, 1] {
            blocks.push(Block::new(&(&body / blocks.len()), channels, out, stride));
            channels = out;
        }
    }
    ResNet18 {
        stem: conv(&(vs / "stem"), 1, 64, 7, 2),
        norm: norm(&(vs / "norm"), 64),
        blocks,
        head: nn::linear(vs / "head", 512, classes, Default::default()),
    }
}

/// ResNet-18: a stem, eight residual blocks, and a linear head.
#[derive(Debug)]
pub struct ResNet18 {
    stem: Conv2D,
    norm: BatchNorm,
    blocks: Vec<Block>,
    head: Linear,
}

impl ModuleT for ResNet18 {
    fn forward_t(&self, images: &Tensor, train: bool) -> Tensor {
        let mut x = images.apply(&self.stem).apply_t(&self.norm, train).relu_().max_pool2d(3, 2, 1, 1, false);
        for block in &self.blocks {
            x = block.forward_t(&x, train);
        }
        x.mean_dim([2i64, 3].as_slice(), false, None).apply(&self.head)
    }
}

/// Two 3x3 convolutions around which the input passes by, through a 1x1 convolution where the shape changes.
#[derive(Debug)]
struct Block {
    conv1: Conv2D,
    norm1: BatchNorm,
    conv2: Conv2D,
    norm2: BatchNorm,
    down: Option<(Conv2D, BatchNorm)>,
}

impl Block {
    fn new(vs: &Path, channels: i64, out: i64, stride: i64) -> Self {
        let down = (stride != 1 || channels != out)
            .then(|| (conv(&(vs / "down"), channels, out, 1, stride), norm(&(vs / "down_norm"), out)));
        Self {
            conv1: conv(&(vs / "conv1"), channels, out, 3, stride),
            norm1: norm(&(vs / "norm1"), out),
            conv2: conv(&(vs / "conv2"), out, out, 3, 1),
            norm2: norm(&(vs / "norm2"), out),
            down,
        }
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let y = x.apply(&self.conv1).apply_t(&self.norm1, train).relu_();
        let y = y.apply(&self.conv2).apply_t(&self.norm2, train);
        match &self.down {
            Some((conv, norm)) => (y + x.apply(conv).apply_t(norm, train)).relu_(),
            None => (y + x).relu_(),
        }
    }
}

fn conv(vs: &Path, channels: i64, out: i64, kernel: i64, stride: i64) -> Conv2D {
    let config = nn::ConvConfig { stride, padding: kernel / 2, bias: false, ..Default::default() };
    nn::conv2d(vs, channels, out, kernel, config)
}

fn norm(vs: &Path, channels: i64) -> BatchNorm {
    // PyTorch's default; tch draws the weights from a uniform distribution otherwise.
    let config = nn::BatchNormConfig { ws_init: nn::Init::Const(1.0), ..Default::default() };
    nn::batch_norm2d(vs, channels, config)
}
