//! MNIST as IDX files, plain or gzipped: <http://yann.lecun.com/exdb/mnist/>.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use regatta_torch::loader::TensorDataset;
use tch::{Device, Kind, Tensor};

/// Images `[n, 1, rows, columns]` in -1..1, and their labels `[n]`.
#[derive(Debug)]
pub struct Images {
    /// Pixels as `f32`, normalised with mean 0.5 and deviation 0.5.
    pub images: Tensor,
    /// Digits as `i64`.
    pub labels: Tensor,
}

impl Images {
    /// How many there are.
    pub fn len(&self) -> i64 {
        self.labels.size()[0]
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those at the given places.
    pub fn select(&self, places: &Tensor) -> (Tensor, Tensor) {
        (self.images.index_select(0, places), self.labels.index_select(0, places))
    }

    /// The same as what a loader takes batches from.
    pub fn dataset(&self) -> Result<TensorDataset<(Tensor, Tensor)>> {
        Ok(TensorDataset::new((self.images.shallow_clone(), self.labels.shallow_clone()))?)
    }

    /// The same on another device.
    pub fn to_device(&self, device: Device) -> Self {
        Self { images: self.images.to_device(device), labels: self.labels.to_device(device) }
    }

    /// So many of them, from a place on.
    pub fn narrow(&self, from: i64, len: i64) -> Self {
        Self { images: self.images.narrow(0, from, len), labels: self.labels.narrow(0, from, len) }
    }
}

/// What to train on and what to judge by.
#[derive(Debug)]
pub struct Mnist {
    /// The images to train on.
    pub train: Images,
    /// The images held back.
    pub test: Images,
}

impl Mnist {
    /// The 10,000 images that come with the example (MNIST's test set): the first 9,000 to train, the rest held back.
    pub fn shipped() -> Result<Self> {
        let images = include_bytes!("../data/t10k-images-idx3-ubyte.gz");
        let labels = include_bytes!("../data/t10k-labels-idx1-ubyte.gz");
        let all = pair(
            ("the shipped images".into(), images.to_vec()),
            ("the shipped labels".into(), labels.to_vec()),
        )?;
        Ok(Self { train: all.narrow(0, 9_000), test: all.narrow(9_000, 1_000) })
    }

    /// The full set in a folder of the user's: `train-` and `t10k-` files, each plain or `.gz`.
    pub fn load(folder: &Path) -> Result<Self> {
        Ok(Self { train: read(folder, "train")?, test: read(folder, "t10k")? })
    }
}

/// Reads a pair of files: `<prefix>-images-idx3-ubyte[.gz]` and `<prefix>-labels-idx1-ubyte[.gz]`.
fn read(folder: &Path, prefix: &str) -> Result<Images> {
    let file = |name: &str| {
        let path = find(folder, &format!("{prefix}-{name}-ubyte"))?;
        let raw = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok::<_, anyhow::Error>((path.display().to_string(), raw))
    };
    pair(file("images-idx3")?, file("labels-idx1")?)
}

/// Joins images and labels, each given by its name for messages and its raw bytes.
fn pair(images: (String, Vec<u8>), labels: (String, Vec<u8>)) -> Result<Images> {
    let (image_name, label_name) = (images.0.clone(), labels.0.clone());
    let (shape, pixels) = parse_idx(&images.0, images.1, 3)?;
    let (count, labels) = parse_idx(&labels.0, labels.1, 1)?;
    ensure!(
        shape[0] == count[0],
        "{image_name} has {} images and {label_name} has {} labels: they are not of one set",
        shape[0],
        count[0]
    );
    let images = Tensor::from_slice(&pixels).view([shape[0], 1, shape[1], shape[2]]).to_kind(Kind::Float);
    Ok(Images {
        images: (images / 255.0 - 0.5) / 0.5,
        labels: Tensor::from_slice(&labels).to_kind(Kind::Int64),
    })
}

fn find(folder: &Path, name: &str) -> Result<PathBuf> {
    let plain = folder.join(name);
    let packed = folder.join(format!("{name}.gz"));
    match [plain, packed].into_iter().find(|path| path.exists()) {
        Some(path) => Ok(path),
        None => bail!("{} has neither {name} nor {name}.gz", folder.display()),
    }
}

/// Reads an IDX file of bytes, plain or gzipped, with the given number of dimensions: its shape and its data.
///
/// # Errors
/// When it cannot be unpacked, is not IDX, or has fewer or more bytes than its header says. `name` is for the message.
pub fn parse_idx(name: &str, mut raw: Vec<u8>, dims: usize) -> Result<(Vec<i64>, Vec<u8>)> {
    if raw.starts_with(&[0x1f, 0x8b]) {
        let mut plain = vec![];
        GzDecoder::new(raw.as_slice())
            .read_to_end(&mut plain)
            .with_context(|| format!("cannot unpack {name}"))?;
        raw = plain;
    }
    let header = 4 + 4 * dims;
    ensure!(raw.len() >= header, "{name} is truncated: {} bytes, the header alone has {header}", raw.len());
    ensure!(
        raw[..4] == [0, 0, 8, dims as u8],
        "{name} is no IDX file of bytes in {dims} dimensions: it begins with {:02x?}",
        &raw[..4]
    );
    let shape: Vec<u32> =
        raw[4..header].chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])).collect();
    let expected = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d as usize));
    let found = raw.len() - header;
    ensure!(
        expected == Some(found),
        "{name} is {}: its header says {shape:?}, and {found} bytes follow",
        if expected.is_some_and(|e| e < found) { "too long" } else { "truncated" }
    );
    raw.drain(..header);
    Ok((shape.into_iter().map(i64::from).collect(), raw))
}
