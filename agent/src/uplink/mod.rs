//! To the orchestrator: batches up until they are acknowledged, settings down until they are read back.

pub mod settings;
