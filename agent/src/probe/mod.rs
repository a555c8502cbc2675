//! The only place that knows aya: loads the probe, reads and writes its maps.
