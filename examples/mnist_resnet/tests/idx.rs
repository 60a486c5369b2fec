//! The IDX reader: the shipped files, and what a damaged one is answered with.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use mnist_resnet::Mnist;
use mnist_resnet::mnist::parse_idx;
use tempfile::TempDir;

#[test]
fn the_shipped_set_is_split_in_two() {
    let mnist = Mnist::shipped().unwrap();
    assert_eq!(mnist.train.images.size(), [9_000, 1, 28, 28]);
    assert_eq!(mnist.test.images.size(), [1_000, 1, 28, 28]);
    assert_eq!(
        mnist.train.labels.narrow(0, 0, 5).iter::<i64>().unwrap().collect::<Vec<_>>(),
        [7, 2, 1, 0, 4]
    );
    let (low, high) =
        (mnist.train.images.min().double_value(&[]), mnist.train.images.max().double_value(&[]));
    assert_eq!((low, high), (-1.0, 1.0));
}

#[test]
fn plain_and_gzipped_files_are_the_same() {
    let bytes = idx(&[2, 3], &[1, 2, 3, 4, 5, 6]);
    let mut gz = GzEncoder::new(vec![], Compression::default());
    gz.write_all(&bytes).unwrap();
    let plain = parse_idx("plain", bytes, 2).unwrap();
    let packed = parse_idx("packed", gz.finish().unwrap(), 2).unwrap();
    assert_eq!(plain, (vec![2, 3], vec![1, 2, 3, 4, 5, 6]));
    assert_eq!(plain, packed);
}

#[test]
fn a_damaged_file_is_named_with_what_is_wrong() {
    let whole = idx(&[2, 3], &[0; 6]);
    let mut gz = GzEncoder::new(vec![], Compression::default());
    gz.write_all(&whole).unwrap();
    let gz = gz.finish().unwrap();
    let cases: [(&str, &[u8], &str); 6] = [
        ("empty", &[], "truncated: 0 bytes"),
        ("short", &whole[..15], "truncated: its header says [2, 3], and 3 bytes follow"),
        ("long", &idx(&[2, 2], &[0; 6]), "too long: its header says [2, 2], and 6 bytes follow"),
        ("png", b"\x89PNG\r\n\x1a\n........", "no IDX file of bytes in 2 dimensions"),
        ("huge", &idx(&[u32::MAX, u32::MAX], &[0; 6]), "truncated: its header says"),
        ("cut.gz", &gz[..gz.len() - 9], "cannot unpack"),
    ];
    for (name, bytes, expected) in cases {
        let error = format!("{:#}", parse_idx(name, bytes.to_vec(), 2).unwrap_err());
        assert!(error.contains(expected) && error.contains(name), "{name}: {error}");
    }
}

#[test]
fn a_folder_is_read_as_a_pair_of_files() {
    let dir = TempDir::new().unwrap();
    let missing = format!("{:#}", Mnist::load(dir.path()).unwrap_err());
    assert!(missing.contains("neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz"), "{missing}");
    for (name, shape) in [("images-idx3", vec![2, 1, 1]), ("labels-idx1", vec![2])] {
        for prefix in ["train", "t10k"] {
            std::fs::write(dir.path().join(format!("{prefix}-{name}-ubyte")), idx(&shape, &[0, 255]))
                .unwrap();
        }
    }
    let mnist = Mnist::load(dir.path()).unwrap();
    assert_eq!((mnist.train.len(), mnist.test.len()), (2, 2));
    std::fs::write(dir.path().join("t10k-labels-idx1-ubyte"), idx(&[3], &[0; 3])).unwrap();
    let unequal = format!("{:#}", Mnist::load(dir.path()).unwrap_err());
    assert!(unequal.contains("2 images") && unequal.contains("3 labels"), "{unequal}");
}

fn idx(shape: &[u32], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 8, shape.len() as u8];
    bytes.extend(shape.iter().flat_map(|d| d.to_be_bytes()));
    bytes.extend(data);
    bytes
}
