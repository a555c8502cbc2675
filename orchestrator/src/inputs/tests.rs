//! The engine task on a real ledger, killed and restarted.
