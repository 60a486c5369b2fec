//! `bench cluster`: what a gang, a report and a stored event cost. There is no peer that does the same, so these programs
//! print their own figures; `--rounds` and `--case` do not concern them.

use anyhow::Result;

use super::build;
use crate::sh;

/// Prints `gang_start` {ms}, `report_roundtrip` {us}, `controller_rss` {mb} and `events` {per_s}, a JSON line each.
pub(crate) fn run() -> Result<()> {
    sh(&mut build("regatta-cluster", "cluster")?)?;
    sh(&mut build("regatta-track", "events")?)
}
