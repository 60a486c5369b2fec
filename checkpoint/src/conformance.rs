//! What every [`Store`] has to do, as tests that a back end runs on an empty store of its own. They panic with what is
//! wrong.

use crate::store::{Created, Store};

/// Runs all of it.
pub fn store(store: &dyn Store) {
    files_are_written_whole_and_once(store);
    a_small_file_is_created_once(store);
    folders_are_listed_and_removed(store);
}

fn files_are_written_whole_and_once(store: &dyn Store) {
    store.make_folder("files").unwrap();
    // Longer than a part of a multipart upload, and not a multiple of it.
    let large: Vec<u8> = (0..20_000_003u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    store.write("files/large", &large).unwrap();
    store.write("files/empty", b"").unwrap();
    let blob = store.open("files/large").unwrap().expect("what was written is there");
    assert_eq!(blob.len(), large.len() as u64);
    assert!(*blob.read(0..blob.len()).unwrap() == large[..], "what was written is read");
    assert_eq!(*blob.read(9_999_999..10_000_099).unwrap(), large[9_999_999..10_000_099]);
    assert_eq!(blob.read(5..5).unwrap().len(), 0);
    assert_eq!(store.open("files/empty").unwrap().expect("an empty file is a file").len(), 0);
    assert!(store.open("files/none").unwrap().is_none(), "what is not there is not found");
    assert!(store.read_small("files/large", 100).is_err(), "a limit is kept");
    store.remove_folder("files").unwrap();
}

fn a_small_file_is_created_once(store: &dyn Store) {
    store.make_folder("small").unwrap();
    assert_eq!(store.create("small/one", b"first").unwrap(), Created::New);
    assert_eq!(store.create("small/one", b"second").unwrap(), Created::Exists(b"first".to_vec()));
    store.replace("small/one", b"third").unwrap();
    assert_eq!(store.read_small("small/one", 100).unwrap().as_deref(), Some(&b"third"[..]));
    store.replace("at-the-root", b"too").unwrap();
    assert_eq!(store.read_small("at-the-root", 100).unwrap().as_deref(), Some(&b"too"[..]));
    store.remove("at-the-root").unwrap();
    let winners = std::thread::scope(|scope| {
        let racers: Vec<_> =
            (0..8u8).map(|i| scope.spawn(move || store.create("small/race", &[i]).unwrap())).collect();
        racers
            .into_iter()
            .map(|racer| racer.join().unwrap())
            .filter(|created| *created == Created::New)
            .count()
    });
    assert_eq!(winners, 1, "of racing creators exactly one wins");
    store.remove_folder("small").unwrap();
}

fn folders_are_listed_and_removed(store: &dyn Store) {
    assert!(store.list("tree").unwrap().is_empty(), "no folder lists as empty");
    for folder in ["tree", "tree/a", "tree/b"] {
        store.make_folder(folder).unwrap();
        store.make_folder(folder).unwrap();
    }
    store.write("tree/a/x", b"12345").unwrap();
    store.write("tree/b/y", b"1").unwrap();
    store.write("tree/z", b"").unwrap();
    store.seal("tree/a").unwrap();
    let mut listed: Vec<(String, bool)> =
        store.list("tree").unwrap().into_iter().map(|entry| (entry.name, entry.folder)).collect();
    listed.sort();
    assert_eq!(listed, [("a".to_owned(), true), ("b".to_owned(), true), ("z".to_owned(), false)]);
    let inner = store.list("tree/a").unwrap();
    assert_eq!((inner[0].name.as_str(), inner[0].size), ("x", 5));
    store.remove_folder("tree/a").unwrap();
    store.remove_folder("tree/a").unwrap();
    assert!(store.list("tree/a").unwrap().is_empty());
    store.remove("tree/z").unwrap();
    store.remove("tree/z").unwrap();
    assert_eq!(store.list("tree").unwrap().len(), 1);
    store.remove_folder("tree/b").unwrap();
    store.remove_folder("tree").unwrap();
}
