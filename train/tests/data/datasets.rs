//! What samples come from: memory, functions, mapped files.

use std::fs;
use std::io::Write;
use std::sync::Arc;

use regatta_train::data::{Dataset, Error, Records, from_fn};

#[test]
fn values_in_memory_are_a_dataset_in_any_wrapping() {
    let numbers = vec![10u8, 11, 12, 13];
    assert_eq!(numbers.get_batch(&[3, 0]).unwrap(), [13, 10]);
    let shared: Arc<dyn Dataset<Batch = Vec<u8>>> = Arc::new(numbers);
    assert_eq!((Dataset::len(&shared), shared.get_batch(&[1]).unwrap()), (4, vec![11]));
    static TABLE: [&str; 2] = ["a", "b"];
    let table: &'static [&str] = &TABLE;
    assert_eq!(table.get_batch(&[1, 1]).unwrap(), ["b", "b"]);
    assert!(Vec::<u8>::new().is_empty());
}

#[test]
fn a_function_says_at_which_sample_it_failed() {
    let odd = from_fn(10, |index| match index {
        4 => Err(std::io::Error::other("no such image")),
        6 => panic!("image {index} is upside down"),
        index => Ok(index * 2),
    });
    assert_eq!(odd.get_batch(&[1, 3]).unwrap(), [2, 6]);
    assert_eq!(odd.get_batch(&[3, 4, 5]).unwrap_err().to_string(), "sample 4: no such image");
    assert_eq!(odd.get_batch(&[6]).unwrap_err().to_string(), "sample 6: panicked: image 6 is upside down");
}

#[test]
fn records_come_from_a_mapped_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.bin");
    fs::write(&path, [b"HEAD".as_slice(), b"aaabbbccc"].concat()).unwrap();
    let records = Records::open(&path, 4, 3).unwrap();
    assert_eq!((records.len(), records.record_size()), (3, 3));
    assert_eq!(records.get_batch(&[2, 0, 2]).unwrap(), b"cccaaaccc");
    let error = records.get_batch(&[0, 3]).unwrap_err().to_string();
    assert!(error.starts_with("sample 3: ") && error.contains("has 3 records"), "{error}");
}

#[test]
fn damaged_files_are_refused_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.bin");
    let refused = |content: &[u8], header, size| {
        fs::write(&path, content).unwrap();
        let error = Records::open(&path, header, size).unwrap_err();
        assert!(matches!(error, Error::File { .. }));
        let text = error.to_string();
        assert!(text.contains("records.bin"), "{text}");
        text
    };
    assert!(refused(b"HEADaaabb", 4, 3).contains("2 bytes follow the last of its 1 records of 3 bytes"));
    assert!(refused(b"HEAD", 4, 3).contains("holds no record: it has 4 bytes"));
    assert!(refused(b"HE", 4, 3).contains("holds no record: it has 2 bytes"));
    assert!(refused(b"", 0, 3).contains("holds no record"));
    assert!(refused(b"aaa", 0, 0).contains("cannot have 0 bytes"));
    let missing = Records::open(folder.path().join("nothing"), 0, 1).unwrap_err().to_string();
    assert!(missing.contains("cannot be opened") && missing.contains("nothing"), "{missing}");
}

#[test]
fn a_file_that_shrinks_in_use_is_an_error_and_one_that_grows_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records.bin");
    // More than a page, as touching what is no longer there would end the process.
    fs::write(&path, vec![7u8; 3 << 12]).unwrap();
    let records = Records::open(&path, 0, 1 << 12).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    assert_eq!(records.get_batch(&[2]).unwrap(), vec![7; 1 << 12]);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1 << 12).unwrap();
    let error = records.get_batch(&[0]).unwrap_err().to_string();
    assert!(error.contains("has become shorter, from 12288 bytes to 4096, while in use"), "{error}");
}
