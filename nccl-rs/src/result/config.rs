//! From [`Config`] to the versioned C struct that the loaded library understands.

use std::{
    ffi::{CString, c_char, c_int},
    ptr,
};

use crate::{
    error::{Error, Result, Version},
    safe::Config,
    sys::{self, ncclConfig_t},
};

/// The newest layout this crate knows. Newer libraries fill what came later with their defaults.
const NEWEST: Version = Version::new(2, 30, 5);

/// How many bytes of the struct each version reads.
const SIZES: [(Version, usize); 5] = [
    (Version::new(2, 30, 0), 96),
    (Version::new(2, 29, 0), 88),
    (Version::new(2, 28, 0), 80),
    (Version::new(2, 27, 0), 72),
    (Version::new(2, 17, 0), 48),
];

/// The C struct together with the strings it points to, which must live as long as the communicator.
pub(crate) struct RawConfig {
    raw: Box<ncclConfig_t>,
    _net_name: Option<CString>,
    _comm_name: Option<CString>,
}

// SAFETY: the pointers in it lead only to the strings beside it.
unsafe impl Send for RawConfig {}

impl RawConfig {
    pub(crate) fn new(config: &Config, found: Version) -> Result<Self> {
        require_supported(config, found)?;
        if let Some((min, max)) = config.ctas
            && (min == 0 || min > max)
        {
            return Err(invalid(format!("ctas are ({min}, {max}); give 1 <= min <= max")));
        }
        let net_name = c_string("net_name", config.net_name.as_deref())?;
        let comm_name = c_string("comm_name", config.comm_name.as_deref())?;
        let raw = Box::new(ncclConfig_t {
            size: SIZES.iter().find(|(since, _)| found >= *since).map_or(48, |(_, size)| *size),
            magic: sys::CONFIG_MAGIC,
            version: found.min(NEWEST).code(),
            blocking: c_int::from(config.blocking),
            cga_cluster_size: number("cga_cluster_size", config.cga_cluster_size)?,
            min_ctas: number("ctas", config.ctas.map(|c| c.0))?,
            max_ctas: number("ctas", config.ctas.map(|c| c.1))?,
            net_name: pointer(net_name.as_deref()),
            split_share: flag(config.split_share),
            traffic_class: config.traffic_class.unwrap_or(sys::UNDEF_INT),
            comm_name: pointer(comm_name.as_deref()),
            collnet_enable: flag(config.collnet),
            cta_policy: config.cta_policy.map_or(sys::UNDEF_INT, |p| p as c_int),
            shrink_share: flag(config.shrink_share),
            nvls_ctas: number("nvls_ctas", config.nvls_ctas)?,
            n_channels_per_net_peer: number("channels_per_net_peer", config.channels_per_net_peer)?,
            nvlink_centric_sched: flag(config.nvlink_centric_sched),
            graph_usage_mode: number("graph_usage_mode", config.graph_usage_mode)?,
            num_rma_ctx: number("rma_contexts", config.rma_contexts)?,
            max_p2p_peers: number("max_p2p_peers", config.max_p2p_peers)?,
            graph_stream_ordering: flag(config.graph_stream_ordering),
        });
        Ok(Self { raw, _net_name: net_name, _comm_name: comm_name })
    }

    pub(crate) fn as_mut_ptr(&mut self) -> *mut ncclConfig_t {
        &mut *self.raw
    }
}

/// Refuses what the library would silently ignore.
fn require_supported(config: &Config, found: Version) -> Result<()> {
    let settings = [
        (config.traffic_class.is_some(), "Config::traffic_class", Version::new(2, 26, 2)),
        (config.comm_name.is_some(), "Config::comm_name", Version::new(2, 27, 3)),
        (config.collnet.is_some(), "Config::collnet", Version::new(2, 27, 3)),
        (config.cta_policy.is_some(), "Config::cta_policy", Version::new(2, 27, 3)),
        (config.shrink_share.is_some(), "Config::shrink_share", Version::new(2, 27, 3)),
        (config.nvls_ctas.is_some(), "Config::nvls_ctas", Version::new(2, 27, 3)),
        (config.channels_per_net_peer.is_some(), "Config::channels_per_net_peer", Version::new(2, 28, 3)),
        (config.nvlink_centric_sched.is_some(), "Config::nvlink_centric_sched", Version::new(2, 28, 3)),
        (config.graph_usage_mode.is_some(), "Config::graph_usage_mode", Version::new(2, 29, 2)),
        (config.rma_contexts.is_some(), "Config::rma_contexts", Version::new(2, 29, 2)),
        (config.max_p2p_peers.is_some(), "Config::max_p2p_peers", Version::new(2, 30, 3)),
        (config.graph_stream_ordering.is_some(), "Config::graph_stream_ordering", Version::new(2, 30, 5)),
    ];
    match settings.into_iter().find(|(set, _, needs)| *set && found < *needs) {
        Some((_, feature, needs)) => Err(Error::NotSupported { feature, needs, found }),
        None => Ok(()),
    }
}

fn flag(value: Option<bool>) -> c_int {
    value.map_or(sys::UNDEF_INT, c_int::from)
}

fn number(name: &str, value: Option<u32>) -> Result<c_int> {
    match value {
        None => Ok(sys::UNDEF_INT),
        Some(value) => c_int::try_from(value).map_err(|_| invalid(format!("{name} is {value}, too large"))),
    }
}

fn c_string(name: &str, value: Option<&str>) -> Result<Option<CString>> {
    value.map(CString::new).transpose().map_err(|_| invalid(format!("{name} contains a zero byte")))
}

fn pointer(value: Option<&std::ffi::CStr>) -> *const c_char {
    value.map_or(ptr::null(), std::ffi::CStr::as_ptr)
}

fn invalid(what: String) -> Error {
    Error::InvalidArgument { operation: "Config", what }
}
