//! What every [`Upload`] must do, as a check that each implementation runs.

use std::path::Path;

use super::Upload;
use crate::error::{Error, Result};

/// Tries an empty place, with `scratch` as a folder for files. The error says what it did wrong.
pub fn check(upload: &dyn Upload, scratch: &Path) -> Result<()> {
    let wrong = |why: &str| Error::Storage {
        what: "the conformance check".into(),
        place: upload.place(),
        why: why.into(),
    };
    let ensure = |fact: bool, why: &str| if fact { Ok(()) } else { Err(wrong(why)) };

    ensure(upload.read("pointer")?.is_none(), "an empty place has an object")?;
    let first = upload.swap("pointer", b"one", None)?.ok_or_else(|| wrong("the first swap was refused"))?;
    ensure(upload.swap("pointer", b"two", None)?.is_none(), "a second creation was accepted")?;
    let second =
        upload.swap("pointer", b"two", Some(&first))?.ok_or_else(|| wrong("a fitting swap was refused"))?;
    ensure(
        upload.swap("pointer", b"three", Some(&first))?.is_none(),
        "a swap of an old version was accepted",
    )?;
    let (bytes, version) = upload.read("pointer")?.ok_or_else(|| wrong("the pointer is gone"))?;
    ensure(bytes == b"two", "the pointer is not what was put there last")?;
    ensure(version == second, "reading and swapping disagree about the version")?;

    let (from, to) = (scratch.join("conformance-from"), scratch.join("conformance-to"));
    for length in [0, 1, 20_000_000] {
        let bytes: Vec<u8> = (0..length).map(|i: u32| (i % 251) as u8).collect();
        std::fs::write(&from, &bytes).map_err(Error::io("write", &from))?;
        upload.upload("data", &from)?;
        upload.download("data", &to)?;
        let back = std::fs::read(&to).map_err(Error::io("read", &to))?;
        ensure(back == bytes, "a file came back changed")?;
        upload.delete("data")?;
        upload.delete("data")?;
    }
    ensure(upload.download("data", &to).is_err(), "an object that was removed could be fetched")
}
