//! The middle layer: every C function with `Result` in place of a code, and the owned handles that make the safe layer
//! free of `unsafe`.
//!
//! [`Api`] wraps each function one to one and keeps NCCL's code and words in the error. The types in the submodules own
//! what NCCL hands out, so that nothing is used after it was freed: the only unsafe promises left to users are those
//! about device memory and streams, in [`DeviceSlice`] and [`Stream`].

use std::{
    ffi::{CStr, c_int, c_void},
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    ptr,
};

use libloading::Library;

use crate::{
    error::{Attempt, Code, Error, Result, Version},
    sys::{self, Table, nccl_functions},
};

mod collectives;
mod comm;
mod config;
mod memory;

pub use comm::ShrinkMode;
pub(crate) use comm::{PendingComm, RawComm};
pub(crate) use config::RawConfig;
pub(crate) use memory::Allocation;
pub use memory::{DeviceSlice, DeviceSliceMut, Stream};

/// The oldest NCCL this crate works with.
pub const OLDEST: Version = Version::new(2, 19, 0);

/// What a call that did not fail has to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "work in progress must be polled to its end"]
pub enum Progress {
    /// `ncclSuccess`.
    Done,
    /// `ncclInProgress`: a nonblocking communicator is still at it.
    InProgress,
}

/// A loaded NCCL: its functions, with results checked.
pub struct Api {
    table: Table,
    version: Version,
    path: PathBuf,
    // Never unloaded: NCCL keeps threads of its own, which would run on in unmapped code.
    _library: ManuallyDrop<Library>,
}

impl Api {
    /// Loads the library of this name or path.
    pub fn open(name: &Path) -> Result<Self> {
        let not_available = |error: libloading::Error| Error::NotAvailable {
            tried: vec![Attempt { name: name.to_owned(), error: innermost(&error) }],
        };
        // SAFETY: loading runs the library's initialisers; NCCL's have no preconditions, and the caller named it as NCCL.
        let library = ManuallyDrop::new(unsafe { Library::new(name) }.map_err(not_available)?);
        let version = version_of(&library, name)?;
        if version < OLDEST {
            return Err(Error::TooOld { found: version, needs: OLDEST, path: name.to_owned() });
        }
        // SAFETY: the library answered as NCCL of a version whose signatures the table has, and it is never unloaded.
        let table = unsafe { Table::load(&library) }
            .map_err(|symbol| Error::MissingSymbol { symbol, path: name.to_owned() })?;
        Ok(Self { table, version, path: name.to_owned(), _library: library })
    }

    /// The version of the loaded library.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The name or path it was loaded by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// NCCL's words for a code, followed by the last detail it noted, if any.
    pub fn describe(&self, code: Code) -> String {
        // SAFETY: both functions take any argument here (the communicator may be null) and return null or a string that
        // lives as long as the library, or at least until this thread's next NCCL call.
        let (general, detail) = unsafe {
            (text((self.table.get_error_string)(code.0)), text((self.table.get_last_error)(ptr::null_mut())))
        };
        match detail.trim() {
            "" => general,
            detail => format!("{general}: {detail}"),
        }
    }

    /// Turns a code into progress or an error that names the function.
    pub fn check(&self, function: &'static str, code: c_int) -> Result<Progress> {
        match code {
            sys::SUCCESS => Ok(Progress::Done),
            sys::IN_PROGRESS => Ok(Progress::InProgress),
            code => Err(Error::Nccl {
                function,
                code: Code(code),
                message: self.describe(Code(code)),
                rank: None,
            }),
        }
    }

    /// Opens a group on this thread.
    pub(crate) fn begin_group(&self) -> Result<Progress> {
        // SAFETY: no preconditions; the depth is per thread, and callers pair it with `finish_group`.
        unsafe { self.group_start() }
    }

    /// Closes a group on this thread and launches what was recorded.
    pub(crate) fn finish_group(&self) -> Result<Progress> {
        // SAFETY: communicators recorded in the group are kept alive by their owners until this returns.
        unsafe { self.group_end() }
    }

    /// Closes a group without launching it and gives NCCL's estimate of the time it would have taken, in microseconds.
    pub(crate) fn estimate_group(&self) -> Result<f32> {
        let mut info = sys::ncclSimInfo_t {
            size: size_of::<sys::ncclSimInfo_t>(),
            magic: sys::SIM_INFO_MAGIC,
            version: Version::new(2, 22, 3).code(),
            estimated_time: -1.0,
        };
        // SAFETY: `info` is initialised as the API wants and lives through the call.
        let _ = unsafe { self.group_simulate_end(&mut info) }?;
        Ok(info.estimated_time)
    }

