//! Builds the fake libnccl and talks to it.
#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    ffi::{CStr, CString, c_char, c_int},
    path::PathBuf,
    process::Command,
};

use libloading::Library;
use nccl_rs::{Communicator, Config, DataType, DeviceSliceMut, Nccl};

/// A fake NCCL of one version, all its own: each test compiles a copy, so that none sees another's calls.
pub(crate) struct Fake {
    pub(crate) path: PathBuf,
    library: Library,
    _dir: tempfile::TempDir,
}

impl Fake {
    /// Plays the version with this code, such as 21903 for 2.19.3.
    pub(crate) fn new(version: u32) -> Self {
        Self::with_source(version, include_str!("../fake.c"))
    }

    /// Plays a library made from other source.
    pub(crate) fn with_source(version: u32, source: &str) -> Self {
        let path = compile(version, source);
        // SAFETY: our own library, without initialisers.
        let library = unsafe { Library::new(&path.1) }.unwrap();
        Self { path: path.1, library, _dir: path.0 }
    }

    pub(crate) fn nccl(&self) -> Nccl {
        Nccl::open(&self.path).unwrap()
    }

    /// A communicator on it, of which no calls are noted yet.
    pub(crate) fn communicator(&self, world: u32, rank: u32, config: &Config) -> Communicator {
        let nccl = self.nccl();
        let comm = Communicator::init(&nccl, world, rank, &nccl.unique_id().unwrap(), config).unwrap();
        self.clear();
        comm
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        // SAFETY: the fake's own function; the string is copied at once.
        let text = unsafe {
            let calls = self.library.get::<unsafe extern "C" fn() -> *const c_char>("fake_calls").unwrap();
            CStr::from_ptr(calls()).to_string_lossy().into_owned()
        };
        text.lines().map(str::to_owned).collect()
    }

    pub(crate) fn clear(&self) {
        // SAFETY: the fake's own function.
        unsafe { self.library.get::<unsafe extern "C" fn()>("fake_clear").unwrap()() }
    }

    /// Every later operation needs this many polls.
    pub(crate) fn busy(&self, polls: c_int) {
        self.set("fake_busy", polls);
    }

    /// What polling answers once nothing is busy.
    pub(crate) fn async_error(&self, code: c_int) {
        self.set("fake_async", code);
    }

    /// A split begins but never ends.
    pub(crate) fn never_child(&self) {
        self.set("fake_never_child", 1);
    }

    pub(crate) fn null_window(&self) {
        self.set("fake_null_window", 1);
    }

    /// The next call of this function fails.
    pub(crate) fn fail(&self, function: &str, code: c_int) {
        let name = CString::new(function).unwrap();
        // SAFETY: the fake's own function, which copies the name.
        unsafe {
            self.library.get::<unsafe extern "C" fn(*const c_char, c_int)>("fake_fail").unwrap()(
                name.as_ptr(),
                code,
            );
        }
    }

    /// Where offsets in the notes of sends and receives count from.
    pub(crate) fn base(&self, at: *const f32) {
        // SAFETY: the fake's own function; it only computes differences.
        unsafe { self.library.get::<unsafe extern "C" fn(*const f32)>("fake_base").unwrap()(at) }
    }

    fn set(&self, name: &str, value: c_int) {
        // SAFETY: the fake's own function of this type.
        unsafe { self.library.get::<unsafe extern "C" fn(c_int)>(name).unwrap()(value) }
    }
}

fn compile(version: u32, source: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let (c, so) = (dir.path().join("fake.c"), dir.path().join("libnccl.so.2"));
    std::fs::write(&c, source).unwrap();
    let output = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-w", &format!("-DFAKE_VERSION={version}"), "-o"])
        .args([&so, &c])
        .output()
        .expect("a C compiler named cc, which linking Rust needs anyway");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (dir, so)
}

/// "Device" memory of the fake.
pub(crate) fn floats(memory: &mut [f32]) -> DeviceSliceMut {
    // SAFETY: the fake never touches it, and tests keep it until they are done.
    unsafe { DeviceSliceMut::from_raw(memory.as_mut_ptr().cast(), memory.len(), DataType::F32) }
}
