//! The C side: types as NCCL's public API documents them, and the table of functions looked up in the library.
//!
//! There is no `#[link]`: [`Table::load`] resolves every symbol by name. Those that NCCL 2.19 has are required; newer
//! ones are `Option`, and what is missing is answered by the layer above with a typed error. The list of functions is
//! written once, in `nccl_functions`; the table here and the wrappers in `result` are both made from it.
//!
//! Use the safe types at the crate root instead, unless you write bindings of your own.
#![allow(non_camel_case_types)]

use std::ffi::{c_char, c_int, c_uint, c_void};

/// `ncclComm_t`: an opaque communicator.
pub type ncclComm_t = *mut c_void;
/// `ncclWindow_t`: an opaque registered window.
pub type ncclWindow_t = *mut c_void;
/// `cudaStream_t`: an opaque CUDA stream; null is the default stream.
pub type cudaStream_t = *mut c_void;
/// `ncclResult_t`: 0 success, 7 in progress, anything else an error.
pub type ncclResult_t = c_int;
/// `ncclDataType_t`.
pub type ncclDataType_t = c_int;
/// `ncclRedOp_t`.
pub type ncclRedOp_t = c_int;
/// `ncclCommMemStat_t`.
pub type ncclCommMemStat_t = c_int;

/// `ncclSuccess`.
pub const SUCCESS: ncclResult_t = 0;
/// `ncclInProgress`.
pub const IN_PROGRESS: ncclResult_t = 7;
/// `NCCL_SPLIT_NOCOLOR`: this rank takes no part in any child of a split.
pub const SPLIT_NOCOLOR: c_int = -1;
/// `NCCL_CONFIG_UNDEF_INT`: the library chooses.
pub const UNDEF_INT: c_int = c_int::MIN;
/// The mark every versioned configuration begins with.
pub const CONFIG_MAGIC: c_uint = 0xcafe_beef;
/// The mark of `ncclSimInfo_t`.
pub const SIM_INFO_MAGIC: c_uint = 0x7468_5283;
/// Bytes in a unique id.
pub const UNIQUE_ID_BYTES: usize = 128;

/// `ncclUniqueId`, passed by value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ncclUniqueId {
    /// Opaque bytes.
    pub internal: [c_char; UNIQUE_ID_BYTES],
}

/// `ncclConfig_t` as of 2.30.5. It only ever grew at the end, and `size` says how much of it there is, so the same
/// struct serves every version when `size` and `version` are set to what the loaded library knows.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(
    missing_docs,
    reason = "the fields are NCCL's, documented by NCCL; `Config` documents what this crate sets"
)]
pub struct ncclConfig_t {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub blocking: c_int,
    pub cga_cluster_size: c_int,
    pub min_ctas: c_int,
    pub max_ctas: c_int,
    pub net_name: *const c_char,
    pub split_share: c_int,
    pub traffic_class: c_int,
    pub comm_name: *const c_char,
    pub collnet_enable: c_int,
    pub cta_policy: c_int,
    pub shrink_share: c_int,
    pub nvls_ctas: c_int,
    pub n_channels_per_net_peer: c_int,
    pub nvlink_centric_sched: c_int,
    pub graph_usage_mode: c_int,
    pub num_rma_ctx: c_int,
    pub max_p2p_peers: c_int,
    pub graph_stream_ordering: c_int,
}

/// `ncclSimInfo_t` as of 2.22.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the fields are NCCL's, documented by NCCL")]
pub struct ncclSimInfo_t {
    pub size: usize,
    pub magic: c_uint,
    pub version: c_uint,
    pub estimated_time: f32,
}

