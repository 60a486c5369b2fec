//! How a communicator is to be made.

use std::time::Duration;

/// Settings of a communicator. What is `None` is left to NCCL.
///
/// A setting that the loaded NCCL does not know is refused with [`Error::NotSupported`](crate::Error::NotSupported), where
/// NCCL itself would silently ignore it.
///
/// ```
/// use std::time::Duration;
/// let config = nccl_rs::Config { timeout: Duration::from_secs(10), ctas: Some((1, 16)), ..Default::default() };
/// assert!(!config.blocking, "only a nonblocking communicator can be given up in the middle of an operation");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether calls block until NCCL is done with them. Then no deadline holds and an abort has to wait, so the default is
    /// `false`.
    pub blocking: bool,
    /// How long this crate waits for a nonblocking communicator, for each wait. 60 seconds by default.
    pub timeout: Duration,
    /// Size of the cooperative group array on Hopper and later.
    pub cga_cluster_size: Option<u32>,
    /// Least and most thread blocks an operation may use. NCCL takes the first only together with the second.
    pub ctas: Option<(u32, u32)>,
    /// The network module to use, such as `Socket` or `IB`.
    pub net_name: Option<String>,
    /// Whether children of a split share the parent's resources.
    pub split_share: Option<bool>,
    /// Traffic class of the network, since 2.26.
    pub traffic_class: Option<i32>,
    /// A name for logs and profilers, since 2.27.
    pub comm_name: Option<String>,
    /// Whether to use in-network reduction, since 2.27.
    pub collnet: Option<bool>,
    /// Whether to spend fewer thread blocks, since 2.27.
    pub cta_policy: Option<CtaPolicy>,
    /// Whether a shrunk communicator shares the parent's resources, since 2.27.
    pub shrink_share: Option<bool>,
    /// Thread blocks for NVLink SHARP, since 2.27.
    pub nvls_ctas: Option<u32>,
    /// Channels a network peer gets, since 2.28.
    pub channels_per_net_peer: Option<u32>,
    /// Whether to schedule for NVLink first, since 2.28.
    pub nvlink_centric_sched: Option<bool>,
    /// How CUDA graphs will be used: 0 not, 1 one, 2 several or mixed; since 2.29.
    pub graph_usage_mode: Option<u32>,
    /// Contexts for remote memory access, since 2.29.
    pub rma_contexts: Option<u32>,
    /// Most peers of point-to-point operations, since 2.30.
    pub max_p2p_peers: Option<u32>,
    /// Whether graph launches keep stream order, since 2.30.5.
    pub graph_stream_ordering: Option<bool>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blocking: false,
            timeout: Duration::from_secs(60),
            cga_cluster_size: None,
            ctas: None,
            net_name: None,
            split_share: None,
            traffic_class: None,
            comm_name: None,
            collnet: None,
            cta_policy: None,
            shrink_share: None,
            nvls_ctas: None,
            channels_per_net_peer: None,
            nvlink_centric_sched: None,
            graph_usage_mode: None,
            rma_contexts: None,
            max_p2p_peers: None,
            graph_stream_ordering: None,
        }
    }
}

/// How NCCL weighs speed against the thread blocks it takes from computation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(i32)]
pub enum CtaPolicy {
    /// Speed first.
    Default = 0,
    /// Fewer thread blocks where that costs little.
    Efficiency = 1,
    /// None at all where copy engines can do it.
    Zero = 2,
}
