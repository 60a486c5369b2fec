//! The C interface as it is; `shim/oracle.cpp` says what each function does.

use std::ffi::{c_char, c_int, c_void};

use torch_sys::C_tensor;

#[repr(C)]
pub(crate) struct Settings {
    pub(crate) rank: c_int,
    pub(crate) size: c_int,
    pub(crate) first_bucket: i64,
    pub(crate) bucket: i64,
    pub(crate) find_unused: bool,
}

unsafe extern "C" {
    pub(crate) fn oracle_hub_new(size: c_int) -> *mut c_void;
    pub(crate) fn oracle_hub_delete(hub: *mut c_void);
    pub(crate) fn oracle_new(
        hub: *mut c_void,
        how: *const Settings,
        params: *const *const C_tensor,
        count: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    pub(crate) fn oracle_delete(reducer: *mut c_void);
    pub(crate) fn oracle_before(reducer: *mut c_void) -> *mut c_char;
    pub(crate) fn oracle_after(
        reducer: *mut c_void,
        output: *const C_tensor,
        find_unused: bool,
    ) -> *mut c_char;
    pub(crate) fn oracle_free(message: *mut c_char);
}