/// The one list of functions that answer with a result code. `$expand` is called with it.
macro_rules! nccl_functions {
    ($expand:ident) => {
        $expand! {
            required {
                get_version("ncclGetVersion")(version: *mut c_int);
                get_unique_id("ncclGetUniqueId")(id: *mut ncclUniqueId);
                comm_init_rank_config("ncclCommInitRankConfig")(
                    comm: *mut ncclComm_t, world: c_int, id: ncclUniqueId, rank: c_int, config: *mut ncclConfig_t
                );
                comm_finalize("ncclCommFinalize")(comm: ncclComm_t);
                comm_destroy("ncclCommDestroy")(comm: ncclComm_t);
                comm_abort("ncclCommAbort")(comm: ncclComm_t);
                comm_split("ncclCommSplit")(
                    comm: ncclComm_t, color: c_int, key: c_int, child: *mut ncclComm_t, config: *mut ncclConfig_t
                );
                comm_get_async_error("ncclCommGetAsyncError")(comm: ncclComm_t, error: *mut ncclResult_t);
                comm_count("ncclCommCount")(comm: ncclComm_t, count: *mut c_int);
                comm_cu_device("ncclCommCuDevice")(comm: ncclComm_t, device: *mut c_int);
                comm_user_rank("ncclCommUserRank")(comm: ncclComm_t, rank: *mut c_int);
                reduce("ncclReduce")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, op: ncclRedOp_t,
                    root: c_int, comm: ncclComm_t, stream: cudaStream_t
                );
                broadcast("ncclBroadcast")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, root: c_int,
                    comm: ncclComm_t, stream: cudaStream_t
                );
                all_reduce("ncclAllReduce")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, op: ncclRedOp_t,
                    comm: ncclComm_t, stream: cudaStream_t
                );
                reduce_scatter("ncclReduceScatter")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, op: ncclRedOp_t,
                    comm: ncclComm_t, stream: cudaStream_t
                );
                all_gather("ncclAllGather")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, comm: ncclComm_t,
                    stream: cudaStream_t
                );
                send("ncclSend")(
                    send: *const c_void, count: usize, dtype: ncclDataType_t, peer: c_int, comm: ncclComm_t,
                    stream: cudaStream_t
                );
                recv("ncclRecv")(
                    recv: *mut c_void, count: usize, dtype: ncclDataType_t, peer: c_int, comm: ncclComm_t,
                    stream: cudaStream_t
                );
                group_start("ncclGroupStart")();
                group_end("ncclGroupEnd")();
                comm_register("ncclCommRegister")(
                    comm: ncclComm_t, ptr: *mut c_void, bytes: usize, handle: *mut *mut c_void
                );
                comm_deregister("ncclCommDeregister")(comm: ncclComm_t, handle: *mut c_void);
                mem_alloc("ncclMemAlloc")(ptr: *mut *mut c_void, bytes: usize);
                mem_free("ncclMemFree")(ptr: *mut c_void);
            }
            optional {
                [2, 22, 3] group_simulate_end("ncclGroupSimulateEnd")(info: *mut ncclSimInfo_t);
                [2, 23, 4] comm_init_rank_scalable("ncclCommInitRankScalable")(
                    comm: *mut ncclComm_t, world: c_int, rank: c_int, id_count: c_int, ids: *mut ncclUniqueId,
                    config: *mut ncclConfig_t
                );
                [2, 27, 3] comm_shrink("ncclCommShrink")(
                    comm: ncclComm_t, exclude: *mut c_int, exclude_count: c_int, child: *mut ncclComm_t,
                    config: *mut ncclConfig_t, flags: c_int
                );
                [2, 27, 3] comm_window_register("ncclCommWindowRegister")(
                    comm: ncclComm_t, ptr: *mut c_void, bytes: usize, window: *mut ncclWindow_t, flags: c_int
                );
                [2, 27, 3] comm_window_deregister("ncclCommWindowDeregister")(comm: ncclComm_t, window: ncclWindow_t);
                [2, 28, 3] all_to_all("ncclAlltoAll")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, comm: ncclComm_t,
                    stream: cudaStream_t
                );
                [2, 28, 3] gather("ncclGather")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, root: c_int,
                    comm: ncclComm_t, stream: cudaStream_t
                );
                [2, 28, 3] scatter("ncclScatter")(
                    send: *const c_void, recv: *mut c_void, count: usize, dtype: ncclDataType_t, root: c_int,
                    comm: ncclComm_t, stream: cudaStream_t
                );
                [2, 28, 7] comm_revoke("ncclCommRevoke")(comm: ncclComm_t, flags: c_int);
                [2, 29, 2] comm_get_unique_id("ncclCommGetUniqueId")(comm: ncclComm_t, id: *mut ncclUniqueId);
                [2, 29, 2] comm_grow("ncclCommGrow")(
                    comm: ncclComm_t, world: c_int, id: *const ncclUniqueId, rank: c_int, child: *mut ncclComm_t,
                    config: *mut ncclConfig_t
                );
                [2, 29, 7] comm_suspend("ncclCommSuspend")(comm: ncclComm_t, flags: c_int);
                [2, 29, 7] comm_resume("ncclCommResume")(comm: ncclComm_t);
                [2, 29, 7] comm_mem_stats("ncclCommMemStats")(
                    comm: ncclComm_t, stat: ncclCommMemStat_t, value: *mut u64
                );
            }
        }
    };
}
pub(crate) use nccl_functions;

macro_rules! make_table {
    (
        required { $( $name:ident($symbol:literal)($($arg:ident: $ty:ty),*); )* }
        optional { $( $since:tt $oname:ident($osymbol:literal)($($oarg:ident: $oty:ty),*); )* }
    ) => {
        /// Every NCCL function this crate calls.
        #[expect(missing_docs, reason = "each field is the C function of the same name, documented by NCCL")]
        pub struct Table {
            pub get_error_string: unsafe extern "C" fn(ncclResult_t) -> *const c_char,
            pub get_last_error: unsafe extern "C" fn(ncclComm_t) -> *const c_char,
            $( pub $name: unsafe extern "C" fn($($ty),*) -> ncclResult_t, )*
            $( pub $oname: Option<unsafe extern "C" fn($($oty),*) -> ncclResult_t>, )*
        }

        impl Table {
            /// Looks every symbol up; on failure names the first required one that is missing.
            ///
            /// # Safety
            /// `library` must be NCCL (the symbols must have NCCL's signatures) and must stay loaded as long as the
            /// table is used.
            pub unsafe fn load(library: &libloading::Library) -> Result<Self, &'static str> {
                // SAFETY: the caller promises that these names carry the signatures that NCCL documents.
                unsafe {
                    Ok(Self {
                        get_error_string: required(library, "ncclGetErrorString")?,
                        get_last_error: required(library, "ncclGetLastError")?,
                        $( $name: required(library, $symbol)?, )*
                        $( $oname: library.get($osymbol).ok().map(|s| *s), )*
                    })
                }
            }
        }
    };
}
nccl_functions!(make_table);

/// # Safety
/// `T` must be the type of the function that the library exports under this name.
unsafe fn required<T: Copy>(library: &libloading::Library, symbol: &'static str) -> Result<T, &'static str> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<T>(symbol) }.map(|found| *found).map_err(|_| symbol)
}
