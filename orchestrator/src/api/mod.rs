//! Northbound HTTP for the operator and the CLI, metrics.