    /// A fresh id for a new clique, or whatever keeps this machine from making one.
    pub(crate) fn new_unique_id(&self) -> Result<sys::ncclUniqueId> {
        let mut id = sys::ncclUniqueId { internal: [0; sys::UNIQUE_ID_BYTES] };
        // SAFETY: `id` is a valid place for the answer.
        let _ = unsafe { self.get_unique_id(&mut id) }?;
        Ok(id)
    }

    fn not_supported(&self, feature: &'static str, needs: [u32; 3]) -> Error {
        let [major, minor, patch] = needs;
        Error::NotSupported { feature, needs: Version::new(major, minor, patch), found: self.version }
    }
}

macro_rules! make_wrappers {
    (
        required { $( $name:ident($symbol:literal)($($arg:ident: $ty:ty),*); )* }
        optional { $( [$major:literal, $minor:literal, $patch:literal]
                      $oname:ident($osymbol:literal)($($oarg:ident: $oty:ty),*); )* }
    ) => {
        #[expect(clippy::too_many_arguments, reason = "these are the C functions' own arguments")]
        impl Api {
            $(
                #[doc = concat!("`", $symbol, "`, its code checked.")]
                ///
                /// # Safety
                /// As NCCL documents for the function: handles are live, pointers valid for what it reads and writes.
                pub unsafe fn $name(&self, $($arg: $ty),*) -> Result<Progress> {
                    // SAFETY: passed on to the caller.
                    self.check($symbol, unsafe { (self.table.$name)($($arg),*) })
                }
            )*
            $(
                #[doc = concat!("`", $osymbol, "`, its code checked, or [`Error::NotSupported`] if the library lacks it.")]
                ///
                /// # Safety
                /// As NCCL documents for the function: handles are live, pointers valid for what it reads and writes.
                pub unsafe fn $oname(&self, $($oarg: $oty),*) -> Result<Progress> {
                    let function = self
                        .table
                        .$oname
                        .ok_or_else(|| self.not_supported($osymbol, [$major, $minor, $patch]))?;
                    // SAFETY: passed on to the caller.
                    self.check($osymbol, unsafe { function($($oarg),*) })
                }
            )*
        }

        /// Whether the loaded library exports an optional function, by its C name; true for every required one.
        impl Api {
            /// Whether the library has this function (by its C name, such as `ncclCommShrink`).
            pub fn has(&self, function: &str) -> bool {
                match function {
                    $( $osymbol => self.table.$oname.is_some(), )*
                    other => [$($symbol),*].contains(&other),
                }
            }
        }
    };
}
use crate::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclWindow_t};
use crate::sys::{ncclCommMemStat_t, ncclResult_t, ncclSimInfo_t, ncclUniqueId};
nccl_functions!(make_wrappers);

fn version_of(library: &Library, name: &Path) -> Result<Version> {
    let symbol = "ncclGetVersion";
    let mut code = 0;
    // SAFETY: this is the signature NCCL documents for the name since its first release; `code` outlives the call.
    let result = unsafe {
        library
            .get::<unsafe extern "C" fn(*mut c_int) -> c_int>(symbol)
            .map(|get_version| get_version(&mut code))
    };
    match result {
        Ok(sys::SUCCESS) => Ok(Version::from_code(code.unsigned_abs())),
        Ok(other) => Err(Error::Nccl {
            function: "ncclGetVersion",
            code: Code(other),
            message: String::new(),
            rank: None,
        }),
        Err(_) => Err(Error::MissingSymbol { symbol, path: name.to_owned() }),
    }
}

/// # Safety
/// `string` is null or a C string that stays valid through the call.
unsafe fn text(string: *const std::ffi::c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: not null, and the caller vouches for the rest.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

fn innermost(error: &libloading::Error) -> String {
    let mut at: &dyn std::error::Error = error;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

/// Narrows a size to the `int` NCCL takes.
fn int(operation: &'static str, name: &str, value: usize) -> Result<c_int> {
    c_int::try_from(value).map_err(|_| Error::InvalidArgument {
        operation,
        what: format!("{name} is {value}, beyond what NCCL counts with an int"),
    })
}
